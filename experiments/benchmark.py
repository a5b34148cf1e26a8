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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import command
from experiments.costs import Case
from experiments.flops import case_for
from experiments.rows import Row, show
from experiments.traced import Part, Traced
from internvlu_jax.config import Attention, Compute
from internvlu_jax.presets import PRESETS
from internvlu_jax.utils.devices import bfloat16_peak, prepare_cpu
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
    return normal(Traced(PRESETS[args.preset](), parse_case("text", args.preset), Compute(args.dtype)).params)


def normal(shapes: Any) -> Any:
    """Small normal numbers for a tree of shapes, repeated from one block: a program for each shape would take longer
    than all that is timed."""
    block = 0.02 * np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    return jax.tree.map(lambda s: jnp.asarray(np.resize(block.astype(s.dtype), s.shape)), shapes)


def whole(case: str, timings: Sequence[Timing]) -> Timing:
    """The sum of a case's parts."""
    sums = [sum(getattr(t, name) for t in timings) for name in ("compile_seconds", "seconds", "tflop")]
    return Timing(case, "all", *sums)


def rows(timings: Sequence[Timing], args: Arguments) -> list[Row]:
    """What is shown of each, by the name of its column."""
    best = bfloat16_peak() if args.dtype == "bfloat16" else None
    found = []
    for t in timings:
        row: Row = {
            "case": t.case, "part": t.part, "first run, s": t.compile_seconds, "seconds": t.seconds, "TFLOP": t.tflop,
            "TFLOP/s": t.tflops,
        }  # fmt: skip
        if best:
            row["of peak"] = t.tflops * 1e12 / best
        if t.part == "write":
            row["tokens/s"] = parse_case(t.case, args.preset).new_tokens / t.seconds
        if t.part == "all" and args.preset == "internvl-u-4b" and t.case in TARGETS:
            row["floor / aim / must, s"] = " / ".join(map(str, TARGETS[t.case]))
        found.append(row)
    return found


def print_table(timings: Sequence[Timing], args: Arguments) -> None:
    shown = []
    for name in dict.fromkeys(t.case for t in timings):
        own = [t for t in timings if t.case == name]
        shown += rows([*own, whole(name, own)], args)
    show(shown)


def main(args: Arguments) -> None:
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}; expected at least 1")
    prepare_cpu()
    for name in args.cases:
        parse_case(name, args.preset)
    weights = random_weights(args)
    timings = [timing for name in args.cases for timing in time_case(name, args, weights)]
    print_table(timings, args)
    if args.json is not None:
        settings = {
            **{k: str(v) for k, v in asdict(args).items()},
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "python": platform.python_version(),
            "command": " ".join(sys.argv),
        }
        write_json(args.json, {"settings": settings, "timings": [asdict(t) for t in timings]})


if __name__ == "__main__":
    command(main, Arguments, "experiments.benchmark", __doc__)
