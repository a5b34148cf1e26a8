"""Seconds and operations per second of what the pipeline runs, part by part, on random weights.

    python -m experiments.benchmark --cases t2i-512 t2i-1024 t2i-576x1024 edit-1024 text
    python -m experiments.benchmark --preset debug --cases t2i-64 edit-64 text

The functions and the shapes are those of `experiments.flops` (`experiments.traced`); so are the operations. Each part
is compiled, run once, then timed `repeats` times; the median counts. The targets are those of one H100 in bfloat16 at
the released sizes and mean nothing elsewhere.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from experiments.costs import Case
from experiments.flops import case_for
from experiments.traced import Part, Traced
from internvlu_jax.config import Attention, Compute
from internvlu_jax.ops.attention import attention, resolve_implementation
from internvlu_jax.presets import PRESETS
from internvlu_jax.utils.devices import bfloat16_peak
from internvlu_jax.utils.files import write_json

# Seconds: the floor at measured speed, the aim, and the most that is acceptable. One H100, bfloat16, released sizes.
TARGETS = {
    "t2i-512": (0.077, 0.15, 0.25),
    "t2i-1024": (0.37, 0.70, 1.0),
    "edit-1024": (1.15, 2.0, 2.7),
}


@dataclass(frozen=True)
class Arguments:
    cases: tuple[str, ...] = ("t2i-512", "t2i-1024", "edit-1024", "text")
    """t2i-N, t2i-HxW, edit-N, edit-HxW (pixels), text."""
    preset: Literal["internvl-u-4b", "debug", "small"] = "internvl-u-4b"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Attention = "auto"
    repeats: int = 5
    json: Path | None = None
    """Where settings and figures go, as one JSON object."""


@dataclass(frozen=True)
class Timing:
    case: str
    part: str
    compile_seconds: float
    seconds: float
    tflop: float

    @property
    def tflops(self) -> float:
        """TFLOP per second."""
        return self.tflop / self.seconds


def parse_case(name: str, preset: str) -> Case:
    """`t2i-512`, `edit-576x1024`, `text`, for a preset.

    Raises ValueError naming what it does not understand.
    """
    task, _, size = name.partition("-")
    sides = size.split("x") if size else ["512"]
    if task not in ("t2i", "edit", "text") or len(sides) > 2 or not all(side.isdigit() for side in sides):
        raise ValueError(f"case {name!r}; expected t2i-N, t2i-HxW, edit-N, edit-HxW or text")
    return case_for(task, int(sides[0]), int(sides[-1]), PRESETS[preset]())


def time_case(name: str, args: Arguments, weights: dict[str, Any]) -> list[Timing]:
    """Times every part of one case."""
    cfg, case = PRESETS[args.preset](), parse_case(name, args.preset)
    counted = Traced(cfg, case).parts()
    parts = Traced(cfg, case, Compute(args.dtype, args.attention)).parts()
    return [
        Timing(name, part, *time_part(run, weights, args.repeats), counted[part].flops() / 1e12)
        for part, run in parts.items()
    ]


def time_part(part: Part, weights: dict[str, Any], repeats: int) -> tuple[float, float]:
    """(seconds of the first run, compilation included; median seconds of the others)."""

    def once() -> float:
        # Fresh for every run, because text decoding gives its cache away.
        arguments = jax.block_until_ready(materialise(part.arguments, weights))
        begin = time.perf_counter()
        jax.block_until_ready(part.function(*arguments))
        return time.perf_counter() - begin

    first = once()
    return first, statistics.median(once() for _ in range(repeats))


def materialise(arguments: tuple[Any, ...], weights: dict[str, Any]) -> tuple[Any, ...]:
    """Arrays for shapes: the weights for the one dict among them, the model's parameters, and ones elsewhere."""
    return tuple(
        weights if isinstance(a, dict) else jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), a) for a in arguments
    )


def random_weights(args: Arguments) -> dict[str, Any]:
    """Parameters on the device, in the serving dtype; small normal numbers."""
    shapes = Traced(PRESETS[args.preset](), parse_case("text", args.preset), Compute(args.dtype, args.attention)).params
    draw = jax.jit(lambda key, shape, dtype: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=(1, 2))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(tree, [draw(k, s.shape, s.dtype) for k, s in zip(keys, leaves, strict=True)])


def compare_attention(repeats: int) -> str:
    """cuDNN against XLA on the head's attention at 1024 x 1024, two branches, or why it cannot run."""
    shape = (2, 4096 + 128, 12, 128)
    try:
        resolve_implementation("cudnn", jnp.bfloat16, shape[-1], has_mask=False)
    except ValueError as error:
        return str(error)
    q, k, v = (jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(1), 3))
    lengths = jnp.array([4096 + 100, 4096 + 17])
    seconds, results = {}, {}
    for name in ("xla", "cudnn"):
        run = partial(jax.jit(attention, static_argnames="implementation"), q, k, v, key_lengths=lengths)
        run = partial(run, implementation=name)
        results[name] = run().astype(jnp.float32)
        seconds[name] = statistics.median(_seconds(run) for _ in range(repeats))
    apart = float(jnp.linalg.norm(results["cudnn"] - results["xla"]) / jnp.linalg.norm(results["xla"]))
    return f"xla {seconds['xla'] * 1e3:.2f} ms, cudnn {seconds['cudnn'] * 1e3:.2f} ms, relative L2 apart {apart:.1e}"


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begin


def print_table(timings: list[Timing], args: Arguments) -> None:
    table = Table("case", "part", "first run, s", "seconds", "TFLOP", "TFLOP/s", "of peak", "floor / aim / must, s")
    best = bfloat16_peak()
    for name in dict.fromkeys(t.case for t in timings):
        own = [t for t in timings if t.case == name]
        whole = Timing(
            name, "all", sum(t.compile_seconds for t in own), sum(t.seconds for t in own), sum(t.tflop for t in own)
        )
        for t in [*own, whole]:
            share = f"{t.tflops * 1e12 / best:.0%}" if best and args.dtype == "bfloat16" else ""
            aimed = TARGETS.get(name, ()) if t is whole and args.preset == "internvl-u-4b" else ()
            table.add_row(
                name, t.part, f"{t.compile_seconds:.1f}", f"{t.seconds:.4f}", f"{t.tflop:.4g}", f"{t.tflops:.4g}",
                share, " / ".join(map(str, aimed)),
            )  # fmt: skip
    Console(width=140).print(table)
    for t in timings:
        if t.part == "write":
            print(f"writing: {parse_case('text', args.preset).new_tokens / t.seconds:.0f} tokens/s, batch 1")


def main(args: Arguments) -> None:
    for name in args.cases:
        parse_case(name, args.preset)
    weights = random_weights(args)
    timings = [timing for name in args.cases for timing in time_case(name, args, weights)]
    print_table(timings, args)
    attention_line = compare_attention(args.repeats)
    print(f"attention: {attention_line}")
    if args.json is not None:
        settings = {
            **{k: str(v) for k, v in asdict(args).items()},
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "python": platform.python_version(),
            "command": " ".join(sys.argv),
        }
        rows = [asdict(t) for t in timings]
        write_json(args.json, {"settings": settings, "timings": rows, "attention": attention_line})


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except ValueError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(2)
