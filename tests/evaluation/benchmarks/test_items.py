"""What each benchmark asks, and where its scorer will look, from small files of the same form."""

import numpy as np
import pytest

from internvlu_jax.evaluation.benchmarks import BENCHMARKS
from internvlu_jax.evaluation.task import distinct
from tests.helpers import benchmark_files
from tests.helpers.benchmark_files import FILES, PICTURES

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def _items(name, folder):
    data = FILES[name](folder)
    pictures = folder / PICTURES[name] if name in PICTURES else None
    return list(distinct(BENCHMARKS[name].items(data, pictures)))


LISTINGS = {
    "geneval": [
        f"{number}/{name}"
        for number in ("00000", "00001")
        for name in ("metadata.jsonl", *(f"samples/{picture:04}.png" for picture in range(4)))
    ],
    "dpg": ["images/226.png", "images/3.png"],
    "wise": ["1.png", "2.png", "701.png"],
    "gedit": [
        f"fullset/{name}{end}.png"
        for name in ("ps_human/cn/k1", "ps_human/en/k0", "subject-add/en/k2")
        for end in ("", "_SRCIMG")
    ],
    "imgedit": ["1082.png", "673.png", "basic_edit.json"],
    "risebench": [f"images/{category}/{category}_1.png" for category in ("logical_reasoning", "temporal_reasoning")],
    "textedit": ["1.1.1/13.0.jpg", "2.7/25.0.png"],
    "ocrbench": [],
    "mme": [],
    "mmmu": [],
}


@pytest.mark.parametrize("name", LISTINGS)
def test_folders(name, tmp_path):
    items = _items(name, tmp_path)
    written = {item.path for item in items if item.path} | {path for item in items for path in item.beside}
    assert sorted(written) == sorted(LISTINGS[name])


PROMPTS = {
    "geneval": "a photo of a bench",
    "dpg": "A bent cigar on a pavement.",
    "wise": "Prompt 1",
    "gedit": "Make her smile",
    "imgedit": "Smooth the shell.",
    "risebench": "Draw what comes next.",
    "textedit": "Replace the text 'A' with 'B'.",
    "ocrbench": f"<image>\nWhat is written?\n{WORD}",
    "mme": f"<image>\nIs there one? Please answer yes or no. {WORD}",
    "mmmu": f"<image>\nWho painted <image 1>?\nA. Dürer\nB. Goya\n{LETTER}",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name, tmp_path):
    assert _items(name, tmp_path)[0].prompt == PROMPTS[name]


def test_further_prompts_of_mmmu(tmp_path):
    _, choice, free = _items("mmmu", tmp_path)
    assert choice.prompt == (
        f"Image-1: <image>\nImage-2: <image>\nWhat is <image 1>?\nA. 4\nB. 5\nC. <image 2>\n{LETTER}"
    )
    assert free.prompt == "<image>\nHow many in <image 1>?\nAnswer the question directly."
    assert [picture().size for picture in choice.pictures] == [(80, 48), (40, 24)]  # the first at twice its size


def test_another_split_of_mmmu_is_refused(tmp_path):
    """In a folder validation alone is read."""
    [path] = FILES["mmmu"](tmp_path).glob("Art/test-*.parquet")
    with pytest.raises(ValueError, match="test_Art_1 is not of validation, whose score is published"):
        list(BENCHMARKS["mmmu"].items(path, None))


@pytest.mark.parametrize("name, tiles", [("ocrbench", 24), ("mme", 6), ("mmmu", 12), ("gedit", 1)])
def test_tiles(name, tiles, tmp_path):
    assert {item.max_tiles for item in _items(name, tmp_path)} == {tiles}


def test_what_else_is_asked_of_pictures(tmp_path):
    geneval, gedit = _items("geneval", tmp_path), _items("gedit", tmp_path)
    assert [(item.id, item.seed) for item in geneval[:5]] == [
        *((f"00000/{n:04}", n) for n in range(4)),
        ("00001/0000", 0),
    ]
    line = (tmp_path / "evaluation_metadata.jsonl").read_text().splitlines()[1]
    assert geneval[5].beside == {"00001/metadata.jsonl": line + "\n"}
    assert [item.tiled for item in _items("dpg", tmp_path)] == [4, 4]
    assert all(item.as_source for item in gedit)
    [source] = gedit[0].beside.values()
    assert np.array_equal(source(), gedit[0].pictures[0]()) and source().size == (40, 24)


def test_prompts_of_dpg_as_texts(tmp_path):
    items = BENCHMARKS["dpg"].items(benchmark_files.dpg_texts(tmp_path), None)
    assert [(item.prompt, item.path) for item in items] == [("Ten", "images/10.png"), ("Nine", "images/9.png")]


# each beside one that has the same kind of file
OTHERS = {
    "geneval": ("ocrbench", "has no tag, include, prompt, so this is no file of GenEval; expected tag, include"),
    "dpg": ("imgedit", "is no file of DPG-Bench; expected one JSON object of prompts by name"),
    "wise": ("risebench", "no Prompt, Explanation, prompt_id, so this is no file of WISE"),
    "gedit": (
        "mmmu",
        "has no key, task_type, instruction, instruction_language, input_image, so this is no",
    ),
    "imgedit": ("dpg", "is no file of ImgEdit; expected one JSON object of edits by key"),
    "risebench": ("ocrbench", "no index, category, instruction, image, so this is no file of RISEBench"),
    "textedit": ("geneval", "has no id, original_image, source_text, target_text, so this is no file of TextEdit"),
    "ocrbench": ("risebench", "has no question, answers, type, image_path, so this is no file of OCRBench"),
    "mme": ("dpg_texts", r"is no folder of MME: 10.txt, 9.txt; expected TASK.txt of existence"),
    "mmmu": ("gedit", "has no id, question, options, answer, question_type, image_1, so this is no file of MMMU"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_others_are_named(name, tmp_path):
    other, said = OTHERS[name]
    data = getattr(benchmark_files, other)(tmp_path)
    if name == "geneval":
        data = benchmark_files.lines(tmp_path / "a.jsonl", [{"question": "a", "answers": ["b"]}])
    with pytest.raises(ValueError, match=said):
        list(BENCHMARKS[name].items(data, None))


@pytest.mark.parametrize("name", LISTINGS)
def test_what_is_no_such_file_at_all_is_one_line(name, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    for data in (empty, tmp_path / "a.bin", tmp_path / "missing"):
        with pytest.raises(ValueError) as caught:
            list(BENCHMARKS[name].items(data, None))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["imgedit", "risebench", "textedit", "ocrbench", "mme"])
def test_missing_pictures_are_named_before_any_is_drawn(name, tmp_path):
    data = FILES[name](tmp_path)
    with pytest.raises(ValueError, match=r"the picture .*(jpg|png) is not in .*elsewhere"):
        list(BENCHMARKS[name].items(data, tmp_path / "elsewhere"))


def test_missing_pictures_in_tables(tmp_path):
    row = {"key": "k", "task_type": "t", "instruction": "a", "instruction_language": "en", "input_image": {"path": "a"}}
    data = benchmark_files.parquet(tmp_path / "a.parquet", [row])
    with pytest.raises(ValueError, match="input_image of k: no picture; expected its bytes"):
        list(BENCHMARKS["gedit"].items(data, None))


def test_an_id_twice(tmp_path):
    rows = [{"Prompt": "a", "Explanation": "", "prompt_id": 7}] * 2
    data = benchmark_files.whole(tmp_path / "a.json", rows)
    with pytest.raises(ValueError, match="the id '7' comes twice"):
        list(distinct(BENCHMARKS["wise"].items(data, None)))


def test_bad_lines_of_mme(tmp_path):
    questions = benchmark_files.mme(tmp_path)
    for text, said in [
        ("1.jpg\tIs there one?\tmaybe\n", r"count.txt:1 is .* expected picture, question and Yes or No, by tabs"),
        ("1.jpg\tIs there one?\tYes\n", "expected two lines after each other for each picture"),
        ("1.jpg\ta\tYes\n2.jpg\tb\tNo\n", "expected two lines after each other"),
    ]:
        (questions / "count.txt").write_text(text)
        with pytest.raises(ValueError, match=said):
            list(BENCHMARKS["mme"].items(questions, tmp_path / "MME"))
