"""Which way of computing attention runs."""

from __future__ import annotations

from typing import Any, get_args

import jax
import jax.numpy as jnp

from internvlu_jax.config import Attention
from internvlu_jax.ops.attention.blocks import CHUNKED_KEYS, CHUNKED_SCORES, SPLASH_KEYS
from internvlu_jax.utils.devices import cuda_capability


def resolve_implementation(
    requested: str,
    dtype: Any,
    head_dim: int,
    *,
    has_segments: bool = False,
    keys: int = 0,
    scores: int = 0,
) -> str:
    """The implementation that runs, "xla", "chunked", "cudnn" or "splash".

    "auto" takes cuDNN where it can run, splash where that can run and there are enough keys, chunks where there are too
    many scores (`keys`, and `scores` over batch, heads, queries and keys; thresholds in `blocks`), and plain XLA
    elsewhere.

    Raises ValueError if `requested` is unknown or cannot run: the message says why.
    """
    if requested not in get_args(Attention):
        *names, last = map(repr, get_args(Attention))
        raise ValueError(f"attention implementation {requested!r}; expected {', '.join(names)} or {last}")
    if requested == "xla":
        return "xla"
    obstacles = {
        "cudnn": _cudnn_obstacle(jnp.dtype(dtype), head_dim, has_segments),
        "splash": _splash_obstacle(head_dim),
    }
    if requested != "auto":
        if obstacles.get(requested) is None:
            return requested
        why = f"attention={requested!r} cannot run here: {obstacles[requested]}"
        raise ValueError(f"{why}. Use attention='xla', or 'auto' to choose")
    worth = {
        "cudnn": True,
        "splash": keys >= SPLASH_KEYS,
        "chunked": keys > CHUNKED_KEYS and scores > CHUNKED_SCORES,
    }
    return next((name for name in worth if worth[name] and obstacles.get(name) is None), "xla")


def _cudnn_obstacle(dtype: jnp.dtype, head_dim: int, has_segments: bool) -> str | None:
    """Why cuDNN attention cannot run, or None if it can."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16 or float16, and the arrays are {dtype.name}"
    if head_dim % 8 or head_dim > 128:
        return f"it needs a head width that is a multiple of 8 and at most 128, and this one is {head_dim}"
    if has_segments:
        return "it takes lengths and causal order, and this call has segments"
    if _cuda_capability() < 8.0:
        return f"it needs a CUDA device of compute capability 8.0 or later, and JAX runs on {jax.devices()[0]}"
    return None


def _splash_obstacle(head_dim: int) -> str | None:
    """Why splash attention cannot run, or None if it can."""
    if head_dim % 64:
        return f"it needs a head width that is a multiple of 64, and this one is {head_dim}"
    if not _on_tpu():
        return f"it needs a TPU, and JAX runs on {jax.devices()[0]}"
    return None


def _on_tpu() -> bool:
    return jax.default_backend() == "tpu"


def _cuda_capability() -> float:
    return cuda_capability(jax.devices()[0])
