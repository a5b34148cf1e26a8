"""Text in blocks is the text of one program, and the cache stays where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.decode.blocks import _begin, _go_on, write_in_blocks
from internvlu_jax.decode.generate import Rules
from internvlu_jax.decode.model import LanguageModel, grown, prefill, read_further
from internvlu_jax.models.internvlu import InternVLU, modules
from internvlu_jax.models.qwen3 import KVCache
from internvlu_jax.presets import debug_config
from internvlu_jax.utils.seeds import numbered_keys
from tests.helpers.measures import assert_close
from tests.helpers.toy_text import PAD, PROMPTS, STOPS, Toy, pad_prompts, texts, toy_params, write


def in_blocks(model, params, max_new_tokens, **options):
    """(what stood after each block, the result)."""
    ids, lengths = pad_prompts(PROMPTS)
    prompt = prefill(model, params, model.embed(params, ids), lengths, capacity=ids.shape[1] + 40)
    blocks = write_in_blocks(
        model, params, prompt, stop_ids=STOPS, pad_id=PAD, max_new_tokens=max_new_tokens, buffer=40, **options
    )
    so_far = []
    while True:
        try:
            so_far.append(next(blocks))
        except StopIteration as end:
            return so_far, end.value


@pytest.mark.parametrize("limit", [1, 2, 40])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3, "top_p": 0.9, "temperature": 2.0, "top_k": 5}])
def test_blocks_are_the_text_of_one_program(limit, options):
    """Each is the start of what follows; captured states and cache are the same, too."""
    options = {"keys": numbered_keys(0, 4), **options} if options else {}
    model = Toy(capture=(0,))
    ended_early = 0
    for seed in range(4):
        so_far, got = in_blocks(model, toy_params(seed), limit, **options)
        want = write(model, toy_params(seed), PROMPTS, limit, 40, **options)
        assert texts(got) == texts(want) == texts(so_far[-1])
        lengths = np.stack([block.lengths for block in so_far])
        assert (np.diff(lengths, axis=0) >= 0).all() and (lengths[0] == 1).all()
        for block in so_far:
            for mine, whole in zip(texts(block), texts(want), strict=True):
                assert mine == whole[: len(mine)]
        for n, length in enumerate(np.asarray(want.lengths)):
            np.testing.assert_array_equal(got.captured[n, : length - 1], want.captured[n, : length - 1])
        ended_early += limit == 40 and int(np.max(want.lengths)) < 40
        assert int(got.steps) == int(want.steps)
    assert ended_early or limit < 40


def test_blocks_are_one_program():
    model = Toy()
    in_blocks(model, toy_params(0), 40)
    traced = len(model.traced[0])
    in_blocks(model, toy_params(1), 17)
    assert len(model.traced[0]) == traced


@pytest.fixture(scope="module")
def tiny():
    model = InternVLU(debug_config(), tuple(range(10)))
    vlm = modules(model.cfg)["vlm"]
    return LanguageModel(model), {
        "vlm": jax.jit(lambda key: vlm.init(key, method="build"))(jax.random.key(0))["params"]
    }


def test_a_block_does_not_copy_the_cache(tiny):
    model, params = tiny
    cfg = model.model.cfg.vlm.llm_config
    cache = KVCache(*2 * [jax.ShapeDtypeStruct((cfg.num_hidden_layers, 2, 4096, cfg.num_key_value_heads, cfg.head_dim),
                                               jnp.float32)])  # fmt: skip
    logits = jax.ShapeDtypeStruct((2, cfg.vocab_size), jnp.float32)
    rules = Rules(jnp.ones(2, jnp.int32), jnp.ones(2, jnp.int32), jnp.int32(0), None, jnp.float32(1), None, None, None)
    begun = jax.eval_shape(
        lambda *given: _begin(model, *given, rules, buffer=32, top_k=None)[0], params, cache, logits
    )  # fmt: skip
    rest = begun._replace(cache=None, captured=None)
    compiled = _go_on.lower(model, params, cache, None, rest, rules, jnp.int32(9), top_k=None).compile()
    memory, size = compiled.memory_analysis(), sum(4 * leaf.size for leaf in cache)
    assert memory.alias_size_in_bytes >= size and memory.temp_size_in_bytes < size


def test_reading_further_is_reading_at_once(tiny):
    """Also into a cache that grew, and with padding behind; rows of different lengths."""
    model, params = tiny
    rng = np.random.default_rng(0)
    ids = rng.integers(0, model.model.cfg.vlm.llm_config.vocab_size, (2, 24)).astype(np.int32)
    lengths, starts = jnp.asarray([20, 15]), jnp.asarray([9, 4])
    x = model.embed(params, jnp.asarray(ids))
    want = prefill(model, params, x, lengths, capacity=24)
    first = prefill(model, params, x[:, :9], starts, capacity=16)
    cache = grown(model, params, first.cache, capacity=32)
    rest = jnp.stack([jnp.roll(row, -start) for row, start in zip(ids, [9, 4], strict=True)])[:, :16]
    got = read_further(model, params, cache, model.embed(params, rest), starts, lengths - starts)
    assert_close(got.logits, want.logits, 1e-5)
    np.testing.assert_array_equal(got.lengths, lengths)
    assert jax.tree.leaves(got.cache)[0].shape[-3] == 32
