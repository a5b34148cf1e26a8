"""Drawing by a language model, code after code, with guidance on its logits.

    logits = uncond + guidance * (cond - uncond)        p(code) = softmax(logits / temperature)

`uncond` has read nothing but a dropped prompt, in edits without the source too, and then the same codes. Every branch
has a cache of its own, so that each token of a picture is read once. Sources: classifier-free guidance of sequences of
codes as in arXiv 2406.06525 and 2410.13848; order of codes within a token: `models.codes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, Key, UInt8

from experiments.ablations.codes import prompt_lengths
from experiments.ablations.losses_of_cases import case_batch
from internvlu_jax.data.batch import Batch, Leaf
from internvlu_jax.decode.model import LanguageModel, prefill, read_on
from internvlu_jax.models.code_model import CodeModel
from internvlu_jax.models.internvlu import Params
from internvlu_jax.models.qwen3 import KVCache
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.small_world import Example


class Prompts(NamedTuple):
    """Prompts as the model takes them; arrays lead with the rows.

    ids, visual_index: as in `TextBatch`; tiles: of source pictures. lengths: tokens of each row, with `<img>`.
    """

    ids: Leaf
    lengths: Leaf
    tiles: Leaf = None
    visual_index: Leaf = None


class Branch(NamedTuple):
    """What a branch of guidance has read: the cache, the tokens in it, and the state before the next token [b, e]."""

    cache: KVCache
    lengths: Array
    state: Array


@dataclass(frozen=True)
class Way:
    """How codes are drawn. guidance: away from what is drawn without a prompt, 1 is none. temperature: over 0."""

    guidance: float = 1.0
    temperature: float = 1.0


class CodeDrawing:
    """Fixed cases to be drawn, all with as many sources, prepared once for all parameters.

    Args:
        case_seed: of the random numbers, which are told apart by the number of the case alone.
        batch: cases that are drawn together; it does not change what any of them gets.
    """

    def __init__(
        self, model: CodeModel, tokenizer: Tokenizer, examples: Sequence[Example], case_seed: int, batch: int
    ) -> None:
        self._model, self._count = model, len(examples)
        whole = case_batch(model.cfg, tokenizer, examples), case_batch(model.cfg, tokenizer, examples, "uncond")
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(case_seed)))(jnp.arange(len(examples)))
        size = min(batch, len(examples))
        numbers = [np.minimum(np.arange(at, at + size), len(examples) - 1) for at in range(0, len(examples), size)]
        rows = (*map(prompts, whole), keys)
        self._chunks = [jax.tree.map(lambda leaf, n=n: leaf[n], rows) for n in numbers]

    def __call__(self, params: Params, way: Way) -> UInt8[np.ndarray, "n y x 3"]:
        """The pictures, in the order of the cases."""
        settings = jnp.float32(way.guidance), jnp.float32(way.temperature)
        drawn = [_pictures(self._model, params, *chunk, *settings) for chunk in self._chunks]
        return np.concatenate([np.asarray(pictures) for pictures in drawn])[: self._count]


def prompts(batch: Batch) -> Prompts:
    """Of a batch of pictures to draw, as it is collated."""
    text = batch.text
    assert text is not None
    return Prompts(text.ids, prompt_lengths(batch), text.tiles, text.visual_index)


@partial(jax.jit, static_argnums=0)
def _pictures(
    model: CodeModel, params: Params, cond: Prompts, uncond: Prompts, keys: Key[Array, "b"],
    guidance: Float[Array, ""], temperature: Float[Array, ""],
) -> UInt8[Array, "b y x 3"]:  # fmt: skip
    codes = drawn_codes(model, params, cond, uncond, keys, guidance, temperature)
    return model.picture(params, model.by_latent(codes, model.cfg.vlm.tokens_per_side))


def drawn_codes(
    model: CodeModel, params: Params, cond: Prompts, uncond: Prompts, keys: Key[Array, "b"],
    guidance: Float[Array, ""], temperature: Float[Array, ""],
) -> Int[Array, "b t d"]:  # fmt: skip
    """The codes of pictures, token after token. keys: of the rows."""

    def token(branches: tuple[Branch, Branch], number: Array) -> tuple[tuple[Branch, Branch], Array]:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        codes = _token(model, params, branches, own, guidance, temperature)
        first, second = (_read(model, params, branch, codes) for branch in branches)
        return (first, second), codes

    start = begun(model, params, cond), begun(model, params, uncond)
    _, codes = jax.lax.scan(token, start, jnp.arange(model.cfg.vlm.tokens_per_tile))
    return rearrange(codes, "t b d -> b t d")


def begun(model: CodeModel, params: Params, given: Prompts) -> Branch:
    """A prompt that was read, with room for a picture."""
    visual = None
    if given.tiles is not None:
        visual = model.visual_tokens(params, rearrange(given.tiles, "b k p q c -> (b k) p q c"))
        visual = rearrange(visual, "(b k) s d -> b (k s) d", b=len(given.ids))
    x = model.embed(params, given.ids, visual, given.visual_index)
    capacity = x.shape[1] + model.cfg.vlm.tokens_per_tile
    read = prefill(LanguageModel(model, reasoning=True), params, x, given.lengths, capacity=capacity)
    assert read.captured is not None, "a model that is asked for states gives them"
    last = jnp.take_along_axis(read.captured, given.lengths[:, None, None] - 1, axis=1)
    return Branch(read.cache, given.lengths, last[:, 0])


def guided(cond: Float[Array, "*b"], uncond: Float[Array, "*b"], guidance: Float[Array, ""]) -> Float[Array, "*b"]:
    """The logits of the module's docstring."""
    return uncond + guidance * (cond - uncond)


def _token(
    model: CodeModel, params: Params, branches: tuple[Branch, Branch], keys: Key[Array, "b"],
    guidance: Float[Array, ""], temperature: Float[Array, ""],
) -> Int[Array, "b d"]:  # fmt: skip
    """The codes of one token, one after another."""
    head: Any = model.cfg.generation_decoder  # a `CodeHead`

    def code(place: Array, codes: Array) -> Array:
        cond, uncond = (model.next_code_scores(params, branch.state, codes, place) for branch in branches)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        chosen = jax.vmap(jax.random.categorical)(own, guided(cond, uncond, guidance) / temperature)
        return codes.at[:, place].set(chosen.astype(codes.dtype))

    return jax.lax.fori_loop(0, head.codes, code, jnp.zeros((len(keys), head.codes), jnp.int32))


def _read(model: CodeModel, params: Params, branch: Branch, codes: Int[Array, "b d"]) -> Branch:
    """The branch with one more token of the picture."""
    x = model.visual_tokens(params, model.by_latent(codes[:, None], 1))
    read = read_on(LanguageModel(model, reasoning=True), params, branch.cache, x, branch.lengths)
    assert read.captured is not None, "a model that is asked for states gives them"
    return Branch(read.cache, branch.lengths + 1, read.captured[:, 0])
