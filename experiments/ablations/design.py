"""The plan of a study as data: arms, seeds, comparisons, families of tests. `protocol.md` has it in words.

What is written here is fixed before the first counted run; a change after that is a new study under a new name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

ALPHA = 0.05
"""Of each family: of its tests of a difference, and, separately, of its tests of equivalence."""

SEEDS = tuple(range(8))
CONTROL_SEEDS = SEEDS[:4]
TUNING_SEEDS = (1000,)
PILOT_SEEDS = (2000,)
"""Seeds of the first parameters and of the noise of training. The last two are never counted."""

CASE_SEEDS: Mapping[str, int] = {"test": 0, "validation": 1}
"""Seeds of the fixed cases: what is counted, and what tuning and pilot look at."""


@dataclass(frozen=True)
class Comparison:
    """One test: an endpoint of an arm minus that of the reference."""

    endpoint: str
    arm: str


@dataclass(frozen=True)
class Family:
    """Tests over which Holm's procedure runs, all of them always: one that cannot be made counts with p = 1.

    leads_from: means of the reference, by endpoint, from which on this family is the one to quote.
    """

    name: str
    comparisons: tuple[Comparison, ...]
    leads_from: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Design:
    """A study.

    reference: the arm that is subtracted.
    seeds: planned, by arm; other seeds are shown and not tested. Empty: whatever there is.
    counted_budgets: those whose verdicts are given.
    spaces: what the head of an arm generates; arms that are not named have one of their own.
    singles: by arm, the arms trained on understanding alone and on generation alone.
    tuned_in: the study whose tuning holds here, too.
    matched: whether arms have to be like the reference in parameters and operations; else these are listed alone.
    found: what was seen to be wrong with it when runs had ended. They stand; its report says it.
    """

    reference: str
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    families: tuple[Family, ...] = ()  # the first whose `leads_from` is reached leads
    counted_budgets: tuple[str, ...] = ("laptop", "gpu")
    spaces: Mapping[str, str] = field(default_factory=dict)
    singles: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    tuned_in: str | None = None
    matched: bool = True
    found: tuple[str, ...] = ()

    def comparable(self, arm: str, other: str) -> bool:
        """Whether two arms generate in one space."""
        return arm == other or (arm in self.spaces and self.spaces[arm] == self.spaces.get(other))


JOINT = ("decoupled", "shared-latent", "shared-semantic")
"""The arms that the question is about; the first is the reference."""


def single_arms(arm: str) -> tuple[str, str]:
    """Names of the controls of a joint arm: understanding alone, generation alone."""
    return f"{arm}-understanding-only", f"{arm}-generation-only"


_CONTROLS = ("twin", "random-semantic", *(name for arm in JOINT for name in single_arms(arm)))
_VAE = ("decoupled", "shared-latent", "twin", *(name for arm in JOINT[:2] for name in single_arms(arm)))
_SEMANTIC = ("shared-semantic", *single_arms("shared-semantic"))


def _against_reference(*endpoints: str) -> tuple[Comparison, ...]:
    return tuple(Comparison(endpoint, arm) for endpoint in endpoints for arm in JOINT[1:])


REPRESENTATIONS = Design(
    reference=JOINT[0],
    seeds={**dict.fromkeys(JOINT, SEEDS), **dict.fromkeys(_CONTROLS, CONTROL_SEEDS)},
    families=(
        Family(
            "right or wrong",
            _against_reference("questions", "geneval_heldout"),
            leads_from={"questions": 0.5, "geneval_heldout": 0.3},
        ),
        Family(
            "continuous",
            (Comparison("flow_loss", "shared-latent"), *_against_reference("answer_log_likelihood")),
        ),
    ),
    spaces={**dict.fromkeys(_VAE, "VAE latents"), **dict.fromkeys(_SEMANTIC, "ViT features")},
    singles={arm: single_arms(arm) for arm in JOINT},
    found=(
        "Autoencoders learned from the combinations that training shows, and cannot draw others. Had an arm drawn the "
        "true picture of every case of `geneval_heldout`, 11.0% would be read right after the VAE and 9.6% after the "
        "decoder of features; of `transfer_pictures` 1.8% and 0.0%. So these two say nothing about arms, the family "
        "that `geneval_heldout` takes part in could never lead, and `flow_loss` is of latents that the VAE does not "
        "turn into their pictures. What trains and draws seen combinations is not touched.",
        "The two batches of `interference_noise` had one and the same noise, which makes their gradients agree more: "
        "cosine minus noise is too low, by how much may differ between arms.",
    ),
)

LONG = replace(
    REPRESENTATIONS,
    families=(
        Family(
            "right or wrong",
            _against_reference("questions", "geneval_seen"),
            leads_from={"questions": 0.5, "geneval_seen": 0.3},
        ),
        Family(
            "continuous",
            (Comparison("flow_loss_seen", "shared-latent"), *_against_reference("answer_log_likelihood")),
        ),
    ),
    counted_budgets=("gpu-long",),
    found=(),
)
"""The same arms once more: three times as long, tuned for a third of that, drawing what training can teach."""

TRANSFER = Design(
    REPRESENTATIONS.reference, dict.fromkeys(JOINT, CONTROL_SEEDS), spaces=REPRESENTATIONS.spaces,
    tuned_in="representations",
)  # fmt: skip
"""The joint arms in a world some of whose facts only drawing shows, and others only questions."""

LARGER = Design(REPRESENTATIONS.reference, dict.fromkeys(JOINT, SEEDS[:3]), spaces=REPRESENTATIONS.spaces)
"""The joint arms at size S. Three seeds can show a sign and never pass a test, so none is made."""

DISCRETE = Design(
    REPRESENTATIONS.reference, dict.fromkeys(("decoupled", "shared-discrete"), CONTROL_SEEDS),
    counted_budgets=LONG.counted_budgets, spaces={"decoupled": "VAE latents", "shared-discrete": "codes"},
)  # fmt: skip
"""Decoupled beside an arm without a head, whose language model reads and generates codes. Four seeds can pass no test
at 5%, so none is made."""

DESIGNS: Mapping[str, Design] = {
    "representations": REPRESENTATIONS,
    "representations-long": LONG,
    "transfer": TRANSFER,
    "representations-s": LARGER,
    "discrete": DISCRETE,
}
"""By study. A study without one is described and not tested; its first arm is the reference."""


@dataclass(frozen=True)
class Tuning:
    """What is tried for each arm, all of it on `TUNING_SEEDS` and validation cases.

    learning_rates: a factor of two apart.
    flow_weights: of the flow loss, where that of the text is 1; the first is the one that learning rates are tried at,
        and the others are tried at the best of these and at its half.
    guidance: scale of guidance by everything, at sampling.
    shifts: of the noise levels at sampling, as factors of the one that the arm is trained with.
    temperatures: of the codes, in their place for an arm that draws codes.
    """

    learning_rates: tuple[float, ...] = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
    flow_weights: tuple[float, ...] = (5.0, 1.0, 20.0)
    guidance: tuple[float, ...] = (1.0, 2.0, 3.5)
    shifts: tuple[float, ...] = (0.5, 1.0, 2.0)
    temperatures: tuple[float, ...] = (0.4, 0.7, 1.0)

    def third(self, name: str) -> tuple[float, ...]:
        """What is tried beside guidance: name is "shift" or "temperature"."""
        return self.shifts if name == "shift" else self.temperatures


TUNING = Tuning()
