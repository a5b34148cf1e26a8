"""What a report is made of: each section measures one thing and gives rows of figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from experiments import attention, benchmark, writing
from experiments.device_report import parity, training
from experiments.rows import Row
from internvlu_jax.presets import PRESETS

SizeName = Literal["released", "debug"]

GOLDENS = Path(__file__).parents[2] / "tests/goldens"


@dataclass(frozen=True)
class Settings:
    size: SizeName
    goldens: Path


@dataclass(frozen=True)
class Section:
    """seconds: what it takes on an H100 at the released sizes, compilation included, at most."""

    name: str
    about: str
    seconds: float
    rows: Callable[[Settings], list[Row]]


def numbers(settings: Settings) -> list[Row]:
    cases = parity.CASES if settings.size == "released" else parity.CASES[:1]
    return [row for dtype in ("bfloat16", "float32") for row in parity.rows(settings.goldens / "base", dtype, cases)]


_DEBUG = {
    "t2i-512": "t2i-64",
    "t2i-1024": "t2i-96",
    "t2i-576x1024": "t2i-64x96",
    "edit-1024": "edit-64",
    "text": "text",
}
_REPEATS = 5


def timed(case: str, settings: Settings) -> list[Row]:
    args = _benchmark(settings.size)
    name = case if settings.size == "released" else _DEBUG[case]
    timings = benchmark.time_case(name, args, _weights(settings.size))
    return benchmark.rows([*timings, benchmark.whole(name, timings)], args)


@cache
def _benchmark(size: SizeName) -> benchmark.Arguments:
    if size == "released":
        return benchmark.Arguments(repeats=_REPEATS)
    return benchmark.Arguments(preset="debug", dtype="float32", repeats=1)


@cache
def _weights(size: SizeName) -> dict[str, Any]:
    """Random weights, the same for all sections that draw and write."""
    return benchmark.random_weights(_benchmark(size))


def written(settings: Settings) -> list[Row]:
    """The language model alone, so that there is room for it twice while its layers are taken apart."""
    _weights.cache_clear()
    like = _benchmark(settings.size)
    tokens, rounds = (128, 3) if settings.size == "released" else (4, 1)
    args = writing.Arguments(PRESETS[like.preset]().vlm.llm_config, tokens=tokens, rounds=rounds)
    return writing.rates(args, (1, 8), like.dtype)


def ways(settings: Settings) -> list[Row]:
    """Attention, each way: apart from XLA's, and in seconds."""
    _weights.cache_clear()  # the device's memory is for scores now
    if settings.size == "released":
        args = attention.Arguments(("vision", "head-512", "head-1024", "edit-1024", "prompt", "pack"), "bfloat16")
    else:
        args = attention.Arguments(("small",), "float32", repeats=1)
    return attention.rows(args)


def stage(name: Literal["stage1", "stage3"], settings: Settings) -> list[Row]:
    _weights.cache_clear()
    return training.rows(name if settings.size == "released" else "debug", training.ROWS[settings.size, name])


SECTIONS = (
    Section("parity", "Recorded pictures and answers of the released code, drawn here again.", 150, numbers),
    *(
        Section(case, f"{what}, random weights.", seconds, partial(timed, case))
        for case, what, seconds in (
            ("t2i-1024", "A picture of 1024 x 1024 in 20 steps", 60),
            ("edit-1024", "An edit of 1024 x 1024 in 20 steps", 75),
            ("text", "An answer of 256 tokens about a picture", 40),
            ("t2i-512", "A picture of 512 x 512 in 20 steps", 45),
        )
    ),
    Section("writing", "Answers of 128 tokens by the language model alone, layers scanned and as a list.", 90, written),
    Section("stage1", "A training step of stage 1 at 512 x 512.", 75, partial(stage, "stage1")),
    Section("stage3", "A training step of stage 3 at 1024 x 1024, by kind of example.", 150, partial(stage, "stage3")),
    Section("attention", "Each way of computing attention, in turns; apart from XLA's as relative L2.", 90, ways),
    Section("t2i-576x1024", "A picture of 576 x 1024 in 20 steps, random weights.", 45, partial(timed, "t2i-576x1024")),
)
