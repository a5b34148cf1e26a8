"""A language model of a few numbers, whose texts can be worked out by hand, and writing with it."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from internvlu_jax.decode.generate import generate
from internvlu_jax.decode.model import prefill
from internvlu_jax.decode.settings import TextSettings
from internvlu_jax.models.qwen3 import KVCache, Qwen3Output

STOPS, PAD = (0, 1), 2


@dataclass(frozen=True, eq=False)
class Toy:
    """The state of a token is tanh of a sum over all tokens up to it, each weighted by its place; the cache holds the
    summands. So a wrong, stale or unordered cache changes what is written. Counts how often it is traced."""

    traced: tuple[list, ...] = field(default_factory=lambda: ([],))
    capture: tuple[int, ...] = ()

    def embed(self, params, ids):
        return params["embed"][ids]

    def forward(self, params, x, positions, cache, return_kv):
        self.traced[0].append(x.shape)
        if cache is None:
            rows, length, width = x.shape
            cache = KVCache(jnp.zeros((1, rows, 1, 1, length)), jnp.zeros((1, rows, 1, length, width)))
        v = cache.v.at[0, jnp.arange(x.shape[0])[:, None], 0, positions].set(x)
        seen = jnp.arange(cache.slots) <= positions[..., None]
        state = jnp.tanh(jnp.einsum("bst,t,btd->bsd", seen, params["place"][: cache.slots], v[0, :, 0]))
        return Qwen3Output(state, state if self.capture else None, KVCache(cache.k, v))

    def logits(self, params, last):
        return last @ params["out"]


def toy_params(seed: int, vocabulary: int = 7, width: int = 8) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {"embed": (vocabulary, width), "place": (64,), "out": (width, vocabulary)}
    return {name: jnp.asarray(rng.normal(0, 1.2, shape), jnp.float32) for name, shape in shapes.items()}


def toy_logits(params, history) -> np.ndarray:
    """Scores of the token after `history`, without a cache."""
    embed, place, out = (np.asarray(params[name], np.float64) for name in ("embed", "place", "out"))
    return np.tanh(place[: len(history)] @ embed[list(history)]) @ out


def toy_log_probs(params, history) -> np.ndarray:
    logits = toy_logits(params, history)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def pad_prompts(prompts):
    lengths = jnp.asarray([len(p) for p in prompts], jnp.int32)
    ids = np.full((len(prompts), 8), PAD, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(ids), lengths


def toy_settings(max_new_tokens, buffer, **options):
    return TextSettings(stop_ids=STOPS, pad_id=PAD, max_new_tokens=max_new_tokens, buffer=buffer, **options)


def write(model, params, prompts, max_new_tokens=6, buffer=8, **options):
    ids, lengths = pad_prompts(prompts)
    prompt = prefill(model, params, model.embed(params, ids), lengths, capacity=ids.shape[1] + buffer)
    return generate(model, params, prompt, toy_settings(max_new_tokens, buffer, **options))


def texts(result):
    return [row[:n].tolist() for row, n in zip(np.asarray(result.tokens), np.asarray(result.lengths), strict=True)]


PROMPTS = [[3, 4, 5], [6, 2, 2, 5, 3, 4, 4, 6], [5], [2, 6, 3, 3]]
