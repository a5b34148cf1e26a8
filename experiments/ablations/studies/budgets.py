"""How much goes into a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.ablations import parts
from experiments.ablations.arms import TINY, Size
from experiments.ablations.design import TUNING, Tuning
from experiments.ablations.parts import PartSizes


@dataclass(frozen=True)
class Budget:
    """How much goes into a run.

    rows: of a step, by kind of example. noises: of each picture in a step.
    examples: of the pool, which is read again and again.
    dtype: of the activations in training; scores are taken in float32.
    warmup: steps in which the learning rate rises. ema: decay of the averaged weights.
    tuning_steps: of a run of tuning.
    cases: of each score; tuning_cases: of each in tuning.
    parts: what goes into what is made before all runs.
    tuning: what is tried.
    size: of the models, where it is not the study's.
    optimized: whether programs are compiled to run fast, or to be there soon.
    """

    name: str
    steps: int
    rows: tuple[tuple[str, int], ...] = (("pictures", 32), ("edits", 16), ("questions", 8))
    noises: int = 4
    examples: int = 24_000
    dtype: str = "float32"
    warmup: int = 100
    ema: float = 0.99
    tuning_steps: int = 500
    cases: int = 500
    tuning_cases: int = 500
    sampler_steps: int = 20
    parts: PartSizes = PartSizes()
    tuning: Tuning = TUNING
    size: Size | None = None
    optimized: bool = True


BUDGETS: Mapping[str, Budget] = {
    budget.name: budget
    for budget in (
        Budget(
            "smoke", 2, (("pictures", 2), ("edits", 1), ("questions", 1)), noises=2, examples=240, warmup=1, ema=0.5,
            tuning_steps=1, cases=8, tuning_cases=8, sampler_steps=2, parts=parts.SMOKE,
            tuning=Tuning((1e-3, 2e-3), (5.0,), guidance=(2.0,), shifts=(1.0,), temperatures=(1.0,)), size=TINY,
            optimized=False,
        ),
        Budget("laptop", 600, (("pictures", 16), ("edits", 8), ("questions", 4)), tuning_steps=150),
        Budget("gpu", 1500, tuning_steps=375, dtype="bfloat16"),
        Budget("gpu-long", 4500, tuning_steps=1500, dtype="bfloat16"),
    )
}  # fmt: skip
