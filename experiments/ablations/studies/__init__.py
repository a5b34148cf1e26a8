"""What there is to run: studies, their arms as they are trained, and budgets. A new study is a line in `STUDIES`."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.ablations.design import CONTROL_SEEDS, DESIGNS, Design
from experiments.ablations.parts import codec_name
from experiments.ablations.studies.budgets import BUDGETS, Budget
from experiments.ablations.studies.condition import CONDITION
from experiments.ablations.studies.discrete import DISCRETE
from experiments.ablations.studies.head import HEAD
from experiments.ablations.studies.objective import OBJECTIVE
from experiments.ablations.studies.optimizer import OPTIMIZER
from experiments.ablations.studies.reasoning import REASONING
from experiments.ablations.studies.representations import LARGER, LONG, REPRESENTATIONS, TRANSFER
from experiments.ablations.studies.study import Study, Variant

__all__ = ["BUDGETS", "STUDIES", "Budget", "Study", "Variant", "design_of", "designs"]

STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (REPRESENTATIONS, LONG, TRANSFER, LARGER, DISCRETE, CONDITION, HEAD, REASONING, OBJECTIVE, OPTIMIZER)
}


def design_of(study: Study) -> Design:
    """The plan of a study; of one that has none in `DESIGNS`, seeds 0 to 3 of each arm and no tests."""
    if study.name in DESIGNS:
        return DESIGNS[study.name]
    variants = study.all()
    return Design(
        reference=variants[0].name,
        seeds={variant.name: CONTROL_SEEDS for variant in variants},
        spaces={variant.name: codec_name(variant.arm) for variant in variants},
        tuned_in=study.tuned_in,
        matched=study.matched,
    )


def designs() -> dict[str, Design]:
    """The plans of all studies, by name."""
    return {name: design_of(study) for name, study in STUDIES.items()}
