"""Beam search as Hugging Face's `generate` does it (`length_penalty` 1, `early_stopping` False).

A text's score is the sum of its log probabilities over its number of tokens, the stop token counted and the prompt
not. Every step extends the k running texts of a row by every token and looks at the best max(2, 1 + stops) * k of the
results: among the first k of them, those that end go to the k best finished texts; the k best that do not end run on.
A row is settled when it has k finished texts and its best running one, at its present length, scores no better than
the worst of them; texts that end later are not looked at. At the limit every text ends.

Axes: b rows, k beams, T tokens, v vocabulary, l m h of the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int

from internvlu_jax.decode.model import Params, TextModel, read_on
from internvlu_jax.decode.sampling import NO_NUMBER, penalised
from internvlu_jax.models.qwen3 import KVCache


class Found(NamedTuple):
    """The best text of each row; fields as in `Generated`. Tokens of a row without finite scores are `NO_NUMBER`."""

    tokens: Int[Array, "b T"]
    lengths: Int[Array, "b"]
    steps: Int[Array, ""]


class Beams(NamedTuple):
    """Texts of one kind, best first. A score of -inf marks an empty place.

    scores: sums of log probabilities (running) or means (finished). lengths: tokens of each text.
    """

    scores: Float[Array, "b k"]
    tokens: Int[Array, "b k T"]
    lengths: Int[Array, "b k"]


class Search(NamedTuple):
    """written: tokens of the running texts. parents: which beam of the step before each of them continues."""

    written: Int[Array, ""]
    running: Beams
    parents: Int[Array, "b k"]
    finished: Beams
    open: Bool[Array, "b"]


def search(
    model: TextModel,
    params: Params,
    cache: KVCache,
    prompt_lengths: Int[Array, "b"],
    logits: Float[Array, "b v"],
    stops: Int[Array, "n"],
    pad_id: Int[Array, ""],
    limit: Int[Array, ""],
    buffer: int,
    num_beams: int,
    penalty: Float[Array, ""] | None = None,
) -> Found:
    """The best text of each row, at most `limit` tokens of it. Arguments as in `generate`; `cache` is only read."""
    starts = repeat(prompt_lengths, "b -> (b k)", k=num_beams)

    def unfinished(carry: tuple[Search, KVCache]) -> Array:
        return (carry[0].written < limit) & carry[0].open.any()

    def step(carry: tuple[Search, KVCache]) -> tuple[Search, KVCache]:
        state, cache = carry
        current = rearrange(state.running.tokens[:, :, state.written - 1], "b k -> (b k) 1")
        cache = _reorder(cache, state.parents)
        read = read_on(model, params, cache, model.embed(params, current), starts + state.written - 1)
        logits = rearrange(model.logits(params, read.last), "(b k) 1 v -> b k v", k=num_beams)
        return advance(state, logits, stops, limit, penalty), read.cache

    state = _start(logits.shape[0], num_beams, buffer, pad_id)
    state = advance(state, repeat(logits, "b v -> b k v", k=num_beams), stops, limit, penalty)
    beams = jax.tree.map(lambda x: repeat(x, "... b m i j -> ... (b k) m i j", k=num_beams), cache)
    state, _ = jax.lax.while_loop(unfinished, step, (state, beams))
    best = state.finished
    tokens = jnp.where(jnp.isfinite(best.scores[:, :1]), best.tokens[:, 0], NO_NUMBER)
    return Found(tokens, best.lengths[:, 0], state.written - 1)


def _start(rows: int, num_beams: int, buffer: int, pad_id: Array) -> Search:
    """One empty text a row: the other beams are empty places until the first tokens fill them."""
    empty = Beams(
        scores=jnp.full((rows, num_beams), -jnp.inf),
        tokens=jnp.full((rows, num_beams, buffer), pad_id, jnp.int32),
        lengths=jnp.zeros((rows, num_beams), jnp.int32),
    )
    running = empty._replace(scores=empty.scores.at[:, 0].set(0.0))
    return Search(jnp.int32(0), running, jnp.zeros_like(empty.lengths), empty, jnp.ones(rows, bool))


def advance(
    state: Search,
    logits: Float[Array, "b k v"],
    stops: Int[Array, "n"],
    limit: Int[Array, ""],
    penalty: Float[Array, ""] | None = None,
) -> Search:
    """Extends the running texts by one token, given the scores of their next tokens. A penalty for repetition acts on
    log probabilities here, on what the output layer gives elsewhere."""
    num_beams, vocabulary = logits.shape[1:]
    count = state.written + 1
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    log_probs = penalised(log_probs, state.running.tokens, state.written, penalty)
    sums = log_probs + state.running.scores[..., None]
    candidates = max(2, 1 + stops.shape[0]) * num_beams
    sums, index = jax.lax.top_k(rearrange(sums, "b k v -> b (k v)"), min(candidates, num_beams * vocabulary))
    parents, chosen = index // vocabulary, (index % vocabulary).astype(jnp.int32)
    tokens = jnp.take_along_axis(state.running.tokens, parents[..., None], axis=1).at[:, :, state.written].set(chosen)
    texts = Beams(sums, tokens, jnp.broadcast_to(count, sums.shape))
    ends = jnp.isin(chosen, stops) | (count >= limit)

    running, order = _best(texts._replace(scores=jnp.where(ends, -jnp.inf, sums)), num_beams)
    ending = ends & (jnp.arange(sums.shape[1]) < num_beams) & state.open[:, None]
    ended = texts._replace(scores=jnp.where(ending, sums / count, -jnp.inf))
    finished, _ = _best(jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), state.finished, ended), num_beams)
    can_improve = running.scores[:, 0] / count > finished.scores.min(axis=1)
    return Search(
        written=count,
        running=running,
        parents=jnp.take_along_axis(parents, order, axis=1),
        finished=finished,
        open=state.open & can_improve,
    )


def _best(texts: Beams, num_beams: int) -> tuple[Beams, Int[Array, "b k"]]:
    scores, order = jax.lax.top_k(texts.scores, num_beams)
    tokens = jnp.take_along_axis(texts.tokens, order[..., None], axis=1)
    return Beams(scores, tokens, jnp.take_along_axis(texts.lengths, order, axis=1)), order


def _reorder(cache: KVCache, parents: Int[Array, "b k"]) -> KVCache:
    """Gives every running text the keys and values of the text that it continues.

    Layer by layer, in place: one gather of the whole cache would make a second one, in another memory order.
    """
    rows, num_beams = parents.shape
    source = rearrange(parents + num_beams * jnp.arange(rows)[:, None], "b k -> (b k)")

    def of_layer(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        return x.at[source].get(mode="promise_in_bounds")

    def of_layers(x: Float[Array, "l b ..."]) -> Float[Array, "l b ..."]:
        return jax.lax.fori_loop(0, x.shape[0], lambda layer, x: x.at[layer].set(of_layer(x[layer])), x)

    return jax.tree.map(lambda x: of_layers(x) if x.ndim == 5 else of_layer(x), cache)
