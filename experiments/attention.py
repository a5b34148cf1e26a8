"""Every way of computing attention that runs here, at shapes of the released model: seconds, and how far apart.

    python -m experiments.attention --cases vision head-512 prompt

Each is compiled, run once, then timed in turns with the others, and the least of its times counts: other work on the
machine only adds to it. "xla" holds all scores; see `ops.attention`. The thresholds in `ops/attention/blocks.py` come
from such figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from experiments.command import command
from experiments.rows import Row, show
from internvlu_jax.config import Attention
from internvlu_jax.ops.attention import attention, resolve_implementation


class Shape(NamedTuple):
    """rows, tokens, query heads, key/value heads, head width."""

    rows: int
    tokens: int
    heads: int
    kv_heads: int
    width: int
    causal: bool = False


Case = Literal["small", "vision", "tokens-1024", "head-512", "head-1024", "edit-1024", "prompt", "pack"]
CASES: dict[Case, Shape] = {
    "small": Shape(1, 128, 4, 2, 64, causal=True),
    "vision": Shape(1, 1025, 16, 16, 64),
    "tokens-1024": Shape(1, 1024, 16, 16, 64),
    "head-512": Shape(2, 1024 + 128, 12, 12, 128),
    "head-1024": Shape(2, 4096 + 128, 12, 12, 128),
    "edit-1024": Shape(2, 2 * 4096 + 448, 12, 12, 128),
    "prompt": Shape(1, 1024, 16, 8, 128, causal=True),
    "pack": Shape(1, 4096, 16, 8, 128, causal=True),
}


@dataclass(frozen=True)
class Arguments:
    cases: tuple[Case, ...] = ("vision", "tokens-1024", "head-512", "prompt")
    dtype: Literal["float32", "bfloat16"] = "float32"
    repeats: int = 5


def ways(shape: Shape, dtype: str) -> list[str]:
    """The implementations that can run, "xla" first."""
    able = []
    for name in get_args(Attention)[1:]:
        try:
            resolve_implementation(name, dtype, shape.width)
        except ValueError:
            continue
        able.append(name)
    return able


class Figure(NamedTuple):
    """seconds: the least. apart: relative L2 from XLA's way in float32, over the value or all gradients."""

    seconds: float
    apart: float


def measure(shape: Shape, args: Arguments, backward: bool) -> dict[str, Figure]:
    """Each way: the value, or the value and all gradients."""
    sizes = [(shape.rows, shape.tokens, heads, shape.width) for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, size, args.dtype) for key, size in zip(keys, sizes, strict=True)]
    lengths = jnp.full(shape.rows, shape.tokens - 7)

    def program(name: str) -> Callable[..., Any]:
        run = partial(attention, causal=shape.causal, key_lengths=lengths, implementation=name)

        def loss(*qkv: Any) -> Any:
            return jnp.square(run(*qkv).astype(jnp.float32)).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2)) if backward else run)

    programs = {name: program(name) for name in ways(shape, args.dtype)}
    true = program("xla")(*(array.astype(jnp.float32) for array in arrays))
    apart = {name: _apart(run(*arrays), true) for name, run in programs.items()}  # which compiles
    least = dict.fromkeys(programs, float("inf"))
    for _ in range(args.repeats):
        for name, run in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(*arrays))
            least[name] = min(least[name], time.perf_counter() - begin)
    return {name: Figure(least[name], apart[name]) for name in programs}


@jax.jit
def _norms(got: Any, true: Any) -> tuple[Any, Any]:
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(true), strict=True))
    return sum(jnp.sum(jnp.square(g.astype(jnp.float32) - t)) for g, t in pairs), sum(
        jnp.sum(jnp.square(t)) for _, t in pairs
    )


def _apart(got: Any, true: Any) -> float:
    difference, whole = _norms(got, true)
    return float(jnp.sqrt(difference / whole))


def rows(args: Arguments) -> list[Row]:
    """A row for each case, pass and way, by the name of its column."""
    found: list[Row] = []
    for case in args.cases:
        for backward in (False, True):
            figures = measure(CASES[case], args, backward)
            for name, figure in figures.items():
                size = "" if name != "xla" else ", ".join(map(str, CASES[case][:5]))
                found.append({
                    "case": case, "rows, tokens, heads, of keys, width": size,
                    "pass": "gradients" if backward else "forward", "way": name, "seconds": figure.seconds,
                    "of xla's": figure.seconds / figures["xla"].seconds, "apart": figure.apart,
                })  # fmt: skip
    return found


def main(args: Arguments) -> None:
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}; expected at least 1")
    print(f"{jax.devices()[0].device_kind}, {args.dtype}")
    show(rows(args))


if __name__ == "__main__":
    command(main, Arguments, "experiments.attention", __doc__)
