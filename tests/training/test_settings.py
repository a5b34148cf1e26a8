"""What a run refuses before anything of a model is read."""

import dataclasses
import math

import pytest

from experiments.configs import CONFIGS
from internvlu_jax.config import ConfigError
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.presets import debug_config
from internvlu_jax.training import loop, setup
from internvlu_jax.training.config import LoraConfig, ObjectiveConfig, OptimizerConfig
from internvlu_jax.training.optimizer import factors


@pytest.mark.parametrize(
    "given, said",
    [
        ({"learning_rate": -1e-4}, "learning_rate is -0.0001; expected 0 or more"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"warmup": -1}, "warmup is -1; expected 0 or more"),
        ({"clip": 0.0}, "clip is 0.0; expected a number over 0"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"b1": 1.0}, "b1 is 1.0; expected a number from 0, below 1"),
        ({"b2": -0.1}, "b2 is -0.1"),
        ({"ema": 1.0}, "ema is 1.0; expected a number from 0, below 1"),
        ({"decay_steps": 0}, "decay_steps is 0; expected over 0"),
        ({"schedule": "cosine", "decay_steps": 1000}, "decay_steps is 1000; expected over 1000, the warmup"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
)
def test_an_optimizer_that_would_not_learn_or_run_away_is_refused(given, said):
    with pytest.raises(ConfigError, match=f"optimizer.{said}"):
        OptimizerConfig(**given)


def test_what_switches_off_is_taken():
    OptimizerConfig(learning_rate=0.0, warmup=0, clip=math.inf, b1=0.0, ema=0.0)
    OptimizerConfig(schedule="cosine", warmup=0, decay_steps=1)


@pytest.mark.parametrize(
    "given, said", [({"rank": 0}, "rank is 0; expected at least 1"), ({"alpha": 0.0}, "alpha is 0")]
)
def test_adapters_of_no_rank_are_refused(given, said):
    with pytest.raises(ConfigError, match=f"lora.{said}"):
        LoraConfig(**given)


@pytest.mark.parametrize("given", [{"shift": 0.0}, {"noises_per_image": 0}])
def test_an_objective_without_noise_is_refused(given):
    with pytest.raises(ConfigError, match=f"objective.{next(iter(given))} is 0"):
        ObjectiveConfig(**given)


def test_rules_that_freeze_everything_are_named():
    with pytest.raises(ConfigError, match=r"optimizer.rates is .*: nothing is trained"):
        factors(param_shapes(debug_config()), OptimizerConfig(rates=((".*", 0.0),)))


@pytest.mark.parametrize("rates", [CONFIGS["stage1"].optimizer.rates, OptimizerConfig().rates])
def test_a_stage_without_a_start_would_train_on_noise(rates):
    """Also with rules that name all: nothing moves the VAE but weight decay."""
    optimizer = dataclasses.replace(CONFIGS["stage3"].optimizer, rates=rates)
    with pytest.raises(
        ConfigError, match=r"the vae of internvl-u-4b, .*, would stay at random numbers; expected --start"
    ):
        setup.initial_model(dataclasses.replace(CONFIGS["stage3"], optimizer=optimizer))


@pytest.mark.parametrize("rates", [((".*", 1.0),), (("vae/.*/bias", 0.5), ("vae/.*", 0.0), (".*", 1.0))])
def test_rules_that_train_the_vae_are_refused(rates):
    """It would have gradients and moments of zeros, and shrink by weight decay."""
    debug = CONFIGS["debug"]
    cfg = dataclasses.replace(debug, optimizer=dataclasses.replace(debug.optimizer, rates=rates))
    with pytest.raises(
        ConfigError, match=r"optimizer\.rates trains vae, .*; expected rules that begin with 'vae/\.\*' 0"
    ):
        setup.make_step(cfg, setup.initial_model(cfg), 1)
    setup.make_step(debug, setup.initial_model(debug), 1)


@pytest.mark.parametrize("pattern", [".*", "vae/.*"])
def test_adapters_of_the_vae_are_refused(pattern):
    cfg = dataclasses.replace(CONFIGS["debug"], lora=LoraConfig(rank=2, pattern=pattern))
    with pytest.raises(ConfigError, match=r"lora\.pattern '.*' takes maps of the vae, .*such as '\(vlm/llm\|head\)"):
        setup.initial_model(cfg)
    setup.initial_model(dataclasses.replace(cfg, lora=LoraConfig(rank=2, pattern="(vlm/llm|head)/.*")))


@pytest.mark.parametrize(
    "sources, held_out, said",
    [
        ((), (), "data.sources is empty"),
        ((("no/such.jsonl", 1.0),), (), "such.jsonl: there is no such file"),
        ((("world:small/t2i", 1.0),), (("nor/this", 1.0),), "nor/this: there is no such file"),
    ],
)
def test_data_that_is_not_there_is_said_before_weights_are_read(tmp_path, monkeypatch, sources, held_out, said):
    monkeypatch.setattr(loop.setup, "initial_model", lambda *_: pytest.fail("weights are read"))
    finetune = CONFIGS["finetune"]
    cfg = dataclasses.replace(
        finetune,
        data=dataclasses.replace(finetune.data, sources=sources, batch_size=8),
        validation=dataclasses.replace(finetune.validation, sources=held_out),
    )
    with pytest.raises(ValueError, match=said):
        loop.train(cfg, tmp_path / "run", quiet=True)
