"""What the arms of a study have to have in common, counted: parameters, operations of a training step, picture tokens.

Parameters. `learned` are those of the vision encoder, projector, language model and head, whichever stage trains them.
A vision encoder that is trained beforehand and then frozen is among them: it was learned from examples of the arm's
own, and without it that arm would have a larger language model or head to make up for it. Autoencoders are not: they
are trained apart, on one budget for every arm, and have ceilings of their own. Of these the decoders, which alone make
pixels, are held to the same size, and encoders are listed. Frozen copies hold nothing of their own, and are listed.

Operations. From the jaxpr of a step's gradients, forward, backward and what is computed twice, of all that runs,
trained or frozen (the update multiplies no matrices): a row of each kind, and their mean by how often each is read. The
mean is what has to agree. A single kind need not: the codec within a vision encoder runs where a picture is seen, and
drawing takes the most. Pictures that are drawn, and their sources, come to the head as stored latents, which are
computed once for all runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from experiments.ablations.arms import SIDE, Arm
from experiments.ablations.codes import drawing_term, draws_codes, model_of, objective_of, shapes_in_rows
from experiments.ablations.endpoints import PARITY
from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.data.batch import Batch, ImageBatch, TextBatch
from internvlu_jax.models.copies import copies
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.models.vlm import NUM_SPECIAL_TOKENS
from internvlu_jax.processing.layout import takes_latents
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig, Rules
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.step import Gradients, Step, TrainState
from internvlu_jax.utils.flops import count_flops
from internvlu_jax.utils.tree import paths

SHARES: Mapping[str, float] = {"pictures": 4.0, "edits": 4.0, "questions": 1.0}
"""Rows of each kind in a step, by the names of `pool.KINDS`."""

_ENCODER = ("vae/encoder/", "vae/quant_conv/")
_ROWS = 4  # of a traced batch; operations of a row do not depend on it
_CHUNK = 1024  # as of a run: rows of logits at once


@dataclass(frozen=True)
class Sizes:
    """Of what a run reads; `world.DATA` and its tokenizer give these.

    picture, edit: (tokens of the row, of which condition the head). questions: (tokens, tiles) of a packed row.
    noises: of each picture in a step.
    """

    picture: tuple[int, int] = (48, 32)
    edit: tuple[int, int] = (64, 48)
    questions: tuple[int, int] = (400, 4)
    noises: int = 4

    @property
    def contexts(self) -> tuple[int, ...]:
        """The lengths that conditions of the head are padded to, as `DataConfig.text_lengths`."""
        return tuple(sorted({self.picture[1], self.edit[1]}))


@dataclass(frozen=True)
class Row:
    """The numbers of one arm.

    learned: parameters that have to agree; of these `trained` are trained by the run and the others beforehand, or are
    random. encoder, decoder: of its autoencoder. copies: of frozen copies.
    operations: of a row of each kind, by its name, and `mean`, of a row of the mixture.
    tokens: of a picture, in the language model and in the head.
    """

    arm: str
    learned: int
    trained: int
    encoder: int
    decoder: int
    copies: int
    operations: Mapping[str, float]
    mean: float
    tokens: tuple[int, int]


def parity(arms: Sequence[Arm], shares: Mapping[str, float] = SHARES, sizes: Sizes = Sizes()) -> tuple[Row, ...]:
    """The numbers of all arms, the first of which the others are held against.

    Args:
        shares: rows of each kind in a step, by name as in `SHARES`. sizes: of what is read.

    Raises:
        ValueError: an arm is not like the first; names it, and both numbers.
    """
    first, *others = rows = tuple(numbers(arm, shares, sizes) for arm in arms)
    for row in others:
        _agree(row, first, "parameters", "learned parameters", row.learned, first.learned)
        _agree(row, first, "decoder_parameters", "parameters of the decoder", row.decoder, first.decoder)
        _agree(row, first, "operations", "operations of a mean row", row.mean, first.mean)
        if row.tokens != first.tokens:
            raise ValueError(f"{row.arm} has {row.tokens} tokens of a picture, {first.arm} {first.tokens}")
    return rows


def _agree(row: Row, first: Row, name: str, what: str, ours: float, theirs: float) -> None:
    tolerance = PARITY[name]
    assert tolerance is not None, f"{name} is listed, and not held to anything"
    if abs(ours - theirs) > tolerance * theirs:
        raise ValueError(
            f"{row.arm} has {ours:,.0f} {what}, {first.arm} {theirs:,.0f}: {ours / theirs - 1:+.1%}, where "
            f"{tolerance:.0%} is allowed; change the arm's widths"
        )


def numbers(arm: Arm, shares: Mapping[str, float] = SHARES, sizes: Sizes = Sizes()) -> Row:
    """The numbers of one arm; arguments as for `parity`."""
    cfg = arm.config
    count = {path: math.prod(leaf.shape) for path, leaf in paths(_shapes(cfg)).items()}
    trained = {path for path, rate in factors(_shapes(cfg), OptimizerConfig(rates=arm.rates)).rates.items() if rate}
    copied = {path for path in count for place in copies(cfg) if path.startswith(f"{place}/")}
    codec = {path for path in count if path.startswith("vae/")} - copied
    encoder = {path for path in codec if path.startswith(_ENCODER)}
    learned = count.keys() - codec - copied

    def total(which: Iterable[str]) -> int:
        return sum(count[path] for path in which)

    operations = {kind: _operations(cfg, arm.rates, kind, sizes) for kind in shares}
    return Row(
        arm.name, total(learned), total(learned & trained), total(encoder), total(codec - encoder), total(copied),
        operations, sum(shares[kind] * number for kind, number in operations.items()) / sum(shares.values()),
        (cfg.vlm.tokens_per_tile, (SIDE // cfg.generation_decoder.pixel_multiple) ** 2),
    )  # fmt: skip


_shapes = functools.cache(param_shapes)


@functools.cache  # arms may differ in what their frozen parts were trained on, and in nothing that is counted
def _operations(cfg: InternVLUConfig, rates: Rules, kind: str, sizes: Sizes) -> float:
    model = model_of(cfg, tuple(range(NUM_SPECIAL_TOKENS)), Compute(attention="xla"))
    optimizer = OptimizerConfig(rates=rates)
    weights = (("text", 1.0), (drawing_term(cfg), 1.0))
    objective = objective_of(model, ObjectiveConfig(weights, noises_per_image=sizes.noises), _CHUNK)
    step = Step(objective, optimizer, factors(_shapes(cfg), optimizer), steps=1)

    def gradients(state: TrainState, batch: Batch, key: PRNGKeyArray) -> Gradients:
        return step.gradients(state, batch, step.totals((batch,)), key)

    state, batch = jax.eval_shape(step.init, _shapes(cfg)), batch_shapes(cfg, kind, sizes)
    return count_flops(gradients, state, batch, jax.random.key(0)) / _ROWS


def batch_shapes(cfg: InternVLUConfig, kind: str, sizes: Sizes, rows: int = _ROWS) -> Batch:
    """A micro-batch of one of `pool.KINDS`, as shapes, with latents or codes in place of pictures."""
    length, context = {"pictures": sizes.picture, "edits": sizes.edit, "questions": (sizes.questions[0], 0)}[kind]
    tiles = {"pictures": 0, "edits": 1, "questions": sizes.questions[1]}[kind]
    side, packed = cfg.vlm.vision_config.image_size, kind == "questions"
    text = TextBatch(
        ids=_ints(rows, length), positions=_ints(rows, length), segments=_ints(rows, length) if packed else None,
        tiles=jax.ShapeDtypeStruct((rows, tiles, side, side, 3), jnp.uint8) if tiles else None,
        visual_index=_ints(rows, length) if tiles else None, targets=_ints(rows, length),
        weights=_floats(rows, length),
    )  # fmt: skip
    if packed:
        batch = Batch(_ints(rows), text)
        return shapes_in_rows(batch, cfg) if draws_codes(cfg) else batch
    places = SIDE // cfg.vae.downsample_factor
    latents, sources = _floats(rows, places, places, cfg.vae.z_dim), int(kind == "edits" and takes_latents(cfg))
    tokens = (1 + sources) * (SIDE // cfg.generation_decoder.pixel_multiple) ** 2 + context
    drawn = ImageBatch(
        target=latents, context_lengths=_ints(rows), positions=_floats(rows, tokens, 3), weight=_floats(rows),
        sources=(latents,) * sources, context_index=_ints(rows, context),
    )  # fmt: skip
    batch = Batch(_ints(rows), text, drawn)
    return shapes_in_rows(batch, cfg) if draws_codes(cfg) else batch


def _ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
