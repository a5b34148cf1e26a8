"""What there is to run: studies, their arms as they are trained, and budgets. A new study is an entry of `STUDIES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from experiments.ablations import parts
from experiments.ablations.arms import TINY, XS, Arm, S, Size, arms_of
from experiments.ablations.design import JOINT, TUNING, Tuning, single_arms
from experiments.ablations.parts import PartSizes
from experiments.ablations.pool import KINDS
from internvlu_jax.config import ConfigError

_READING = ("questions", "answer_log_likelihood", "transfer_questions")
_DRAWING = ("geneval_heldout", "geneval_seen", "flow_loss", "edits", "transfer_pictures")


@dataclass(frozen=True)
class Variant:
    """An arm of a study.

    arm: its model.
    kinds: of examples that it is trained on, of `pool.KINDS`.
    scores: as for `scoring.Scorer`.
    tuned_as: the arm of the same name in whose tuning its settings were chosen; None where it is tuned itself.
    """

    name: str
    arm: Arm
    kinds: tuple[str, ...] = KINDS
    scores: tuple[str, ...] = _READING + _DRAWING
    tuned_as: str | None = None


@dataclass(frozen=True)
class Study:
    """What is compared.

    variants: from the arms of a size (`arms.arms_of`) to those of the study, in the order in which they are run.
    tuned_in: the study whose tuning holds here, too; None is its own.
    """

    name: str
    world: str
    variants: Callable[[Mapping[str, Arm]], tuple[Variant, ...]]
    tuned_in: str | None = None
    size: Size = XS

    def at(self, budget: Budget) -> Study:
        """The study at the size that the budget says, if it says one."""
        return self if budget.size is None else replace(self, size=budget.size)

    def chosen(self, names: tuple[str, ...]) -> tuple[Variant, ...]:
        """The arms named, in the study's order; all of them where none is.

        Raises:
            ConfigError: an arm is not known.
        """
        known = {variant.name: variant for variant in self.variants(arms_of(self.size))}
        for name in names:
            if name not in known:
                raise ConfigError(f"study {self.name} has no arm {name!r}; expected some of {', '.join(known)}")
        return tuple(variant for variant in known.values() if not names or variant.name in names)


def _joint(arms: Mapping[str, Arm]) -> tuple[Variant, ...]:
    return tuple(Variant(name, arms[name]) for name in JOINT)


def _singles(name: str, arm: Arm) -> tuple[Variant, Variant]:
    """The controls of a joint arm, which are trained on one task alone."""
    understanding, generation = single_arms(name)
    return (
        Variant(understanding, arm, KINDS[2:], _READING, tuned_as=name),
        Variant(generation, arm, KINDS[:2], _DRAWING, tuned_as=name),
    )


def _representations(arms: Mapping[str, Arm]) -> tuple[Variant, ...]:
    like = {"twin": "shared-latent", "random-semantic": "shared-semantic"}
    controls = (Variant(name, arms[name], tuned_as=other) for name, other in like.items())
    return *_joint(arms), *controls, *(single for name in JOINT for single in _singles(name, arms[name]))


STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        Study("representations", "xs", _representations),
        Study("transfer", "xs-transfer", _joint, tuned_in="representations"),
        Study("representations-s", "xs", _joint, size=S),
    )
}


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
            tuning=Tuning((1e-3, 2e-3), (5.0, 1.0), guidance=(2.0,), shifts=(1.0,)), size=TINY, optimized=False,
        ),
        Budget("laptop", 600, (("pictures", 16), ("edits", 8), ("questions", 4)), tuning_steps=150),
        Budget("gpu", 1500, tuning_steps=375, dtype="bfloat16"),
    )
}  # fmt: skip
