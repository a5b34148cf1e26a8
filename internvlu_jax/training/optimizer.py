"""AdamW whose learning rate and decay differ by parameter, from optax's parts; Muon for matrices on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict
from jax.typing import ArrayLike

from internvlu_jax.config import ConfigError
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.muon import beside, scale_by_muon
from internvlu_jax.training.tree import group, numbers
from internvlu_jax.utils.tree import Tree, from_paths, paths


class Factors(NamedTuple):
    """By path of every parameter: factor of the learning rate (0 is frozen), factor of the weight decay. Hashable."""

    rates: FrozenDict[str, float]
    decays: FrozenDict[str, float]

    def is_trained(self, path: str) -> bool:
        return self.rates[path] != 0

    def trained_beside_head(self) -> list[str]:
        """The trained parts that latents and contexts depend on, such as vlm/llm."""
        return sorted({group(path) for path in self.rates if self.is_trained(path) and not path.startswith("head/")})


def factors(params: Tree, cfg: OptimizerConfig) -> Factors:
    """What the rules of `cfg` say of the whole model's parameters, or of their shapes.

    Raises:
        ConfigError: rules do not fit the parameters, or nothing is trained.
    """
    rates, decays = (numbers(params, getattr(cfg, name), f"optimizer.{name}") for name in ("rates", "decays"))
    if not any(rates.values()):
        raise ConfigError(f"optimizer.rates is {cfg.rates}: nothing is trained; expected a factor over 0 somewhere")
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

    Of matrices Muon takes the place of Adam where `cfg` says so.

    Given `finite`, a boolean array that is False, its state stays as it is, and the updates mean nothing.

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

    parts = optax.chain(
        optax.stateless(_clipped(cfg.clip)),
        _scale_by_adam(cfg) if cfg.matrices == "adam" else beside(scale_by_muon(trained), _scale_by_adam(cfg)),
        *([optax.stateless(add_decay)] if cfg.weight_decay else []),
        optax.scale_by_schedule(schedule(cfg, steps) if rate is None else rate),
        optax.stateless(scale),
    )

    def update(
        gradients: Tree, state: Tree, params: Tree | None = None, *, finite: ArrayLike = True
    ) -> tuple[Tree, Tree]:
        updates, new = parts.update(gradients, state, params, finite=finite)
        kept = jax.tree.map(lambda n, o: n if _is_adam(n) else jnp.where(finite, n, o), new, state, is_leaf=_is_adam)
        return updates, kept

    return optax.GradientTransformationExtraArgs(parts.init, update)


def _clipped(most: float) -> Callable[[Tree, Tree], Tree]:
    """Clips by the global norm, by one factor of all gradients; optax chooses between two trees, and holds both."""

    def clip(gradients: Tree, _: Tree) -> Tree:
        factor = jnp.minimum(1.0, most / optax.tree.norm(gradients))
        return jax.tree.map(lambda g: factor * g, gradients)

    return clip


def _is_adam(state: Any) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


def _scale_by_adam(cfg: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """optax's, whose moments can be written in place.

    The update is taken from the moments as they are kept. Taken beside them, as optax has it, XLA reads the old moments
    in two places and holds copies of them until the step is over.
    """
    adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)

    def update(
        gradients: Tree, state: Tree, params: Tree | None = None, *, finite: ArrayLike = True
    ) -> tuple[Tree, Tree]:
        _, new = adam.update(gradients, state, params)
        kept = jax.lax.optimization_barrier(jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state))
        means = (optax.tree.bias_correction(kept.mu, cfg.b1, kept.count),
                 optax.tree.bias_correction(kept.nu, cfg.b2, kept.count))  # fmt: skip
        return jax.tree.map(lambda mean, square: mean / (jnp.sqrt(square) + cfg.eps), *means), kept

    return optax.GradientTransformationExtraArgs(adam.init, update)
