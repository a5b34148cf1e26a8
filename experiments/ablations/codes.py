"""Training of the arm whose language model generates pictures itself: where codes stand in a row, and what is lost.

A picture to be drawn follows its prompt in the same row, as the visual tokens of its own codes. The state before each
of its tokens, the first of which is that of `<img>`, predicts the codes of the token:

    codes = mean over pictures of the mean over codes of -log p(code | prompt, tokens before, codes before in the token)

The prompt is dropped as often as for a head, for guidance. There is no noise, so a picture is read once a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from internvlu_jax.config import CodeHead, Compute, InternVLUConfig
from internvlu_jax.data.batch import Batch, ImageBatch, TextBatch
from internvlu_jax.models.code_model import CodeModel
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.training.config import ObjectiveConfig
from internvlu_jax.training.losses import TERMS, Forward, NoiseSamples, Objective, Term, target_pictures

_NONE = -1  # of `TextBatch.visual_index`


def draws_codes(cfg: InternVLUConfig) -> bool:
    """Whether a model generates codes, and not by a head."""
    return isinstance(cfg.generation_decoder, CodeHead)


def drawing_term(cfg: InternVLUConfig) -> str:
    """The name of the term of the loss by which a model learns to draw."""
    return "codes" if draws_codes(cfg) else "flow"


def model_of(cfg: InternVLUConfig, special_ids: tuple[int, ...], compute: Compute = Compute()) -> InternVLU:
    """The model that a configuration describes."""
    return (CodeModel if draws_codes(cfg) else InternVLU)(cfg, special_ids, compute)


def objective_of(model: InternVLU, cfg: ObjectiveConfig, chunk: int = 1024) -> Objective:
    """What a model is trained by."""
    return (CodeObjective if draws_codes(model.cfg) else Objective)(model, cfg, chunk)


@dataclass(frozen=True)
class CodeObjective(Objective):
    """An `Objective` of which "codes" is a term, for a `CodeModel`."""

    @property
    def terms(self) -> dict[str, Term]:
        return {**TERMS, "codes": Term(target_pictures, code_term)}

    def draw(self, key: Array, batch: Batch) -> NoiseSamples | None:
        """Nothing: there is no noise."""
        return None


def code_term(forward: Forward) -> Float[Array, ""]:
    """The loss of the module's docstring, summed over pictures."""
    return jnp.sum(code_losses(forward) * forward.picture.weight)


def code_losses(forward: Forward) -> Float[Array, "b"]:
    """Of each picture, in nats a code; `forward` has a batch as `in_rows` makes it."""
    model, target = cast("CodeModel", forward.model), forward.picture.target
    codes = model.by_token(model.codes(forward.params, target) if target.dtype == jnp.uint8 else target)
    scores = model.code_scores(forward.params, forward.context, codes)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), codes[..., None], axis=-1)
    return -jnp.mean(chosen, axis=(1, 2, 3))


# Rows


def in_rows(batch: Batch, cfg: InternVLUConfig, picture_token: int) -> Batch:
    """The batch with the picture to be drawn as the last tile of its row, and places for it behind the prompt.

    `context_index` then names the places before each of its tokens. A batch without pictures is as it was.

    Args:
        picture_token: id of a visual token.
    """
    if batch.picture is None or batch.text is None:
        return batch
    text, picture, count = batch.text, batch.picture, cfg.vlm.tokens_per_tile
    lengths = prompt_lengths(batch)
    rows, places = np.arange(len(lengths))[:, None], lengths[:, None] + np.arange(count, dtype=np.int32)
    length = text.ids.shape[1] + count
    before = 0 if text.tiles is None else text.tiles.shape[1]
    seen = np.full(text.ids.shape, _NONE, np.int32) if text.visual_index is None else text.visual_index
    ids, index = _longer(text.ids, count), _longer(seen, count, _NONE)
    ids[rows, places] = picture_token
    index[rows, places] = before * count + np.arange(count, dtype=np.int32)
    drawn = picture.target[:, None]
    text = TextBatch(
        ids, np.tile(np.arange(length, dtype=np.int32), (len(ids), 1)), None,
        drawn if text.tiles is None else np.concatenate([text.tiles, drawn], axis=1), index,
        *(None if array is None else _longer(array, count) for array in (text.targets, text.weights)),
    )  # fmt: skip
    nowhere = np.zeros((len(ids), 0, 3), np.float32)
    picture = ImageBatch(
        picture.target, np.full(len(ids), count, np.int32), nowhere, picture.weight, (), places - 1
    )  # fmt: skip
    return Batch(batch.index, text, picture)


def prompt_lengths(batch: Batch) -> Int[np.ndarray, "b"]:
    """Tokens of each row of pictures to draw, the last of which is `<img>`: the end of what would condition a head."""
    picture = cast("ImageBatch", batch.picture)
    last = np.take_along_axis(picture.context_index, picture.context_lengths[:, None] - 1, axis=1)
    return (last[:, 0] + 1).astype(np.int32)


def _longer(array: np.ndarray, count: int, filled: int = 0) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, count)), constant_values=filled)


def with_codes(batch: Batch, model: CodeModel, params: Params, rows: int = 64) -> Batch:
    """The batch with the codes of all pictures in place of their pixels, computed once; see `pool.with_latents`."""

    def codes(pictures: np.ndarray) -> np.ndarray:
        chunks = [pictures[first : first + rows] for first in range(0, len(pictures), rows)]
        padded = [np.pad(chunk, ((0, rows - len(chunk)), (0, 0), (0, 0), (0, 0))) for chunk in chunks]
        return np.concatenate([np.asarray(_codes(model, {"vae": params["vae"]}, c)) for c in padded])[: len(pictures)]

    text, picture = batch.text, batch.picture
    if text is not None and text.tiles is not None:
        flat = codes(text.tiles.reshape(-1, *text.tiles.shape[2:]))
        text = text._replace(tiles=flat.reshape(*text.tiles.shape[:2], *flat.shape[1:]))
    return batch._replace(
        text=text, picture=None if picture is None else picture._replace(target=codes(picture.target))
    )  # fmt: skip


@partial(jax.jit, static_argnums=0)
def _codes(model: CodeModel, params: Params, pictures: Array) -> Array:
    return model.codes(params, pictures)


def shapes_in_rows(batch: Batch, cfg: InternVLUConfig) -> Batch:
    """Shapes of `in_rows` with codes, from those of a batch of a model with a head (`matching.batch_shapes`)."""
    side = cfg.vlm.vision_config.image_size // cfg.vae.downsample_factor

    def coded(pictures: Any) -> Any:
        return np.zeros((*pictures.shape[:-3], side, side, cfg.vae.codes), np.int32)

    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), batch)
    if batch.text is not None and batch.text.tiles is not None:
        batch = batch._replace(text=batch.text._replace(tiles=coded(batch.text.tiles)))
    if batch.picture is not None:
        batch = batch._replace(picture=batch.picture._replace(target=coded(batch.picture.target)))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), in_rows(batch, cfg, 0))
