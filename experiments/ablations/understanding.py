"""The vision encoder that shared-semantic freezes: that of decoupled, trained on questions alone and kept by itself.

It has a budget of its own, which does not depend on how long the arms are trained, and the pilot's seed, so it is that
of no counted run. Its language model answers the questions and is thrown away.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from experiments.ablations.arms import ARMS, XS, Size, arms_of
from experiments.ablations.design import PILOT_SEEDS
from experiments.ablations.pool import PoolConfig, PooledSteps, collated, draw
from experiments.ablations.together import Member, final_params, train_together
from experiments.ablations.world import DATA, sources, tokenizer
from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.models.internvlu import InternVLU, Params, modules, param_shapes
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig
from internvlu_jax.training.losses import Objective
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.step import Step

_ARM = "decoupled"
_MIXTURE = "questions"
_POOL_SEED = 7  # not that of the studies' pools: these questions are further ones of the same world


@dataclass(frozen=True)
class UnderstandingConfig:
    """How it is trained. rows: packed, of a step. examples: drawn once and read again when they have all been read."""

    steps: int = 1000
    rows: int = 8
    examples: int = 24_000
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-3, schedule="cosine", warmup=100, b2=0.99, ema=0.99,
        rates=(("head/.*", 0.0), *ARMS[_ARM].rates),
    )  # fmt: skip
    seed: int = PILOT_SEEDS[0]
    save_every: int = 250


def understanding_settings(how: UnderstandingConfig, size: Size = XS, world: str = "xs") -> dict[str, Any]:
    """Everything that the encoder depends on, as JSON. world: whose questions it learns from."""
    return {
        "understanding": dataclasses.asdict(how),
        "sources": sources(world, _MIXTURE),
        "pool_seed": _POOL_SEED,
        "vision": dataclasses.asdict(arms_of(size)[_ARM].config.vlm.vision_config),
    }


def train_vision(
    how: UnderstandingConfig, workdir: Path, size: Size = XS, world: str = "xs", quiet: bool = False
) -> Params:
    """Trains the encoder of models of a size in `workdir`, or goes on with it; returns its averaged parameters.

    Raises:
        ConfigError: the one in `workdir` began under other settings.
        Stopped: a signal ended the training; the same call goes on.
    """
    words, config = tokenizer(), arms_of(size)[_ARM].config
    model = InternVLU(config, words.special_table_ids, Compute(attention="xla"))
    objective = Objective(model, ObjectiveConfig((("text", 1.0),)))
    step = Step(objective, how.optimizer, factors(param_shapes(config), how.optimizer), how.steps)
    pool = draw(PoolConfig(sources(world, _MIXTURE), how.examples, _POOL_SEED))
    steps = PooledSteps(collated(pool, config, words, DATA), {"questions": how.rows})
    states = train_together(
        step,
        partial(initial, config),
        (Member(how.seed),),
        steps,
        workdir,
        understanding_settings(how, size, world),
        save_every=how.save_every,
        quiet=quiet,
    )
    return final_params(states, 0)["vlm"]["vit"]


def initial(config: InternVLUConfig, seed: int) -> Params:
    """What `init_params` gives for a seed, but for the autoencoder, which is made elsewhere.

    A program for each part: the time to compile one grows faster than the parameters in it, and arms share parts.
    """
    every = modules(config)
    keys = dict(zip(every, jax.random.split(jax.random.key(seed), len(every)), strict=True))
    return {name: _initial(every[name], keys[name]) for name in ("vlm", "head")}


@partial(jax.jit, static_argnums=0)
def _initial(module: nn.Module, key: jax.Array) -> Params:
    return module.init(key, method="build")["params"]
