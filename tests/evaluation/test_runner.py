"""Runs of benchmarks with a stand-in for the pipeline: batches, noise, going on, failures, and what is refused."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from experiments.benchmarks.__main__ import Name, main, table, told
from internvlu_jax.config import Compute
from internvlu_jax.evaluation import runner
from internvlu_jax.evaluation.benchmarks import BENCHMARKS
from internvlu_jax.evaluation.benchmarks.reading import answers
from internvlu_jax.evaluation.folder import RUN
from internvlu_jax.evaluation.pace import Pace
from internvlu_jax.evaluation.runner import Outcome, read_items, run, tiled
from internvlu_jax.evaluation.scores import share
from internvlu_jax.evaluation.settings import RunOptions
from internvlu_jax.evaluation.task import Benchmark, Item, Report
from internvlu_jax.inference.outputs import PipelineOutput
from internvlu_jax.presets import debug_config
from tests.helpers import benchmark_files

SIZES = {"small": (16, 24), "large": (32, 40)}


class Killed(BaseException):
    """Nothing in the runner may catch it, as nothing catches the end of a process."""


class Pipe:
    """Draws noise of each seed in the source's size; answers with the prompt. It counts, and may be killed."""

    def __init__(self, dies_at: int | None = None, cannot: str | None = None) -> None:
        self.config, self.dies_at, self.cannot = debug_config(), dies_at, cannot
        self.model = SimpleNamespace(quantization=None, compute=Compute())
        self.calls: list[tuple[list[str], str, dict]] = []
        self.processor = self

    def parameters(self):
        return {"layer": np.arange(3.0)}

    def process(self, prompts, images, mode, max_tiles):
        shown = images[0]
        sources = () if mode == "text" else tuple(np.zeros((p.height, p.width, 3), np.uint8) for p in shown)
        size = (shown[0].height, shown[0].width) if shown else None
        return [SimpleNamespace(cond=np.zeros(len(prompts[0])), tiles=[0] * len(shown), sources=sources, size=size)]

    def __call__(self, prompts, images, mode, *, seed, max_tiles, num_images_per_prompt, **options):
        if self.dies_at is not None and len(self.calls) == self.dies_at:
            raise Killed
        if self.cannot in prompts:
            raise ValueError(f"{self.cannot} cannot be drawn")
        self.calls.append((list(prompts), mode, options | {"seed": list(seed)}))
        assert len({tuple(p.size for p in own) for own in images}) == 1 or mode == "text"
        size = images[0][0].size if images[0] else (8, 8)
        drawn = [Image.fromarray(np.random.default_rng(s).integers(0, 255, (*size[::-1], 3), np.uint8)) for s in seed]
        texts = None if mode == "image" else [f"reply to {prompt}" for prompt in prompts]
        return PipelineOutput(texts, None, None if mode == "text" else drawn)


def mixed(count: int = 30) -> list[Item]:
    """Pictures, tiled ones, edits of two sizes, and questions."""
    shown = {name: Image.new("RGB", size) for name, size in SIZES.items()}
    items = []
    for n in range(count):
        sources = {2: ("small",), 3: ("large",), 4: ("small",)}.get(n % 5, ())
        items.append(
            Item(
                id=f"item {n}",
                prompt=f"prompt {n}",
                pictures=tuple(lambda name=name: shown[name] for name in sources),
                path=None if n % 5 == 4 else f"drawn/{n}.png",
                tiled=4 if n % 5 == 1 else 1,
                facts={"n": n},
                beside={f"beside/{n // 3}.txt": f"of {n // 3}"} if n % 5 < 2 else {},
            )
        )
    return items


def finish(folder: Path) -> None:
    (folder / "finished").write_text((folder / "answers.jsonl").read_text())


MIXED = Benchmark("mixed", lambda data, pictures: iter(mixed()), lambda folder: Report({}, {}), finish)
OPTIONS = RunOptions(batch=4)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(folder: Path) -> dict[str, bytes]:
    """Without what a host keeps for itself, and what is only noted."""
    found = {name: data for name, data in contents(folder).items() if not name.startswith(".run/")}
    del found[RUN]
    return found


@pytest.fixture(scope="module", autouse=True)
def without_programs():
    """What is timed are programs, and the stand-in has none; the batch itself is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "measured", lambda pipe, call, rows, run: Pace(run, rows / len(call(pipe))))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    outcome = run(MIXED, mixed(), Pipe(), out, OPTIONS)
    assert (outcome.done, outcome.there, outcome.failures, outcome.complete) == (30, 0, {}, True)
    return out


def test_everything_is_there(whole):
    rows = [json.loads(line) for line in (whole / "answers.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == [4, 9, 14, 19, 24, 29]
    assert rows[0] == {"n": 4, "number": 4, "id": "item 4", "text": "reply to prompt 4"}
    assert (whole / "finished").read_text() == (whole / "answers.jsonl").read_text()
    assert Image.open(whole / "drawn/0.png").size == (8, 8) and Image.open(whole / "drawn/1.png").size == (16, 16)
    assert (whole / "beside/0.txt").read_text() == "of 0" and not (whole / "drawn/4.png").exists()


def test_killed_again_and_again_gives_the_same_folder(whole, tmp_path):
    kills = np.random.default_rng(0).integers(0, 3, 10)
    killed = 0
    for dies_at in kills.tolist():
        try:
            run(MIXED, mixed(), Pipe(dies_at=dies_at), tmp_path, OPTIONS)
        except Killed:
            killed += 1
            with (tmp_path / ".run/0-of-1/answers.jsonl").open("a") as file:
                file.write('{"number": 4, "id": "it')  # what a killed process had begun
    assert killed > 3
    run(MIXED, mixed(), Pipe(), tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(whole)
    again = Pipe()
    assert run(MIXED, mixed(), again, tmp_path, OPTIONS).there == 30 and not again.calls


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_batches_change_nothing(whole, tmp_path, batch):
    run(MIXED, mixed(), Pipe(), tmp_path, RunOptions(batch=batch))
    assert shown(tmp_path) == shown(whole)


def test_hosts_share_the_items(whole, tmp_path):
    for host in range(3):
        outcome = run(MIXED, mixed(), Pipe(), tmp_path, RunOptions(batch=4, host=host, hosts=3))
        assert outcome.done == 10 and outcome.complete == (host == 2)
    assert shown(tmp_path) == shown(whole)
    assert run(MIXED, mixed(), Pipe(), tmp_path, OPTIONS).there == 30


def test_hosts_at_the_same_time_write_the_answers(whole, tmp_path):
    """Each opens the folder before the other has an answer in it."""
    gate = threading.Barrier(2)

    class Meeting(Pipe):
        def __call__(self, *given, **options):
            if not self.calls:
                gate.wait(20)
            return super().__call__(*given, **options)

    asked = [item for item in mixed() if item.path is None]
    with ThreadPoolExecutor(2) as pool:
        options = [RunOptions(batch=4, host=host, hosts=2) for host in range(2)]
        outcomes = list(pool.map(lambda own: run(MIXED, asked, Meeting(), tmp_path, own), options))
    assert [outcome.done for outcome in outcomes] == [3, 3] and any(outcome.complete for outcome in outcomes)
    assert {row["text"] for row in answers(tmp_path)} == {f"reply to {item.prompt}" for item in asked}
    assert (tmp_path / "finished").read_text() == (tmp_path / "answers.jsonl").read_text()


def test_ends_of_lines_within_an_answer(tmp_path):
    for _ in range(2):
        run(MIXED, [Item("a", "one\u2028two\x85three\nfour"), Item("b", "five")], Pipe(), tmp_path, OPTIONS)
        assert [row["text"] for row in answers(tmp_path)] == [
            "reply to one\u2028two\x85three\nfour", "reply to five"
        ]  # fmt: skip


def test_batches_are_of_one_kind_and_size(tmp_path):
    pipe = Pipe()
    run(MIXED, mixed(), pipe, tmp_path, OPTIONS)
    assert {len(prompts) for prompts, mode, _ in pipe.calls if mode == "text"} == {4}
    assert {len(options["seed"]) for *_, options in pipe.calls} == {4}
    for prompts, _, options in pipe.calls:
        assert len({int(prompt.split()[1]) % 5 for prompt in prompts}) == 1
        if "height" in options:
            assert (options["num_inference_steps"], options["all_cfg_scale"]) == (20, 4.5)
    short = Pipe()
    run(Benchmark("two", MIXED.items, MIXED.score), mixed(1), short, tmp_path / "two", RunOptions(batch=50))
    assert [len(prompts) for prompts, *_ in short.calls] == [1]


def test_seeds_are_of_the_run_and_the_item():
    item, other = Item("a", "p", tiled=3), Item("b", "p", tiled=3)
    seeds = RunOptions().seeds(item) + RunOptions().seeds(other) + RunOptions(seed=1).seeds(item)
    assert len(set(seeds)) == 9 and RunOptions(batch=3, hosts=2).seeds(item) == seeds[:3]
    assert RunOptions().seeds(Item("a", "another", seed=1)) != RunOptions().seeds(Item("a", "another"))[:1]


def test_what_fails_is_told_and_tried_again(tmp_path):
    def gone():
        raise ValueError("a.png is no picture")

    items = [*mixed(8), Item("broken", "prompt", (gone,), "drawn/broken.png")]
    outcome = run(MIXED, items, Pipe(cannot="prompt 0"), tmp_path, OPTIONS)
    wrong = {"item 0": "prompt 0 cannot be drawn", "broken": "a.png is no picture"}
    assert outcome.failures == wrong and outcome.done == 7 and not outcome.complete
    assert json.loads((tmp_path / "failures.json").read_text()) == wrong
    assert "2 failed" in told(outcome, tmp_path) and "a.png is no picture" in told(outcome, tmp_path)
    again = run(MIXED, items, Pipe(), tmp_path, OPTIONS)
    assert (again.done, again.there, list(again.failures)) == (1, 7, ["broken"])
    mended = [*mixed(8), Item("broken", "prompt", (lambda: Image.new("RGB", (8, 8)),), "drawn/broken.png")]
    assert run(MIXED, mended, Pipe(), tmp_path, OPTIONS).complete and not (tmp_path / "failures.json").exists()


def test_what_failed_on_one_of_two_hosts_and_is_made_by_one_alone_is_forgotten(tmp_path):
    items = mixed(8)
    first = run(MIXED, items, Pipe(cannot="prompt 0"), tmp_path, RunOptions(batch=4, hosts=2))
    assert list(first.failures) == ["item 0"] and (tmp_path / "failures.json").exists()
    assert run(MIXED, items, Pipe(), tmp_path, RunOptions(batch=4)).complete
    assert not (tmp_path / "failures.json").exists()


def test_other_settings_are_refused(whole):
    with pytest.raises(ValueError, match=r"other settings: seed 0, now 1\. Choose another --out"):
        run(MIXED, mixed(), Pipe(), whole, RunOptions(seed=1))
    with pytest.raises(ValueError, match=r"other settings: modes\.image\.num_inference_steps 20, now 3\. Choose"):
        run(MIXED, mixed(), Pipe(), whole, dataclasses.replace(OPTIONS, steps=3))
    with pytest.raises(ValueError, match=r"other settings: items '.*', now '.*'"):
        run(MIXED, mixed(29), Pipe(), whole, OPTIONS)
    other = Pipe()
    other.parameters = lambda: {"layer": np.ones(3)}
    with pytest.raises(ValueError, match="parameters"):
        run(MIXED, mixed(), other, whole, OPTIONS)
    with pytest.raises(ValueError, match="height is 0"):
        run(MIXED, mixed(), Pipe(), whole, RunOptions(height=0))


def test_as_its_source_and_tiles(tmp_path):
    one = Item("a", "p", (lambda: Image.new("RGB", (21, 13)),), "a.png", as_source=True)
    run(MIXED, [one], Pipe(), tmp_path, OPTIONS)
    assert Image.open(tmp_path / "a.png").size == (21, 13)
    parts = [Image.new("RGB", (2, 1), colour) for colour in ("red", "lime", "blue", "white")]
    assert np.asarray(tiled(parts))[:, ::2].tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]]


def test_words_before_a_picture_are_kept(tmp_path):
    pipe = Pipe()
    run(MIXED, mixed(1), pipe, tmp_path, RunOptions(reasoning=True))
    assert pipe.calls[0][1] == "text_image" and pipe.calls[0][2]["all_cfg_scale"] == 3.5
    assert json.loads((tmp_path / "answers.jsonl").read_text())["text"] == "reply to prompt 0"


class TestCommand:
    """What cannot be is one line, and no checkpoint is loaded for it."""

    def refused(self, capsys, *arguments: str) -> str:
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    def asked(self, name: str, data: Path, out: Path, *more: str) -> tuple[str, ...]:
        return name, "--prompts", str(data), "--out", str(out), "--checkpoint", "no/such/checkpoint", *more

    def test_prompts_of_another_benchmark(self, tmp_path, capsys):
        data = benchmark_files.wise(tmp_path) / "natural_science.json"
        assert "no file of OCRBench" in self.refused(capsys, *self.asked("ocrbench", data, tmp_path / "out"))
        data = benchmark_files.textedit(tmp_path)
        line = self.refused(capsys, *self.asked("geneval", next(data.iterdir()), tmp_path / "out"))
        assert "no file of GenEval" in line and not (tmp_path / "out").exists()

    def test_prompts_that_are_not_there(self, tmp_path, capsys):
        assert "is not there" in self.refused(capsys, *self.asked("wise", tmp_path / "none", tmp_path / "out"))

    def test_a_missing_picture(self, tmp_path, capsys):
        data = benchmark_files.ocrbench(tmp_path)
        (tmp_path / "OCRBench_Images/set/1.png").unlink()
        more = ("--pictures", str(tmp_path / "OCRBench_Images"))
        line = self.refused(capsys, *self.asked("ocrbench", data, tmp_path / "out", *more))
        assert "the picture set/1.png is not in" in line

    def test_an_id_twice(self, tmp_path, capsys):
        data = tmp_path / "wise"
        row = {"Prompt": "p", "Explanation": "", "Category": "c", "Subcategory": "s", "prompt_id": 1}
        benchmark_files.whole(data / "cultural_common_sense.json", [row, row])
        assert "comes twice" in self.refused(capsys, *self.asked("wise", data, tmp_path / "out"))

    def test_folders(self, tmp_path, capsys):
        data = benchmark_files.geneval(tmp_path)
        (tmp_path / "full").mkdir()
        (tmp_path / "full/mine.txt").touch()
        assert "has files and no run.json" in self.refused(capsys, *self.asked("geneval", data, tmp_path / "full"))
        assert "is a file" in self.refused(capsys, *self.asked("geneval", data, tmp_path / "full/mine.txt"))
        assert "has no run.json" in self.refused(capsys, "score", str(tmp_path / "full"))

    def test_options(self, tmp_path, capsys):
        data, out = benchmark_files.geneval(tmp_path), tmp_path / "out"
        for more, said in (
            (("--host", "2", "--hosts", "2"), "--host is 2; expected 0 to 1"),
            (("--batch", "0"), "--batch is 0"),
            (("--seed", "-1"), "--seed is -1"),
            ((), "there is no directory no/such/checkpoint"),
        ):
            assert said in self.refused(capsys, *self.asked("geneval", data, out, *more))

    def test_scores_beside_what_was_published(self, tmp_path, capsys):
        data, pictures = benchmark_files.ocrbench(tmp_path), tmp_path / "OCRBench_Images"
        items = read_items(BENCHMARKS["ocrbench"], data, pictures, tmp_path / "out")
        run(BENCHMARKS["ocrbench"], items, Pipe(), tmp_path / "out", OPTIONS)
        assert main(["score", str(tmp_path / "out")]) == 0
        assert "83.9" in capsys.readouterr().out
        data = benchmark_files.geneval(tmp_path)
        items = read_items(BENCHMARKS["geneval"], data, None, tmp_path / "drawn")
        run(BENCHMARKS["geneval"], items, Pipe(), tmp_path / "drawn", OPTIONS)
        assert main(["score", str(tmp_path / "drawn")]) == 0
        assert "evaluate_images.py" in capsys.readouterr().out

    def test_the_current_directory_has_its_name(self, tmp_path, capsys, monkeypatch):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/run.json").write_text('{"benchmark": "gedit"}')
        monkeypatch.chdir(tmp_path / "mine")
        assert main(["score", "."]) == 0
        assert f"--model_name mine --save_path {tmp_path}" in capsys.readouterr().out

    def test_every_benchmark_has_its_name(self):
        assert set(get_args(Name)) == set(BENCHMARKS)

    def test_a_table(self):
        rows = table(Report({"overall": share([True, False]), "one": share([True])}, {"overall": 0.85, "other": 0.1}))
        assert rows.row_count == 3 and list(rows.columns[4].cells) == ["0.85", "", "0.1"]

    def test_pace(self, tmp_path):
        line = told(Outcome(pace=Pace(4.8, 5.0, 6.0)), tmp_path).splitlines()[-1]
        assert line == "4.8 a second with files, 0.96 of 5 by all its programs alone, 0.80 of 6 by the sampler alone"
        assert "sampler" not in told(Outcome(pace=Pace(4.8, 5.0)), tmp_path)
