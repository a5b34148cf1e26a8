"""What a model loses on fixed cases, one number a case: the flow loss of pictures, or that of their codes, and the
log-likelihood of answers.

Cases are laid out by the training's own collation, a case a row, with nothing dropped, and read by its own `Forward`.
Parameters are arguments of what is compiled, so the seeds of an arm share it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from experiments.ablations.arms import SIDE
from experiments.ablations.codes import code_losses, in_rows, objective_of
from experiments.ablations.world import DATA
from internvlu_jax.config import InternVLUConfig, VAESlot
from internvlu_jax.data.batch import Batch
from internvlu_jax.data.collate import Collator
from internvlu_jax.data.examples import BranchName, DataError, ExampleBuilder
from internvlu_jax.data.records import BrokenRecord
from internvlu_jax.flow.path import velocity_target
from internvlu_jax.models.code_model import CodeModel
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.small_world import Example
from internvlu_jax.small_world.source import record_of
from internvlu_jax.training.config import ObjectiveConfig
from internvlu_jax.training.losses import Forward, NoiseSamples, Objective

LEVELS = 8
"""Noise levels of each picture."""

_CHUNK = 100  # cases that are computed together
_ROUND = 8  # rows of questions are padded to a multiple of it


def case_batch(
    cfg: InternVLUConfig, tokenizer: Tokenizer, examples: Sequence[Example], branch: BranchName = "cond"
) -> Batch:
    """Cases of one sort as one batch in their order: pictures to draw, edits, or questions with their answers.

    Args:
        branch: of guidance.

    Raises:
        DataError: a case does not fit the shapes of the study's data, or they are not of one sort.
    """
    builder = ExampleBuilder(cfg, tokenizer, DATA)
    drafts = [builder.draft(record_of(case, f"case {n}", SIDE), branch) for n, case in enumerate(examples)]
    # All that may differ is the length that prompts are padded to, or the tiles that a row of questions holds.
    kind = max((replace(draft.kind, tiles=draft.tiles) for draft in drafts), key=lambda kind: kind.text_length)
    if any(replace(d.kind, text_length=0, tiles=d.tiles) != replace(kind, text_length=0) for d in drafts):
        raise DataError(f"{len(drafts)} cases have several shapes; expected those of one sort")
    length = -(-max(len(draft.ids) for draft in drafts) // _ROUND) * _ROUND
    data = replace(DATA, pack_length=length, pack_tiles=max(kind.tiles, 1))
    with ThreadPoolExecutor(1) as threads:
        collator = Collator(cfg, tokenizer, data, threads, _refuse)
        return collator.batch(kind, [[draft] for draft in drafts], np.arange(len(drafts)))


def _refuse(error: BrokenRecord) -> NoReturn:
    raise DataError(f"a case cannot be read: {error}")


def levels(objective: Objective) -> tuple[float, ...]:
    """Noise levels at (k + 1/2) / `LEVELS` of the distribution that training draws them from."""
    return tuple(objective.times.quantile((k + 0.5) / LEVELS) for k in range(LEVELS))


def case_noise(vae: VAESlot, count: int, case_seed: int) -> Float[np.ndarray, "n l y x c"]:
    """The noise of so many cases at all levels: fixed by seed, case and level."""
    shape = (LEVELS, SIDE // vae.downsample_factor, SIDE // vae.downsample_factor, vae.z_dim)
    rngs = [np.random.default_rng([case_seed, zlib.crc32(b"flow_loss"), n]) for n in range(count)]
    return np.stack([rng.standard_normal(shape, np.float32) for rng in rngs])


class FlowLoss:
    """Squared error of the velocity: of each case the mean over `LEVELS` levels and over latents.

    Args:
        model: without its parameters.
        examples: pictures to draw.
        case_seed: of the noise.
    """

    def __init__(self, model: InternVLU, tokenizer: Tokenizer, examples: Sequence[Example], case_seed: int) -> None:
        self._objective = Objective(model, ObjectiveConfig(noises_per_image=LEVELS))
        noise = case_noise(model.cfg.vae, len(examples), case_seed)
        batch = case_batch(model.cfg, tokenizer, examples)
        self._count, self._chunks = len(examples), _chunks((batch, noise), len(examples))

    def __call__(self, params: Params) -> Float[np.ndarray, "n"]:
        """params: all of the model."""
        return _all(partial(_flow_losses, self._objective, params), self._chunks)[: self._count]


class CodeLoss:
    """Cross-entropy of the codes of a picture, of each case the mean over its codes, in nats.

    Args:
        model: without its parameters.
        examples: pictures to draw.
    """

    def __init__(self, model: CodeModel, tokenizer: Tokenizer, examples: Sequence[Example]) -> None:
        self._objective = objective_of(model, ObjectiveConfig((("codes", 1.0),)))
        batch = in_rows(case_batch(model.cfg, tokenizer, examples), model.cfg, tokenizer.img_context)
        self._count, self._chunks = len(examples), _chunks((batch,), len(examples))

    def __call__(self, params: Params) -> Float[np.ndarray, "n"]:
        """params: all of the model."""
        return _all(partial(_code_losses, self._objective, params), self._chunks)[: self._count]


class AnswerLikelihood:
    """ln p of each answer with its end, in nats: the sum over its tokens.

    Args:
        model: without its parameters.
        examples: questions, each with one answer.
    """

    def __init__(self, model: InternVLU, tokenizer: Tokenizer, examples: Sequence[Example]) -> None:
        self._objective = Objective(model, ObjectiveConfig())
        batch = case_batch(model.cfg, tokenizer, examples)
        self._count, self._chunks = len(examples), _chunks((batch,), len(examples))

    def __call__(self, params: Params) -> Float[np.ndarray, "n"]:
        """params: of the language model with its vision encoder, at least."""
        return _all(partial(_log_likelihoods, self._objective, params), self._chunks)[: self._count]


@partial(jax.jit, static_argnums=0)
def _flow_losses(objective: Objective, params: Params, batch: Batch, noise: Array) -> Float[Array, "b"]:
    samples = NoiseSamples(jnp.tile(jnp.array(levels(objective)), len(noise)), rearrange(noise, "b l ... -> (b l) ..."))
    forward = Forward(objective, params, batch, samples)
    error = jnp.square(forward.velocity - velocity_target(forward.clean, samples.noise))
    return jnp.mean(error.reshape(len(noise), -1), axis=1)


@partial(jax.jit, static_argnums=0)
def _code_losses(objective: Objective, params: Params, batch: Batch) -> Float[Array, "b"]:
    return code_losses(Forward(objective, params, batch))


@partial(jax.jit, static_argnums=0)
def _log_likelihoods(objective: Objective, params: Params, batch: Batch) -> Float[Array, "b"]:
    forward = Forward(objective, params, batch)
    scores = objective.model.logits(params, forward.read.last)
    text = forward.text
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), text.targets[..., None], axis=-1)[..., 0]
    return jnp.sum(text.weights * chosen, axis=1)


def _chunks(rows: Any, count: int) -> list[Any]:
    """Trees of arrays that lead with the cases, cut into parts of one size; the last case fills up the last part."""
    size = min(_CHUNK, count)
    numbers = [np.minimum(np.arange(first, first + size), count - 1) for first in range(0, count, size)]
    return [jax.tree.map(lambda a, n=chosen: a[n], rows) for chosen in numbers]


def _all(compute: Callable[..., Array], chunks: Sequence[Any]) -> Float[np.ndarray, "n"]:
    """All parts are started before the first is waited for."""
    return np.concatenate([np.asarray(values) for values in [compute(*chunk) for chunk in chunks]])
