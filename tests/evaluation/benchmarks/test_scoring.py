"""Folders that a scorer has been at, and those that it has not: what is counted, and what is said."""

import csv
import json
import re

import pytest

from internvlu_jax.evaluation.benchmarks import BENCHMARKS
from internvlu_jax.evaluation.task import NeedsJudge, distinct
from tests.helpers.benchmark_files import FILES, PICTURES, lines, whole


def _values(name, folder):
    report = BENCHMARKS[name].score(folder)
    return {score: found.value for score, found in report.scores.items()}, report


COMMANDS = {
    "geneval": "python evaluation/evaluate_images.py {0} --outfile {0}/results.jsonl --model-path DETECTOR",
    "dpg": "cp dpg_bench/dpg_bench.csv {0}/dpg_bench.csv; python dpg_bench/compute_dpg_bench.py --image-root-path "
    "{0}/images --csv {0}/dpg_bench.csv --res-path {0}/results.txt --pic-num 4 --resolution SIDE",
    "wise": "python gpt_eval.py --json_path data/natural_science.json --image_dir {0} --output_dir {0}/Results",
    "gedit": "python test_gedit_score.py --model_name run --save_path {1} --backbone gpt4o",
    "imgedit": "python basic_bench.py --result_img_folder {0} --edit_json {0}/basic_edit.json --origin_img_root",
    "risebench": "python gpt_eval.py --data data/datav2_total_w_subtask.json --input data --output {0}",
    "textedit": "python eval_pipeline/classic_metrics_eval.py --models run --model_output_root {1} --output_dir "
    "{0}/classic",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_the_scorer_is_called_with(name, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(NeedsJudge) as caught:
        BENCHMARKS[name].score(folder)
    assert COMMANDS[name].format(folder, tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["ocrbench", "mme", "mmmu"])
def test_folders_without_answers(name, tmp_path):
    with pytest.raises(ValueError, match=r"answers.jsonl is not there; expected the folder of a run"):
        BENCHMARKS[name].score(tmp_path)


def _answered(name, folder, replies):
    """The folder of a run whose answers came in another order than the items."""
    items = list(distinct(BENCHMARKS[name].items(FILES[name](folder), folder / PICTURES.get(name, "."))))
    rows = [
        {"number": number, "id": item.id, "text": reply, **item.facts}
        for number, (item, reply) in enumerate(zip(items, replies, strict=True))
    ]
    lines(folder / "run/answers.jsonl", rows[::-1])
    return folder / "run"


def test_ocrbench(tmp_path):
    found, report = _values("ocrbench", _answered("ocrbench", tmp_path, ["a cat.", "a+B", "in 1980"]))
    assert found == pytest.approx(
        {
            "overall": 200 / 3,
            "Text Recognition": 100,
            "Doc-oriented VQA": 100,
            "Handwritten Mathematical Expression Recognition": 0,
        }
    )
    assert report.published == {"overall": 83.9}


def test_mme(tmp_path):
    """OCR: both right, then one; count: one, then none."""
    replies = ["Yes", "No", "Yes", "yes\tit\nis", "No", "no", "maybe", "Yes."]
    folder = _answered("mme", tmp_path, replies)
    assert _values("mme", folder)[0] == {"count": 25.0, "OCR": 125.0}
    BENCHMARKS["mme"].finish(folder)
    assert (folder / "OCR.txt").read_text().splitlines()[2:] == [
        "2.jpg\tIs there one? Please answer yes or no.\tYes\tYes",
        "2.jpg\tAre there two?\tNo\tyes it is",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["OCR.txt", "answers.jsonl", "count.txt"]


def test_half_a_picture_of_mme_is_left_out(tmp_path):
    """A limit of three, and of one."""
    file = _answered("mme", tmp_path, ["Yes", "No", "Yes", "yes", "No", "no", "maybe", "Yes."]) / "answers.jsonl"
    rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["number"])
    lines(file, rows[:3])
    assert len({row["task"] for row in rows[:3]}) == 1
    ((task, points),) = _values("mme", file.parent)[0].items()
    assert (task, points) == (rows[0]["task"], 0.0 if task == "count" else 200.0)
    lines(file, rows[:1])
    with pytest.raises(ValueError, match="there is no task to score"):
        BENCHMARKS["mme"].score(file.parent)


def test_mmmu(tmp_path):
    found, report = _values("mmmu", _answered("mmmu", tmp_path, ["B", "I think it is (B)", "The answer is 7.0"]))
    assert found == pytest.approx({"overall": 200 / 3, "Art": 0, "Math": 100})
    assert report.notes == ("0 letters guessed (seed 42)",)
    folder = _answered("mmmu", tmp_path, ["neither", "(B)", "seven"])
    assert BENCHMARKS["mmmu"].score(folder).notes == ("1 letters guessed (seed 42)",)


def test_geneval(tmp_path):
    rows = [
        {"tag": tag, "metadata": tag, "correct": number < right, "filename": "a"}
        for tag, right in (("counting", 1), ("colors", 3))
        for number in range(4)
    ]
    lines(tmp_path / "results.jsonl", rows)
    found, _ = _values("geneval", tmp_path)
    assert found == {"counting": 0.25, "colors": 0.75, "overall": 0.5, "pictures": 0.5, "prompts": 1.0}


def test_dpg(tmp_path):
    questions = [
        ("1", "0", "entity - whole (cigar)", "Is there a cigar?"),
        ("2", "1,0", "attribute - a (b)", "A, or B?"),
    ]
    with (tmp_path / "dpg_bench.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language"])
        writer.writerows(["226", "a, b", number, parents, what, text] for number, parents, what, text in questions)
    answers = [("yes", "yes"), ("no", "yes"), ("no", "no"), ("yes", "no")]
    boxes = ["(0, 0, 8, 8)", "(8, 0, 16, 8)", "(0, 8, 8, 16)", "(8, 8, 16, 16)"]
    (tmp_path / "results_detail.txt").write_text(
        "".join(
            f"{tmp_path}/images/226.png, {box}, {text}, {answer}\n"
            for box, both in zip(boxes, answers, strict=True)
            for (*_, text), answer in zip(questions, both, strict=True)
        )
    )
    found, report = _values("dpg", tmp_path)
    assert found == {"overall": 100 * (1 + 0 + 0 + 0.5) / 4, "attribute": 0.0, "entity": 100.0}
    assert report.published["overall"] == 85.18
    with (tmp_path / "results_detail.txt").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(ValueError, match="line 9 of the answers is 'nonsense'"):
        BENCHMARKS["dpg"].score(tmp_path)


def test_wise(tmp_path):
    row = {"prompt_id": 3, "Subcategory": "s", "consistency": 2.0, "realism": 1.0, "aesthetic_quality": 0.0}
    lines(tmp_path / "Results/a.jsonl", [row])
    lines(tmp_path / "Results/b.jsonl", [{**row, "prompt_id": 801}])
    assert _values("wise", tmp_path)[0] == pytest.approx({"culture": 0.8, "physics": 0.8})


def test_gedit(tmp_path):
    folder = tmp_path / "run"
    table = folder / "gpt4o/eval_results_new/run_combined_gpt_score.csv"
    table.parent.mkdir(parents=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["edited_image", "instruction", "sementics_score", "quality_score", "instruction_language"])
        writer.writerow([f"{folder}/fullset/ps_human/en/k0.png", "a", "4", "9", "en"])
        writer.writerow([f"{folder}/fullset/subject-add/en/k2.png", "a", "8", "2.0", "en"])
        writer.writerow([f"{folder}/fullset/ps_human/cn/k1.png", "a", "0", "0", "cn"])
    assert _values("gedit", folder)[0]["overall"] == 5.0


def test_imgedit(tmp_path):
    FILES["imgedit"](tmp_path)
    whole(tmp_path / "result.json", {"1082": "Prompt Compliance: 4\nSeamlessness: 2", "673": {"error": "no"}})
    found, report = _values("imgedit", tmp_path)
    assert found == {"overall": 3.0, "adjust": 3.0} and report.notes == ("1 judgements without a number",)


def test_risebench(tmp_path):
    rows = [
        {"category": "logical_reasoning", "reasoning": 5, "consistency": 5, "plausibility": None},
        {"category": "causal_reasoning", "reasoning": 3, "consistency": None, "plausibility": 3},
    ]
    lines(tmp_path / "judgements.jsonl", rows)
    assert _values("risebench", tmp_path)[0] == pytest.approx(
        {"accuracy": 50, "score": 75, "logical_reasoning": 100, "causal_reasoning": 0}
    )


def test_what_judgements_of_risebench_are(tmp_path):
    """The official script writes no file of that name: how its table becomes one, and what a judge of one's own writes,
    which counts."""
    folder = tmp_path / "run"
    with pytest.raises(NeedsJudge) as caught:
        BENCHMARKS["risebench"].score(folder)
    said = str(caught.value)
    (command,) = re.findall(r'^python -c "(.*)"$', said, re.MULTILINE)
    compile(command, "command", "exec")
    assert f"{folder}/run_judge.xlsx" in command and f"{folder}/judgements.jsonl" in command
    assert all(f"'{name}'" in command for name in ("category", "Reasoning", "ApprConsistency", "VisualPlausibility"))
    (row,) = re.findall(r"{\"category.*?}", said)
    lines(folder / "judgements.jsonl", [json.loads(row)])
    assert _values("risebench", folder)[0] == pytest.approx(
        {"accuracy": 0, "score": 25 * (0.3 * 5 + 0.5 * 4 + 0.2 * 3 - 1), "causal_reasoning": 0}
    )


def test_textedit(tmp_path):
    folder = tmp_path / "run"
    sample = [
        {"path": {"edited_image": f"{folder}/{category}/a.jpg"}, "score": {"ocr_f1": value}}
        for category, value in (("1.1.1", 0.5), ("1.4.4", 1.0), ("2.7", 0.25))
    ]
    splits = {"Virtual": {"detailed_results": sample[:2]}, "Real": {"detailed_results": sample[2:]}}
    whole(folder / "classic/run.json", {"summary_by_model": {"run": splits}})
    found, report = _values("textedit", folder)
    assert found == {"real": 0.25, "virtual": 0.75}
    assert json.loads(json.dumps(report.scores["real"].json()))["low"] is None
