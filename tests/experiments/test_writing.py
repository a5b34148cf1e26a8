"""The bench of writing, at a size without weight, and with a stand-in for transformers."""

import dataclasses
import json
import sys

import jax
import pytest

from experiments.writing import Arguments, bytes_read, main, random_params
from internvlu_jax.presets import debug_config

MODEL = dataclasses.replace(debug_config().vlm.llm_config, num_hidden_layers=2)
STAND_IN = """
class Qwen3Config:
    def __init__(self, **sizes):
        assert sizes["hidden_size"] == 48 and sizes["num_hidden_layers"] == 2 and "tokens" not in sizes
class Qwen3ForCausalLM:
    def __init__(self, config): pass
    def eval(self): return self
    def generate(self, input_ids, attention_mask, **options):
        assert len(input_ids[0]) == 8 and options["max_new_tokens"] == options["min_new_tokens"] == 4
def BatchFeature(data, tensor_type):
    return data
"""


@pytest.mark.slow
def test_every_side_takes_turns(tmp_path, monkeypatch, capsys):
    (tmp_path / "transformers.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    main(Arguments(MODEL, prompt=8, tokens=4, rounds=1, transformers=sys.executable, json=tmp_path / "found.json"))
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert "times transformers" in printed
    assert list(found["seconds"]) == ["scan", "unrolled", "transformers"]
    assert set(found["seconds"]["transformers"]) == {"first", "whole"}, "of writing alone nothing is known"
    for name in ("scan", "unrolled"):
        seconds = found["seconds"][name]
        assert 0 < seconds["writing"] < seconds["whole"] < seconds["first"], "the first round compiles"


def test_a_python_without_transformers_is_named(tmp_path, monkeypatch):
    (tmp_path / "transformers.py").write_text("raise SystemExit(1)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"ended without an answer; expected a Python that has torch"):
        main(Arguments(MODEL, prompt=8, tokens=4, rounds=1, transformers=sys.executable))


def test_a_python_that_is_none_is_named_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.writing.random_params", lambda _: 1 / 0)
    with pytest.raises(ValueError, match=r"--transformers .*python is no program; expected the Python of an env"):
        main(Arguments(MODEL, transformers=tmp_path / "python"))


def test_a_token_reads_all_weights_but_the_table():
    params = random_params(MODEL)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert bytes_read(params) == size - 4 * MODEL.vocab_size * MODEL.hidden_size
    tied = random_params(dataclasses.replace(MODEL, tie_word_embeddings=True))
    assert bytes_read(tied) == bytes_read(params)  # the table is the output layer
