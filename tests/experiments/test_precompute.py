"""What is computed beforehand is of parts that stay as they are."""

import dataclasses

import pytest

from experiments.configs import CONFIGS
from experiments.precompute import Precomputer, main
from internvlu_jax.config import ConfigError
from internvlu_jax.training.config import LoraConfig


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
