"""The endpoints of one trained model, as `protocol.md` has them: losses on fixed cases, and replies to be judged.

A `Scorer` is made once for an arm and serves all its seeds, which share what is compiled. `judging.judged` takes the
replies, in another process where an accelerator is not to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.ablations.arms import SIDE
from experiments.ablations.drawing_codes import CodeDrawing, Way
from experiments.ablations.judging import SETS, Measured, cases_name, world_of
from experiments.ablations.losses_of_cases import AnswerLikelihood, CodeLoss, FlowLoss
from experiments.ablations.results import Cases
from internvlu_jax.config import ConfigError
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.models.code_model import CodeModel
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.processing.processor import Processor
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.small_world import WORLDS, Example
from internvlu_jax.small_world.scoring.cases import cases
from internvlu_jax.small_world.scoring.responder import PipelineResponder, SamplingOptions
from internvlu_jax.small_world.scoring.suite import Reply, queries

LOSSES = {
    "flow_loss": "geneval_heldout",
    "flow_loss_seen": "geneval_seen",
    "code_loss": "geneval_seen",
    "answer_log_likelihood": "questions",
}
"""Endpoints that need no replies, and the set whose cases they are of."""


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    guidance: away from what is drawn with everything dropped. In edits the source counts as part of everything, so both
        scales of the pipeline are this one, and the branch without text alone cancels out (below the highest noise).
    shift: of the sampler's noise levels, as a factor of the one that the arm is trained with. temperature: of codes,
        for an arm that draws them; it has no noise levels, and no steps.
    batch: cases that are drawn together; it does not change what any of them gets.
    """

    guidance: float = 1.0
    shift: float = 1.0
    steps: int = 20
    batch: int = 500
    temperature: float = 1.0


class Scorer:
    """The fixed cases of one world as one arm's models take them, prepared once for all of its seeds.

    Args:
        model: without parameters; its configuration has the statistics of the arm's latents.
        world: one of `WORLDS`.
        count: of cases in each set.
        case_seed: of the cases, and of all noise.
        scores: names of `judging.SETS` and of `LOSSES`.

    Raises:
        ConfigError: a score is not known.
        ValueError: count is under 1, or the world is too small for a set.
    """

    def __init__(
        self,
        model: InternVLU,
        tokenizer: Tokenizer,
        world: str,
        *,
        count: int,
        case_seed: int,
        scores: tuple[str, ...],
    ) -> None:
        if unknown := [name for name in scores if name not in (*SETS, *LOSSES)]:
            raise ConfigError(f"scores name {unknown[0]!r}; expected some of {', '.join((*SETS, *LOSSES))}")
        self.sets = tuple(name for name in scores if name in SETS)
        self._model, self._processor = model, Processor(model.cfg.processor, tokenizer)
        self._case_seed = case_seed
        worlds = {name: WORLDS[world_of(world, name)] for name in self.sets}
        self._queries = {name: queries(worlds[name], name, count, SIDE, case_seed) for name in self.sets}
        self._losses: dict[str, Callable[[Params], np.ndarray]] = {}
        for name in (name for name in LOSSES if name in scores):
            examples = cases(WORLDS[world_of(world, LOSSES[name])], LOSSES[name], count, case_seed)
            self._losses[name] = _loss(name, model, tokenizer, examples, case_seed)
        self._coded: dict[str, CodeDrawing] = {}
        self._world, self._count, self._tokenizer = world, count, tokenizer
        self._names = {name: cases_name(world, LOSSES[name], count, case_seed) for name in self._losses}

    def losses(self, params: Params) -> Measured:
        """The scores among `LOSSES`. A model whose parameters are not finite has such a loss."""
        values = {name: loss(params) for name, loss in self._losses.items()}
        of = {name: Cases(self._names[name], tuple(map(float, value))) for name, value in values.items()}
        return {name: value.mean for name, value in of.items()}, of

    def replies(self, params: Params, name: str, sampling: Sampling) -> list[Reply]:
        """What the model draws or answers for one set of cases, in the order of `suite.queries`, call after call."""
        model, head = self._model, self._model.cfg.generation_decoder
        if isinstance(model, CodeModel) and self._queries[name][0][0].mode == "image":
            return self._drawn(model, params, name, sampling)
        pipe = InternVLUPipeline(model.cfg, params, self._processor, model.compute)
        options = SamplingOptions(
            sampling.steps, self._case_seed, SIDE, sampling.guidance, sampling.guidance, sampling.batch,
            head.flow_shift * sampling.shift,
        )  # fmt: skip
        responder = PipelineResponder(pipe, options)
        return [reply for asked in self._queries[name] for reply in responder(asked)]

    def _drawn(self, model: CodeModel, params: Params, name: str, sampling: Sampling) -> list[Reply]:
        """What a model that draws codes makes of the same cases."""
        if name not in self._coded:
            examples = cases(WORLDS[world_of(self._world, name)], name, self._count, self._case_seed)
            self._coded[name] = CodeDrawing(model, self._tokenizer, examples, self._case_seed, sampling.batch)
        pictures = self._coded[name](params, Way(sampling.guidance, sampling.temperature))
        return [Reply(picture) for picture in pictures]


def _loss(
    name: str, model: InternVLU, tokenizer: Tokenizer, examples: Sequence[Example], case_seed: int
) -> Callable[[Params], np.ndarray]:
    if name == "answer_log_likelihood":
        return AnswerLikelihood(model, tokenizer, examples)
    if isinstance(model, CodeModel):
        return CodeLoss(model, tokenizer, examples)
    return FlowLoss(model, tokenizer, examples, case_seed)
