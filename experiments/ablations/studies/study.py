"""What a study is: a world, and variants of an arm that are trained and scored alike but for what is compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from experiments.ablations.arms import XS, Arm, Size, arms_of
from experiments.ablations.codes import drawing_term
from experiments.ablations.matching import Sizes
from experiments.ablations.parts import USUAL_LESSONS, Lessons
from experiments.ablations.pool import KINDS
from internvlu_jax.config import ConfigError
from internvlu_jax.training.config import ObjectiveConfig

READING = ("questions", "answer_log_likelihood")
DRAWING = ("geneval_heldout", "geneval_seen", "flow_loss", "edits")
USUAL_SIZES = Sizes()


@dataclass(frozen=True)
class Variant:
    """An arm of a study.

    arm: its model.
    kinds: of examples that it is trained on, of `pool.KINDS`.
    scores: as for `scoring.Scorer`.
    tuned_as: the arm of the same name in whose tuning its settings were chosen; None where it is tuned itself.
    mixture: of `world.MIXTURES`, what it is trained on. reasoned: whether the words that lead to a picture are there.
    time, noise_shift: of the noise levels in training, as in `ObjectiveConfig`, the shift as a factor of the arm's.
        Losses of cases and pictures are taken at the arm's own levels all the same.
    flow_weight: of the loss of pictures, in place of the tuned one.
    matrices: as in `OptimizerConfig`.
    """

    name: str
    arm: Arm
    kinds: tuple[str, ...] = KINDS
    scores: tuple[str, ...] = READING + DRAWING
    tuned_as: str | None = None
    mixture: str = "general"
    reasoned: bool = True
    time: Literal["logit_normal", "uniform"] = "logit_normal"
    noise_shift: float = 1.0
    flow_weight: float | None = None
    matrices: Literal["adam", "muon"] = "adam"

    @property
    def term(self) -> str:
        """Of the loss by which it learns to draw."""
        return drawing_term(self.arm.config)

    def objective(self, noises: int) -> ObjectiveConfig:
        """Of training. noises: of each picture."""
        if self.term == "codes":
            return ObjectiveConfig((("text", 1.0), ("codes", 1.0)))
        own = self.arm.config.generation_decoder.flow_shift
        shift = None if self.noise_shift == 1.0 else own * self.noise_shift
        return ObjectiveConfig((("text", 1.0), ("flow", 1.0)), self.time, shift, noises)

    def told(self) -> dict[str, Any]:
        """What a run's settings say of the training: that in which it is not as usual."""
        names = ("mixture", "reasoned", "time", "noise_shift", "matrices")
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        return {name: value for name in names if (value := getattr(self, name)) != usual[name]}


@dataclass(frozen=True)
class Study:
    """What is compared.

    variants: from the arms of a size (`arms.arms_of`) to those of the study, in the order in which they are run; the
        first is the reference.
    tuned_in: the study whose tuning holds here, too; None is its own.
    matched: as in `Design`; where it is so, a run does not start of an arm that is not like the reference.
    sizes: of what is read, but for the number of noises.
    lessons: what its parts learn from.
    flow: the flow loss that tuning goes by, of the endpoints; for an arm that draws codes it goes by `code_loss`.
    """

    name: str
    world: str
    variants: Callable[[Mapping[str, Arm]], tuple[Variant, ...]]
    tuned_in: str | None = None
    size: Size = XS
    matched: bool = True
    sizes: Sizes = USUAL_SIZES
    lessons: Lessons = USUAL_LESSONS
    flow: str = "flow_loss"

    def drawing_loss(self, variant: Variant) -> str:
        """The endpoint that tuning goes by."""
        return "code_loss" if variant.term == "codes" else self.flow

    def at(self, size: Size | None) -> Study:
        """The study with models of another size, where one is given."""
        return self if size is None else replace(self, size=size)

    def all(self) -> tuple[Variant, ...]:
        """Its arms at its size."""
        return self.variants(arms_of(self.size))

    def chosen(self, names: tuple[str, ...]) -> tuple[Variant, ...]:
        """The arms named, in the study's order; all of them where none is.

        Raises:
            ConfigError: an arm is not known.
        """
        known = {variant.name: variant for variant in self.all()}
        for name in names:
            if name not in known:
                raise ConfigError(f"study {self.name} has no arm {name!r}; expected some of {', '.join(known)}")
        return tuple(variant for variant in known.values() if not names or variant.name in names)


def with_seen_loss(variant: Variant) -> Variant:
    """The variant, scored by the flow loss of seen combinations, too, where it is trained to draw."""
    return replace(variant, scores=(*variant.scores, "flow_loss_seen")) if "pictures" in variant.kinds else variant


def exploratory(name: str, variants: Callable[[Arm], tuple[Variant, ...]], sizes: Sizes = USUAL_SIZES) -> Study:
    """A study of changes to decoupled, all with its settings, of which parameters and operations are listed alone.

    Drawing is measured on seen combinations, too: its autoencoder cannot draw those that are held out.

    Args:
        variants: from the arm decoupled.
    """

    def of(arms: Mapping[str, Arm]) -> tuple[Variant, ...]:
        return tuple(replace(with_seen_loss(variant), tuned_as="decoupled") for variant in variants(arms["decoupled"]))

    return Study(name, "xs", of, tuned_in="representations", matched=False, sizes=sizes)


def with_head(arm: Arm, name: str, transformer: Mapping[str, Any] | None = None, **changes: Any) -> Arm:
    """The arm with another generation head.

    Args:
        transformer: fields of its `MMDiTConfig`. changes: of its `HeadConfig`.
    """
    head = arm.config.generation_decoder
    head = replace(head, decoder_config=replace(head.decoder_config, **(transformer or {})), **changes)
    return replace(arm, name=name, config=replace(arm.config, generation_decoder=head))
