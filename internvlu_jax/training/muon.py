"""Muon for the kernels of stacked layers, by optax's Newton-Schulz iteration, beside another rule for all else.

    update = 0.2 sqrt(max(in, out)) U V^T,  U S V^T being the singular values and vectors of the gradients' mean

So all directions of a matrix move equally far, and the root of the mean square of an update is about 0.2, as with Adam,
whose learning rates then hold here, too. Sources: Jordan et al. 2024 (the iteration); Liu et al. 2025, arXiv
2502.16982, section 2.2 (the factor).
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any, NamedTuple

import jax
import optax
from jax.typing import ArrayLike
from optax.contrib import MuonDimensionNumbers
from optax.contrib import scale_by_muon as orthogonalised

from internvlu_jax.models.layers import kernel_axes
from internvlu_jax.utils.tree import Tree, from_paths, merge, paths, split

_RMS = 0.2


class Scaling(NamedTuple):
    """A rule, and the paths of the parameters that it is for."""

    transform: optax.GradientTransformation
    paths: frozenset[str]


class Moments(NamedTuple):
    """States of the two rules."""

    matrices: Any
    others: Any


def matrix_axes(path: str, dimensions: int) -> MuonDimensionNumbers | None:
    """Axes that a kernel of stacked layers sums over, and those of its outputs; None of all other parameters."""
    *module, name = path.split("/")
    layers, inputs = kernel_axes(module, dimensions)
    if name != "kernel" or not layers:
        return None
    first = layers + inputs
    return MuonDimensionNumbers(tuple(range(layers, first)), tuple(range(first, dimensions)))


def scale_by_muon(trained: Tree) -> Scaling:
    """Of the matrices among parameters, or among their shapes."""
    axes = {path: own for path, leaf in paths(trained).items() if (own := matrix_axes(path, leaf.ndim)) is not None}
    muon = orthogonalised(weight_dimension_numbers=from_paths(axes))

    def update(gradients: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        turned, new = muon.update(gradients, state, params)
        return from_paths({path: _size(leaf, axes[path]) * leaf for path, leaf in paths(turned).items()}), new

    return Scaling(optax.GradientTransformation(muon.init, update), frozenset(axes))


def _size(matrix: jax.Array, axes: MuonDimensionNumbers) -> float:
    return _RMS * sqrt(max(prod(matrix.shape[i] for i in part) for part in axes))


def beside(matrices: Scaling, others: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """One rule for matrices, another for what is none; `finite` is for the other one."""

    def init(params: Tree) -> Moments:
        own, rest = split(params, matrices.paths.__contains__)
        return Moments(matrices.transform.init(own), others.init(rest))

    def update(
        gradients: Tree, state: Moments, params: Tree | None = None, *, finite: ArrayLike = True
    ) -> tuple[Tree, Moments]:
        own, rest = split(gradients, matrices.paths.__contains__)
        turned, first = matrices.transform.update(own, state.matrices)
        moved, second = others.update(rest, state.others, finite=finite)
        return merge(turned, moved), Moments(first, second)

    return optax.GradientTransformationExtraArgs(init, update)
