"""What is measured of a run: the one place of the endpoints' names, of how they are compared, and of their margins.

`protocol.md` says why each is as it is. A run's results name nothing else; a new endpoint is a line in `ENDPOINTS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Endpoint:
    """A number of a run.

    margin: what counts as no difference, in `unit`, or in the logarithm where that is compared.
    log: logarithms are compared, so that a difference is a ratio.
    worst: what a run that failed counts; None is the worst value among the runs that ended.
    ceiling: of `CEILINGS`, what the arm's own autoencoder allows.
    one_space: only arms that generate in one space can be compared.
    task: what has to be trained for it.
    """

    title: str
    unit: str
    better: Literal["higher", "lower"]
    margin: float
    log: bool = False
    worst: float | None = None
    ceiling: str | None = None
    one_space: bool = False
    task: Literal["understanding", "generation", "both", "diagnostic"] = "both"

    def compared(self, value: float) -> float:
        """The number whose differences are taken.

        Raises:
            ValueError: it is to be a logarithm, and the value is not above 0.
        """
        if not self.log:
            return value
        if value <= 0:
            raise ValueError(f"{self.title} is {value}; expected a number above 0, as its logarithm is compared")
        return math.log(value)


def _share(title: str, task: Literal["understanding", "generation", "both"], ceiling: str | None = None) -> Endpoint:
    return Endpoint(title, "share", "higher", 0.03, worst=0.0, ceiling=ceiling, task=task)


ENDPOINTS: Mapping[str, Endpoint] = {
    "questions": _share("questions answered", "understanding"),
    "geneval_heldout": _share("held-out combinations drawn", "generation", "geneval_heldout"),
    "flow_loss": Endpoint(
        "flow loss of held-out pictures", "squared error", "lower", 0.03, log=True, one_space=True, task="generation"
    ),
    "answer_log_likelihood": Endpoint(
        "log-likelihood of held-out answers", "nats an answer", "higher", 0.03, task="understanding"
    ),
    "geneval_seen": _share("seen combinations drawn", "generation", "reader"),
    "flow_loss_seen": Endpoint(
        "flow loss of new pictures of seen combinations",
        "squared error",
        "lower",
        0.03,
        log=True,
        one_space=True,
        task="generation",
    ),
    "code_loss": Endpoint(
        "cross-entropy of the codes of new pictures of seen combinations",
        "nats a code",
        "lower",
        0.03,
        log=True,
        one_space=True,
        task="generation",
    ),
    "edits_done": _share("edits done", "generation", "reader"),
    "edit_untouched_psnr": Endpoint("untouched region of edits", "dB", "higher", 1.0, task="generation"),
    "relations": _share("questions of relation answered", "understanding"),
    "words": _share("words drawn", "generation", "reader"),
    "riddles": _share("riddles drawn without reasoning", "both", "reader"),
    "riddles_reasoned": _share("riddles drawn after reasoning", "both", "reader"),
    "reasoning_gain": Endpoint("gain from reasoning", "share", "higher", 0.03, worst=-1.0),
    "transfer_questions": _share("facts that only drawing showed, asked", "both"),
    "transfer_pictures": _share("facts that only questions showed, drawn", "both", "transfer_pictures"),
    "interference_cosine": Endpoint("cosine of the two losses' gradients", "cosine", "higher", 0.03, task="diagnostic"),
    "interference_noise": Endpoint("cosine of two batches of one task", "cosine", "higher", 0.03, task="diagnostic"),
    "interference_norms": Endpoint(
        "norm of the flow gradient over that of the text", "ratio", "higher", 0.03, log=True, task="diagnostic"
    ),
}
"""By their names in results. Those of drawing, answering and editing are scores of the small world
(`small_world.scoring.suite.KEYS`)."""

DRAWN = ("geneval_seen", "geneval_heldout", "transfer_pictures")
"""Those of pictures for prompts, each of which has a true one: means over categories."""

CEILINGS: Mapping[str, str] = {
    "reader": "share of renders that the reader reads right after encoding and decoding",
    "psnr": "PSNR of renders after encoding and decoding, in dB",
    **{name: f"{ENDPOINTS[name].title}, of the true pictures after encoding and decoding" for name in DRAWN},
}
"""What an arm's autoencoder allows, by the names in results; those of endpoints are missing in results of before."""

PARITY: Mapping[str, float | None] = {
    "parameters": 0.01,
    "decoder_parameters": 0.01,
    "operations": 0.02,
    "vision_tokens": 0.0,
    "head_tokens": 0.0,
    "trained_parameters": None,
    "encoder_parameters": None,
    "copied_parameters": None,
    "question_operations": None,
    "picture_operations": None,
    "edit_operations": None,
}
"""By how much an arm may differ from the reference at most, as a share of its number; None is listed alone.

What counts as which is said in `matching`: operations are those of a mean example, tokens those of one picture in the
language model and in the head.
"""
