"""What is computed beforehand is of parts that stay as they are."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import precompute
from experiments.configs import CONFIGS
from experiments.precompute import Precomputer, main
from internvlu_jax.config import ConfigError
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.sources import entry, open_source, write_shards
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.presets import debug_config
from internvlu_jax.training.config import LoraConfig, OptimizerConfig
from internvlu_jax.training.loop import train
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.setup import check_computed


@pytest.mark.parametrize(
    ("name", "lora", "said"),
    [
        ("stage3", None, "stage3 trains vlm/llm, vlm/projector, .*"),
        ("finetune", "vlm/llm/.*/q", "finetune trains vlm/llm"),
    ],
)
def test_runs_that_train_more_than_the_head_are_refused(name, lora, said):
    """Their contexts, or latents, would not be those of the model that they end with."""
    cfg = dataclasses.replace(CONFIGS[name], start=None, model="debug")
    with pytest.raises(ConfigError, match=rf"{said}, on .*expected a run that trains the head alone"):
        Precomputer(dataclasses.replace(cfg, lora=lora and LoraConfig(2, 2.0, lora)))


def test_adapters_of_the_head_are_not(monkeypatch):
    """Random parameters are the first thing that is made."""
    cfg = dataclasses.replace(CONFIGS["finetune"], start=None, model="debug")
    monkeypatch.setattr("internvlu_jax.training.setup.random_params", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Precomputer(dataclasses.replace(cfg, lora=LoraConfig(2, 2.0, "head/mmdit/.*/q")))


@pytest.mark.parametrize("held_out", [False, True])
def test_runs_that_train_more_do_not_read_what_is_there(tmp_path, held_out):
    """Written for a run of stage 1, read by one of stage 3; a first record that is damaged tells nothing."""
    record = {"task": "t2i", "prompt": "a", "image": "a.png", "sizes": {"a.png": [64, 64]}}
    stored = entry(record, arrays={"target": np.zeros((4, 4, 4), np.float32)})
    write_shards(tmp_path / "stored", [b"damaged", stored], 2)
    write_shards(tmp_path / "plain", [entry(record, {"a.png": b""})], 1)
    plain, other = ((str(tmp_path / name), 1.0) for name in ("plain", "stored"))
    sources = {"data": plain, "validation": other} if held_out else {"data": other}
    run = dataclasses.replace(CONFIGS["stage3"], start=None, model="debug", executor="single")
    for name, source in sources.items():
        run = dataclasses.replace(run, **{name: dataclasses.replace(getattr(run, name), sources=(source,))})
    with pytest.raises(ConfigError, match=r"stored holds .* and stage3 trains vlm/llm, vlm/projector, .*--optimizer"):
        train(run, tmp_path / "run", quiet=True)
    check_computed(run, factors(param_shapes(debug_config()), OptimizerConfig(rates=(("head/.*", 1.0), (".*", 0.0)))))


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A run with two sources, and a list of the prompts that were computed; "stop" ends it as Ctrl-C does."""
    computed = []

    class Quick:
        def __init__(self, cfg):
            pass

        def entries(self, records):
            for record in records:
                if record.prompt == "stop":
                    raise KeyboardInterrupt
                computed.append(record.prompt)
                yield entry({"task": "t2i", "prompt": record.prompt, "image": "a"})

    monkeypatch.setattr(precompute, "Precomputer", Quick)
    for name, prompt in (("a", "first"), ("b", "stop")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"task": "t2i", "prompt": prompt, "image": "a.png"}))
    data = DataConfig(sources=tuple((str(tmp_path / f"{name}.jsonl"), 1.0) for name in "ab"))
    return dataclasses.replace(CONFIGS["stage1"], data=data), computed


def test_the_same_command_goes_on_with_the_source_that_is_missing(two, tmp_path):
    run, computed = two
    with pytest.raises(KeyboardInterrupt):
        precompute.precompute(run, tmp_path / "out")
    (tmp_path / "b.jsonl").write_text(json.dumps({"task": "t2i", "prompt": "second", "image": "a.png"}))
    weighted = tuple((name, 2.0) for name, _ in run.data.sources)
    data = dataclasses.replace(run.data, sources=weighted, threads=3, batch_size=2, drop_all_t2i=0.5, shuffle=False)
    compute = dataclasses.replace(run.compute, remat="full")
    more = dataclasses.replace(run, steps=7, data=data, compute=compute)  # nothing depends on these
    directories = precompute.precompute(more, tmp_path / "out")
    assert computed == ["first", "second"] and [len(open_source(one)) for one in directories] == [1, 1]
    other = dataclasses.replace(run, data=dataclasses.replace(run.data, sides=(32,)))
    with pytest.raises(ValueError, match=r"out holds what was computed otherwise: data\.sides\.0: .* -> 32"):
        precompute.precompute(other, tmp_path / "out")
    other = dataclasses.replace(run, data=dataclasses.replace(run.data, sources=run.data.sources[::-1]))
    with pytest.raises(ValueError, match=r"computed otherwise: data\.sources\.0\.0: .*a\.jsonl.* -> .*b\.jsonl"):
        precompute.precompute(other, tmp_path / "out")


def test_what_is_wrong_with_a_later_source_is_said_first(two, tmp_path):
    run, computed = two
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(ValueError, match=r"b\.jsonl: there is no such file"):
        precompute.precompute(run, tmp_path / "out")
    (tmp_path / "b.jsonl").write_text("{}")
    (tmp_path / "out/1").mkdir(parents=True)
    (tmp_path / "out/1/mine").touch()
    with pytest.raises(FileExistsError, match="out/1 exists and is not an empty directory"):
        precompute.precompute(run, tmp_path / "out")
    assert not computed


def test_help_is_no_error(capsys):
    """Of the command, which needs a configuration to know its options, and of one with it."""
    assert main(["--help"]) == 0
    assert "DST [--start CHECKPOINT]" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["stage1", "--help"])
    said = capsys.readouterr().out
    assert "experiments.precompute stage1" in said and "Writes down once" in said and "in a directory for each" in said


def test_configurations_are_told_by_name(capsys):
    assert main([]) == 2
    assert "DST [--start CHECKPOINT]" in capsys.readouterr().out
    assert main(["stage4", "out"]) == 2
    assert "there is no configuration 'stage4'; expected one of stage1, " in capsys.readouterr().err
