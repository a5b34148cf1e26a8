"""Seconds of every way of computing attention that runs here, at shapes of the released model; see `ops.attention`.

    python -m experiments.attention --cases vision head-512 prompt

Each is compiled, run once, then timed in turns with the others, and the least of its times counts: other work on the
machine only adds to it. "xla" holds all scores. The thresholds in `ops/attention/blocks.py` come from such figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

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


Case = Literal["vision", "tokens-1024", "head-512", "head-1024", "edit-1024", "prompt", "pack"]
CASES: dict[Case, Shape] = {
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
            resolve_implementation(name, dtype, shape.width, has_mask=False)
        except ValueError:
            continue
        able.append(name)
    return able


def seconds(shape: Shape, args: Arguments, backward: bool) -> dict[str, float]:
    """Of each way: of the value, or of the value and all gradients."""
    sizes = [(shape.rows, shape.tokens, heads, shape.width) for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, size, args.dtype) for key, size in zip(keys, sizes, strict=True)]
    lengths = jnp.full(shape.rows, shape.tokens - 7)

    def program(name: str) -> Callable[..., Any]:
        run = partial(attention, causal=shape.causal, key_lengths=lengths, implementation=name)
        return jax.jit(
            jax.value_and_grad(lambda *qkv: run(*qkv).sum().astype(jnp.float32), (0, 1, 2)) if backward else run
        )

    programs = {name: program(name) for name in ways(shape, args.dtype)}
    least = dict.fromkeys(programs, float("inf"))
    for turn in range(args.repeats + 1):
        for name, run in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(*arrays))
            if turn:  # the first one compiles
                least[name] = min(least[name], time.perf_counter() - begin)
    return least


def main(args: Arguments) -> None:
    table = Table("case", "rows, tokens, heads, of keys, width", "pass", "way", "seconds", "of xla's")
    for case in args.cases:
        for backward in (False, True):
            least = seconds(CASES[case], args, backward)
            for name, taken in least.items():
                size = "" if name != "xla" else ", ".join(map(str, CASES[case][:5]))
                each = "both" if backward else "forward"
                table.add_row(case, size, each, name, f"{taken:.4f}", f"{taken / least['xla']:.2f}")
    Console(width=140).print(f"{jax.devices()[0].device_kind}, {args.dtype}", table)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
