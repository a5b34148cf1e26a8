"""The small world as a benchmark: items are the queries of the suite, and folders of known quality get what is due."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.benchmarks.__main__ import main
from internvlu_jax.evaluation.task import distinct
from internvlu_jax.small_world import SMALL
from internvlu_jax.small_world.benchmark import SHIPPED, Cases, items, known, score
from internvlu_jax.small_world.scoring import suite
from internvlu_jax.utils.files import write_json
from tests.conftest import GOLDENS
from tests.helpers.knowing import COUNT, Knowing

CHECKPOINT = GOLDENS / "base/checkpoint"
HEADLINE = {
    "geneval_seen", "geneval_heldout", "questions", "edits_done", "edit_untouched_psnr", "words", "reasoning_gain",
}  # fmt: skip


def filled(folder: Path, cases: Cases) -> None:
    """What a run leaves of a model that is right in everything but drawing without the reasoning."""
    rows = []
    for name in cases.only:
        model = Knowing(name, ("text", "text_image") if name == "reasoning" else ("text", "image"))
        for query in (query for call in suite.queries(SMALL, name, cases.count) for query in call):
            reply, place = model.reply(query), f"{name}/{query.mode}/{query.number:05}"
            if reply.picture is not None:
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(reply.picture).save(folder / f"{place}.png")
            if query.mode != "image":
                rows.append({"number": len(rows), "id": place, "text": reply.text})
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "run.json", {"benchmark": "small-world", **known(cases, 64)})


def test_items_are_the_queries_with_the_noise_of_their_case():
    asked = list(distinct(items(Cases(only=("edits", "questions", "reasoning"), count=8, cases_seed=3), 64)))
    calls = [call for name in ("edits", "questions", "reasoning") for call in suite.queries(SMALL, name, 8, 64, 3)]
    queries = [query for call in calls for query in call]
    assert len(asked) == 32
    for item, query in zip(asked, queries, strict=True):
        assert item.prompt == query.prompt and item.noise == (3, query.number)
        assert (item.path is None, item.reasoning) == (query.mode == "text", query.mode == "text_image")
        assert item.max_new_tokens == {"text": 24, "image": None, "text_image": 96}[query.mode]
        shown = [np.asarray(picture()) for picture in item.pictures]
        assert len(shown) == (query.source is not None) and all(np.array_equal(s, query.source) for s in shown)


def test_a_folder_is_judged(tmp_path, capsys):
    filled(tmp_path, Cases(count=COUNT))
    report = score(tmp_path)
    headline = {name: found for name, found in report.scores.items() if ":" not in name}
    assert set(headline) == HEADLINE and headline["edit_untouched_psnr"].value == 60
    assert all(headline[key].value == 1.0 for key in HEADLINE - {"edit_untouched_psnr"})
    assert report.scores["reasoning_gain: without"].value == 0
    kept = json.loads((tmp_path / "scores.json").read_text())
    assert set(kept) == {*HEADLINE, "settings"} and kept["words"]["low"] <= 1 == kept["words"]["high"]
    assert all(Image.open(tmp_path / f"{name}.png").width > 500 for name in SHIPPED)
    assert main(["score", str(tmp_path)]) == 0 and "reasoning_gain" in capsys.readouterr().out


def test_what_is_missing_is_said(tmp_path, capsys):
    filled(tmp_path, Cases(only=("words", "questions"), count=8))
    (tmp_path / "words/image/00003.png").unlink()
    assert main(["score", str(tmp_path)]) == 2
    assert "00003.png is not there; let the run come to its end" in capsys.readouterr().err
    filled(tmp_path, Cases(only=("questions",), count=8))
    (tmp_path / "answers.jsonl").unlink()
    with pytest.raises(ValueError, match="has no answer questions/text/00000"):
        score(tmp_path)


@pytest.mark.parametrize(
    "given, message",
    [
        (("--count", "7"), "--count is 7; expected at least 8"),
        (("--steps", "0"), "--steps is 0"),
        (("--cases-seed", "-1"), "--cases-seed is -1"),
        (("--batch", "0"), "--batch is 0"),
        (("--limit", "10"), "--limit is 10, which would cut sets in half"),
        (("--height", "32"), "--height is 32; expected at least 48"),
        (("--checkpoint", "no/such/directory"), "there is no directory no/such/directory"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(given, message, tmp_path, capsys):
    assert main(["small-world", "--out", str(tmp_path / "out"), *given]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "names, keys",
    [
        (("questions", "edits"), {"questions", "edits_done", "edit_untouched_psnr"}),
        (("words", "reasoning"), {"words", "reasoning_gain"}),
    ],
)
def test_the_command_with_a_real_pipeline(names, keys, tmp_path, capsys):
    """Random parameters: nothing has to be right, but every mode runs, and everything is written."""
    given = ("--steps", "1", "--height", "64", "--width", "64", "--batch", "4", "--count", "8", "--only", *names)
    command = ["small-world", "--out", str(tmp_path), "--checkpoint", str(CHECKPOINT), *given]
    assert main(command) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert set(found) == {*keys, "settings"} and found["settings"]["side"] == 64
    assert len(found["settings"]["parameters"]) == 16 and max(keys) in capsys.readouterr().out
    assert main(command) == 0
    assert "0 made" in capsys.readouterr().err
