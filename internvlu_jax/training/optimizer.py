"""AdamW whose learning rate and decay differ by parameter, from optax's parts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict
from jax.typing import ArrayLike

from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.tree import numbers
from internvlu_jax.utils.tree import Tree, from_paths, paths


class Factors(NamedTuple):
    """By path of every parameter: factor of the learning rate (0 is frozen), factor of the weight decay. Hashable."""

    rates: FrozenDict[str, float]
    decays: FrozenDict[str, float]

    def is_trained(self, path: str) -> bool:
        return self.rates[path] != 0


def factors(params: Tree, cfg: OptimizerConfig) -> Factors:
    """What the rules of `cfg` say of the whole model's parameters, or of their shapes.

    Raises:
        ConfigError: rules do not fit the parameters, or nothing is trained.
    """
    rates, decays = (numbers(params, getattr(cfg, name), f"optimizer.{name}") for name in ("rates", "decays"))
    return Factors(FrozenDict(rates), FrozenDict(decays))


def schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at each step, before the factors of the rules. steps: of the run."""
    return risen_and_fallen(cfg, cfg.learning_rate, steps if cfg.decay_steps is None else cfg.decay_steps)


def risen_and_fallen(cfg: OptimizerConfig, peak: float | jax.Array, last: float | jax.Array) -> optax.Schedule:
    """The schedule of `cfg` with another highest rate and another step at which the cosine is at 0, traced or not."""
    warmup = cfg.warmup

    def rate(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
        if cfg.schedule == "constant":
            return peak * rise
        done = jnp.clip((step - warmup) / jnp.maximum(last - warmup, 1), 0.0, 1.0)
        return peak * rise * 0.5 * (1 + jnp.cos(jnp.pi * done))

    return rate


def make_optimizer(
    cfg: OptimizerConfig, given: Factors, trained: Tree, steps: int, rate: optax.Schedule | None = None
) -> optax.GradientTransformationExtraArgs:
    """update = -rate(step) * factor * (Adam(clipped gradient) + weight_decay * factor' * parameter).

    Args:
        given: what `factors` gave for the whole model.
        trained: the parameters that are trained, or their shapes.
        rate: of each step, in place of the schedule of `cfg`.
    """
    rates = from_paths({path: given.rates[path] for path in paths(trained)})
    decays = from_paths({path: given.decays[path] for path in paths(trained)})

    def add_decay(updates: Tree, params: Tree) -> Tree:
        return jax.tree.map(lambda u, p, factor: u + cfg.weight_decay * factor * p, updates, params, decays)

    def scale(updates: Tree, _: Tree) -> Tree:
        return jax.tree.map(lambda u, factor: -factor * u, updates, rates)

    return optax.chain(
        optax.clip_by_global_norm(cfg.clip),
        optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps),
        *([optax.stateless(add_decay)] if cfg.weight_decay else []),
        optax.scale_by_schedule(schedule(cfg, steps) if rate is None else rate),
        optax.stateless(scale),
    )
