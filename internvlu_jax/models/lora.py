"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on linear maps, without a change to the modules.

    y = x W + scale * (x A) B          A [in, r], B [r, out]; B starts at zero, so that nothing changes at first

A and B stand in the parameter tree beside the kernel they adapt, as `lora_a` and `lora_b`: whatever handles parameters
by path (freezing, sharding, checkpoints) handles them too. In a stack of layers they are stacked like the kernel.
Within `adapted` every linear map that has them uses them; no full-size update is ever formed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import PRNGKeyArray

from internvlu_jax.config import ConfigError
from internvlu_jax.models.layers import is_linear_call, kernel_axes

Tree = Any
_A, _B = "lora_a", "lora_b"


@contextmanager
def adapted(scale: float) -> Iterator[None]:
    """Linear maps that are traced within use the adapters that stand beside their kernels."""

    def add_update(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        module = context.module
        if not is_linear_call(context) or not module.has_variable("params", _A):
            return y
        a, b = (jnp.asarray(module.get_variable("params", name), y.dtype) for name in (_A, _B))
        inputs = a.ndim - 1
        low = jnp.tensordot(args[0].astype(y.dtype), a, inputs)
        return y + scale * jnp.tensordot(low, b, 1)

    with nn.intercept_methods(add_update):
        yield


def add(params: Tree, pattern: str, rank: int, key: PRNGKeyArray) -> Tree:
    """The parameters with an adapter beside every kernel whose linear map's path matches `pattern` as a whole.

    Raises:
        ConfigError: no linear map matches.
    """
    matched: list[str] = []

    def visit(node: Tree, path: tuple[str, ...]) -> Tree:
        if not isinstance(node, dict):
            return node
        new = {name: visit(child, (*path, name)) for name, child in node.items()}
        if "kernel" in node and re.fullmatch(pattern, "/".join(path)) and _is_linear(path, node["kernel"].ndim):
            matched.append("/".join(path))
            new |= _adapter(node["kernel"].shape, path, rank, jax.random.fold_in(key, len(matched)))
        return new

    adapted_params = visit(params, ())
    if not matched:
        raise ConfigError(f"lora.pattern {pattern!r} matches no linear map; paths look like vlm/llm/layers/attn/q")
    return adapted_params


def _is_linear(path: tuple[str, ...], dimensions: int) -> bool:
    """Of the kernels with four axes those of qkv are linear maps, and the others convolutions."""
    stack, _ = kernel_axes(path, dimensions)
    return dimensions - stack < 4 or path[-1] == "qkv"


def _adapter(kernel: tuple[int, ...], path: tuple[str, ...], rank: int, key: PRNGKeyArray) -> dict[str, jax.Array]:
    stack, inputs = kernel_axes(path, len(kernel))
    layers, taken, given = kernel[:stack], kernel[stack : stack + inputs], kernel[stack + inputs :]
    a = jax.random.normal(key, (*layers, *taken, rank)) / math.sqrt(math.prod(taken))
    return {_A: a, _B: jnp.zeros((*layers, rank, *given))}


def merge(params: Tree, scale: float) -> Tree:
    """Parameters whose kernels hold their adapters' updates, without the adapters; worked out in float32.

    A kernel that is a numpy array stays one: of a model on the host the device holds one kernel at a time.
    """
    if not isinstance(params, dict):
        return params
    rest = {name: merge(child, scale) for name, child in params.items() if name not in (_A, _B)}
    if _A in params:
        kernel = folded(params["kernel"], params[_A], params[_B], scale)
        rest["kernel"] = np.asarray(kernel) if isinstance(params["kernel"], np.ndarray) else kernel
    return rest


def folded(kernel: Any, a: Any, b: Any, scale: float = 1.0) -> jax.Array:
    """kernel + scale * (a b) in the kernel's dtype, worked out in float32; of one map, or of a stack of layers."""
    kernel32, a, b = (jnp.asarray(array, jnp.float32) for array in (kernel, a, b))
    update = full_size(a, b, stacked=a.ndim + b.ndim - 2 > kernel.ndim)
    return (kernel32 + scale * update).astype(kernel.dtype)


def full_size(a: jax.Array, b: jax.Array, stacked: bool) -> jax.Array:
    """The update a b [*layers, *in, *out] of factors [*layers, *in, r] and [*layers, r, *out]."""
    product = partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)  # float32 on accelerators, too
    return jax.vmap(product)(a, b) if stacked else product(a, b)
