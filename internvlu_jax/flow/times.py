"""How noise levels are drawn in training, one per example.

Numbers are keyed by the example's index in the global batch, so one device, a mesh and pmap draw the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from internvlu_jax.flow.path import shift_sigma


@dataclass(frozen=True)
class LogitNormal:
    """sigma = shift(sigmoid(n)), n normal: what the released config names (`logit_mean`, `logit_std`, `flow_shift`)."""

    mean: float = 0.0
    std: float = 1.0
    shift: float = 3.0

    def sample(self, key: PRNGKeyArray, index: Int[Array, "b"]) -> Float[Array, "b"]:
        """One sigma in (0, 1) per example; `index` numbers the examples of the global batch."""
        normal = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(index)
        return shift_sigma(jax.nn.sigmoid(self.mean + self.std * normal), self.shift)

    def quantile(self, share: float) -> float:
        """The sigma that so large a share of the examples, in (0, 1), stays below."""
        normal = NormalDist(self.mean, self.std).inv_cdf(share)
        return shift_sigma(1 / (1 + math.exp(-normal)), self.shift)


@dataclass(frozen=True)
class Uniform:
    """sigma = shift(u), u uniform in [0, 1): with shift 1 what the paper writes, t ~ U[0, 1]."""

    shift: float = 1.0

    def sample(self, key: PRNGKeyArray, index: Int[Array, "b"]) -> Float[Array, "b"]:
        """One sigma in [0, 1) per example; `index` numbers the examples of the global batch."""
        uniform = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(index)
        return shift_sigma(uniform, self.shift)

    def quantile(self, share: float) -> float:
        """The sigma that so large a share of the examples, in (0, 1), stays below."""
        return shift_sigma(share, self.shift)
