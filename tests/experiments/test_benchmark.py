"""The benchmark runs what it says; its figures are no business of the tests."""

import json

import pytest

from experiments.benchmark import Arguments, Timing, main, parse_case, rows, whole
from experiments.flops import CASES
from internvlu_jax.presets import PRESETS


@pytest.mark.slow
def test_debug_preset_gives_every_part(tmp_path, capsys):
    out = tmp_path / "figures.json"
    main(Arguments(("text",), preset="debug", dtype="float32", repeats=1, json=out))
    found = json.loads(out.read_text())
    assert [(t["case"], t["part"]) for t in found["timings"]] == [("text", p) for p in ("vision", "prompt", "write")]
    assert all(t["seconds"] > 0 and t["tflop"] > 0 for t in found["timings"])
    assert found["settings"]["dtype"] == "float32"
    shown = capsys.readouterr().out
    assert "tokens/s" in shown and "all" in shown


def test_rows_and_their_sum():
    """Two parts of a case, worked out by hand."""
    args = Arguments(preset="debug", dtype="float32")
    timings = [Timing("text", "prompt", 2.0, 0.5, 3.0), Timing("text", "write", 1.0, 2.0, 1.0)]
    prompt, write, both = rows([*timings, whole("text", timings)], args)
    assert prompt["TFLOP/s"] == 6 and write["TFLOP/s"] == 0.5 and both["TFLOP/s"] == 1.6
    assert both["seconds"] == 2.5 and both["first run, s"] == 3
    assert write["tokens/s"] == CASES["text"].new_tokens / 2 and "tokens/s" not in both


@pytest.mark.parametrize("preset", ["debug", "small"])
def test_cases_have_the_visual_tokens_of_the_preset(preset):
    case, tokens = parse_case("text", preset), PRESETS[preset]().vlm.tokens_per_tile
    assert case.turns == (CASES["text"].turns[0] + tokens,)


@pytest.mark.parametrize("name", ["video-512", "t2i-big", "t2i-1x2x3", ""])
def test_unknown_case_is_named(name):
    with pytest.raises(ValueError, match=repr(name)):
        parse_case(name, "debug")
