"""The training step: a pure function of (state, micro-batches, key).

One step pools its micro-batches: totals first, then the gradient of each micro-batch's share of the loss, then one
update. The three are methods of their own, so that an executor may compile them apart: programs are then as many as
there are shapes of micro-batches, not combinations of them (`parallel`).

With `axis_name` the functions run on each device's share of the rows under `pmap`: totals and gradients are summed over
that axis. On a mesh the rows are global arrays and no axis is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, PRNGKeyArray

from internvlu_jax.data.batch import Batch
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.losses import Objective, Terms
from internvlu_jax.training.optimizer import Factors, make_optimizer, schedule
from internvlu_jax.training.tree import group
from internvlu_jax.utils.tree import Tree, merge, paths, split

Metrics = dict[str, Array]


@struct.dataclass
class TrainState:
    """What a run is at one moment.

    step: updates made. trained: float32 masters of what is trained. frozen: the rest, in the checkpoint's dtype.
    opt_state: of the trained only. ema: moving average of the trained, or None. All trees are nested dicts.
    """

    step: Any
    trained: Tree
    frozen: Tree
    opt_state: Any
    ema: Tree | None

    @property
    def kept(self) -> Tree:
        """What a checkpoint of the run is loaded as: the moving average where there is one."""
        return self.trained if self.ema is None else self.ema


class Gradients(NamedTuple):
    """Of the loss of a whole step, and its terms' shares (already divided by the totals), so far."""

    of: Tree
    terms: Terms


@dataclass(frozen=True)
class Step:
    """The step of a run. Calling it does all of it; see the module for the parts.

    Hashable: runs whose steps are equal, as those of several seeds, share compiled programs (`parallel.steps`).
    """

    objective: Objective
    optimizer: OptimizerConfig
    factors: Factors
    steps: int

    def init(self, params: Tree) -> TrainState:
        """The state before the first step, from the parameters of the whole model."""
        trained, frozen = split(params, self.factors.is_trained)
        trained = jax.tree.map(lambda p: p.astype(jnp.float32), trained)
        ema = None if self.optimizer.ema is None else jax.tree.map(jnp.copy, trained)
        opt_state = make_optimizer(self.optimizer, self.factors, trained, self.steps).init(trained)
        return TrainState(jnp.zeros((), jnp.int32), trained, frozen, opt_state, ema)

    def totals(self, batches: tuple[Batch, ...], axis_name: str | None = None) -> Terms:
        """What the sums over all micro-batches are divided by."""
        each = [self.objective.totals(batch) for batch in batches]
        return _summed(jax.tree.map(lambda *counts: jnp.sum(jnp.stack(counts)), *each), axis_name)

    def zeros(self, state: TrainState) -> Gradients:
        """Before the first micro-batch."""
        terms = {name: jnp.zeros(()) for name in self.objective.weights}
        return Gradients(jax.tree.map(jnp.zeros_like, state.trained), terms)

    def gradients(
        self, state: TrainState, batch: Batch, totals: Terms, key: PRNGKeyArray, weights: Terms | None = None
    ) -> Gradients:
        """What one micro-batch, or one device's rows of it, adds; `key` is the run's. weights: see `Objective.loss`."""
        objective = self.objective
        noise_key = jax.random.fold_in(key, state.step)

        def loss(trained: Tree) -> tuple[Array, Terms]:
            params = merge(trained, state.frozen)
            means = objective.means(objective.sums(params, batch, objective.draw(noise_key, batch)), totals)
            return objective.loss(means, weights), means

        return Gradients(*jax.grad(loss, has_aux=True)(state.trained))

    def update(
        self,
        state: TrainState,
        gradients: Gradients,
        axis_name: str | None = None,
        weights: Terms | None = None,
        rate: optax.Schedule | None = None,
    ) -> tuple[TrainState, Metrics]:
        """One update from the gradients of all micro-batches.

        If the loss, a gradient or the update is not finite the state stays as it is, its step included, and `finite`
        says so.

        Args:
            weights: those that the gradients were taken with. rate: in place of the optimizer's own schedule.
        """
        gradients = _summed(gradients, axis_name)
        terms = {f"{name}_loss": value for name, value in gradients.terms.items()}
        metrics = {"loss": self.objective.loss(gradients.terms, weights)} | terms | _norms("grad_norm", gradients.of)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        rate = schedule(self.optimizer, self.steps) if rate is None else rate
        transform = make_optimizer(self.optimizer, self.factors, state.trained, self.steps, rate)
        updates, opt_state = transform.update(gradients.of, state.opt_state, state.trained, finite=finite)
        metrics["update_norm"] = optax.tree.norm(updates)
        # Parameters wait for the norm, so that they are written in place: none is read after it was written.
        moves = finite & jnp.isfinite(metrics["update_norm"])
        trained = optax.apply_updates(state.trained, updates)
        ema = _moved(state.ema, trained, self.optimizer.ema)
        new, old = (state.step + 1, trained, ema), (state.step, state.trained, state.ema)
        step, trained, ema = jax.tree.map(lambda n, o: jnp.where(moves, n, o), new, old)
        metrics |= {
            "rate": rate(state.step),
            "param_norm": optax.tree.norm(trained),
            "finite": moves,
        }
        return TrainState(step, trained, state.frozen, opt_state, ema), metrics

    def measure(
        self, state: TrainState, batch: Batch, key: PRNGKeyArray, axis_name: str | None = None
    ) -> tuple[Terms, Terms]:
        """Sums of the terms over a micro-batch by what is kept, and what they are to be divided by; `key` alone decides
        the noise."""
        sums = self.objective.sums(merge(state.kept, state.frozen), batch, self.objective.draw(key, batch))
        return _summed((sums, self.objective.totals(batch)), axis_name)

    def __call__(
        self, state: TrainState, batches: tuple[Batch, ...], key: PRNGKeyArray, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        """One whole step; `key` is the run's, and every random number is keyed by step and row besides."""
        totals = self.totals(batches, axis_name)
        gradients = self.zeros(state)
        for batch in batches:
            gradients = jax.tree.map(jnp.add, gradients, self.gradients(state, batch, totals, key))
        return self.update(state, gradients, axis_name)


def _summed(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _moved(ema: Tree | None, trained: Tree, decay: float | None) -> Tree | None:
    if ema is None or decay is None:
        return None
    return jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema, trained)


def _norms(name: str, tree: Tree) -> Metrics:
    """The global norm, and that of each part of the model, so that what is not finite can be named."""
    squares: dict[str, Array] = {}
    for path, leaf in paths(tree).items():
        squares[group(path)] = squares.get(group(path), jnp.zeros(())) + jnp.sum(jnp.square(leaf))
    total = jnp.sqrt(jnp.sum(jnp.stack(list(squares.values()))))
    return {name: total} | {f"{name}/{part}": jnp.sqrt(square) for part, square in squares.items()}


def not_finite(metrics: dict[str, Any]) -> str | None:
    """What of a step's metrics is not finite, in words; None if all is."""
    if bool(metrics["finite"]):
        return None
    told = ("_loss", "update_norm")
    names = [name for name in metrics if name.endswith(told) or name.startswith("grad_norm/")]
    bad = [name for name in names if not jnp.isfinite(metrics[name])]
    return ", ".join(bad) or "grad_norm"
