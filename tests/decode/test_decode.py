"""Writing text: against the goldens, and against full forwards."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.engine import convert
from converters.tensors import open_part
from converters.vlm import vlm_rules
from internvlu_jax.config import Compute
from internvlu_jax.config_files import read_config
from internvlu_jax.decode.blocks import _begin, _go_on
from internvlu_jax.decode.generate import _search, _write, generate
from internvlu_jax.decode.model import LanguageModel, extend, grown, prefill, read_further
from internvlu_jax.decode.settings import Rules, TextSettings
from internvlu_jax.models.internvlu import InternVLU, modules, param_shapes
from internvlu_jax.models.qwen3 import KVCache, as_list
from internvlu_jax.presets import debug_config, small_config
from internvlu_jax.processing.tokenizer import SPECIAL_TABLE
from internvlu_jax.utils.seeds import numbered_keys
from tests.conftest import sizes_only
from tests.helpers.measures import assert_close
from tests.helpers.toy_text import PAD, PROMPTS, Toy, pad_prompts, texts, toy_params, toy_settings, write

# Goldens


@pytest.fixture(scope="module")
def released(golden):
    """(golden, model, parameters of its language model) of one recorded checkpoint."""
    config = read_config(golden.checkpoint)
    added = json.loads((golden.checkpoint / "processor/added_tokens.json").read_text(encoding="utf-8"))
    model = InternVLU(config, tuple(added[token] for token in SPECIAL_TABLE))
    vlm = modules(config)["vlm"]
    template = jax.eval_shape(lambda: vlm.init(jax.random.key(0), method="build"))["params"]
    params, _ = convert(vlm_rules(config.vlm), open_part(golden.checkpoint / "vlm"), template)
    return golden, model, {"vlm": jax.tree.map(jnp.asarray, params)}


@sizes_only
@pytest.mark.parametrize("name", ["only", "image", "batch", "multi_image", "marks", "beam", "beam_stop"])
def test_golden_text(released, name):
    golden, model, params = released
    case, kwargs = golden.case(f"text_{name}"), golden.cases[f"text_{name}"]["kwargs"]
    added = json.loads((golden.checkpoint / "processor/added_tokens.json").read_text(encoding="utf-8"))
    stops = (added["<|im_end|>"], added["<img>"])
    lengths = case["proc_attention_mask"].sum(1)
    ids = np.zeros((len(lengths), 72), np.int32)  # one length for all cases, so that few programs are compiled
    for row, recorded, n in zip(ids, case["proc_input_ids"], lengths, strict=True):
        row[:n] = recorded[-n:]  # recorded with padding on the left
    shown = ids == added["<IMG_CONTEXT>"]
    index = np.where(shown, np.cumsum(shown).reshape(shown.shape) - 1, -1)
    visual = jnp.concatenate(case["vit_features"]) if shown.any() else None
    x = model.embed(params, jnp.asarray(ids), visual, jnp.asarray(index))

    model = LanguageModel(model)
    prompt = prefill(model, params, x, jnp.asarray(lengths), capacity=x.shape[1] + 16)
    got = generate(model, params, prompt, TextSettings(stop_ids=stops, pad_id=stops[0], buffer=16, **kwargs))

    assert_close(prompt.logits, case["prefill_last_logits"], what="prefill_last_logits")
    want = case["generated_tokens"]  # rows that end early are filled with <|im_end|>
    np.testing.assert_array_equal(np.asarray(got.tokens)[:, : want.shape[1]], want)
    assert int(got.lengths.max()) == want.shape[1]


# The cache


@pytest.fixture(scope="module")
def tiny():
    model = InternVLU(debug_config(), tuple(range(len(SPECIAL_TABLE))))
    vlm = modules(model.cfg)["vlm"]
    params = {"vlm": jax.jit(lambda key: vlm.init(key, method="build"))(jax.random.key(0))["params"]}
    # At initialisation every token predicts itself; larger weights write something.
    params = jax.tree.map(lambda p: 3 * p, params)
    return LanguageModel(model, reasoning=True), params


def test_decoding_is_the_full_forward(tiny):
    model, params = tiny
    prompts = [[10, 20, 30, 40, 50], [7, 8, 9, 10, 11, 12, 13, 14]]
    result = write(model, params, prompts, max_new_tokens=8)

    @jax.jit
    def full(params, ids):
        out = model.forward(params, model.embed(params, ids), jnp.arange(ids.shape[1])[None], None, True)
        return out, model.logits(params, out.last)[0].argmax(-1)

    for row, (prompt, text) in enumerate(zip(prompts, texts(result), strict=True)):
        ids = jnp.asarray([prompt + text])
        out, best = full(params, ids)
        assert text == best[len(prompt) - 1 : -1].tolist()
        fed = len(text) - 1
        want = out.captured[0, len(prompt) : len(prompt) + fed]
        assert_close(result.captured[row, :fed], want, what="captured")
        assert_close(result.cache.k[:, row, ..., : len(prompt) + fed], out.kv.k[:, 0, ..., :-1], what="keys")
        assert_close(result.cache.v[:, row, :, : len(prompt) + fed], out.kv.v[:, 0, :, :-1], what="values")
    assert len(set(texts(result)[0])) > 2  # it is no test if one token repeats


def test_extend_continues_a_prompt(tiny):
    model, params = tiny
    ids = jax.random.randint(jax.random.key(1), (2, 12), 0, 500)
    x = model.embed(params, ids)
    lengths = jnp.asarray([5, 8])
    prompt = prefill(model, params, x[:, :8], lengths, capacity=16)
    rest = jnp.stack([x[0, 5:9], x[1, 8:12]])
    captured, cache = extend(model, params, prompt.cache, rest, lengths)
    whole = prefill(model, params, x, jnp.asarray([9, 12]), capacity=16)
    for row, start in enumerate((5, 8)):
        assert_close(captured[row], whole.captured[row, start : start + 4])
        assert_close(cache.k[:, row, ..., : start + 4], whole.cache.k[:, row, ..., : start + 4])
        assert_close(cache.v[:, row, :, : start + 4], whole.cache.v[:, row, :, : start + 4])


@pytest.mark.slow
def test_beams_give_states_and_cache_of_the_chosen_text(tiny):
    model, params = tiny
    prompts = [[10, 20, 30, 40, 50], [7, 8, 9, 10, 11, 12, 13, 14]]
    result = write(model, params, prompts, max_new_tokens=8, num_beams=3)
    for row, (prompt, text) in enumerate(zip(prompts, texts(result), strict=True)):
        ids = jnp.asarray([prompt + text])
        out = model.forward(params, model.embed(params, ids), jnp.arange(ids.shape[1])[None], None, True)
        assert_close(result.captured[row, : len(text) - 1], out.captured[0, len(prompt) : -1])
        assert_close(result.cache.k[:, row, ..., : ids.shape[1] - 1], out.kv.k[:, 0, ..., :-1])


# All three


@pytest.mark.parametrize(
    "options",
    [{}, {"sample": True}, {"sample": True, "top_p": 0.8, "top_k": 4}, {"num_beams": 3, "repetition_penalty": 1.2}],
)
def test_a_row_is_written_alike_in_any_batch(options):
    options = dict(options)
    keys = numbered_keys(5, len(PROMPTS)) if options.pop("sample", False) else None
    model, params = Toy(), toy_params(4)
    together = texts(write(model, params, PROMPTS, keys=keys, **options))
    for row, prompt in enumerate(PROMPTS):
        key = None if keys is None else keys[row : row + 1]
        assert texts(write(model, params, [prompt], keys=key, **options)) == [together[row]]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_the_loop_ends_with_the_rows(num_beams):
    """Token 6 is always followed by the stop 0; other texts go on to the limit."""
    model, params = Toy(), toy_params(0)
    params = {name: jnp.zeros_like(value) for name, value in params.items()}
    params["embed"] = params["embed"].at[:, 0].set(1.0)
    params["place"] = params["place"].at[:].set(1.0)
    params["out"] = params["out"].at[0].set(jnp.asarray([-9.0, -9, -9, 0, -9, -9, 9]))
    params["embed"] = params["embed"].at[6].set(jnp.asarray([-99.0, 9, 0, 0, 0, 0, 0, 0]))
    params["out"] = params["out"].at[1].set(jnp.asarray([40.0, 0, 0, 0, 0, 0, 0]))
    result = write(model, params, [[3], [4, 5]], max_new_tokens=8, num_beams=num_beams)
    assert texts(result) == [[6, 0], [6, 0]]
    assert int(result.steps) <= num_beams  # two tokens need one step; a second finished beam may need one more
    assert (np.asarray(result.tokens)[:, 2:] == PAD).all()


def test_one_token_needs_no_step_and_its_row_is_padded():
    result = write(Toy(), toy_params(0), PROMPTS, max_new_tokens=1)
    assert int(result.steps) == 0 and result.tokens.shape == (4, 8)
    assert (np.asarray(result.lengths) == 1).all() and (np.asarray(result.tokens)[:, 1:] == PAD).all()


@pytest.mark.parametrize("options", [{}, {"top_p": 0.5, "sample": True}, {"num_beams": 2}])
def test_new_numbers_do_not_compile_again(options):
    options = dict(options)
    keys = numbered_keys(0, 4) if options.pop("sample", False) else None
    model = Toy()
    write(model, toy_params(0), PROMPTS, max_new_tokens=6, keys=keys, **options)
    traced = len(model.traced[0])
    write(model, toy_params(1), PROMPTS[::-1], max_new_tokens=3, keys=keys, **options)
    if keys is not None:
        write(model, toy_params(1), PROMPTS, keys=keys, top_p=0.9, temperature=0.3)
    assert len(model.traced[0]) == traced
    write(model, toy_params(0), PROMPTS, max_new_tokens=6, buffer=9, keys=keys, **options)
    assert len(model.traced[0]) > traced  # the count does notice a compilation


@pytest.mark.parametrize("num_beams", [1, 2])
def test_the_cache_given_is_given_up(num_beams):
    model, params = Toy(), toy_params(0)
    ids, lengths = pad_prompts([[3, 4]])
    prompt = prefill(model, params, model.embed(params, ids), lengths, capacity=16)
    generate(model, params, prompt, toy_settings(4, 8, num_beams=num_beams))
    assert prompt.cache.k.is_deleted()


def cache_shapes(cfg) -> KVCache:
    """Of two rows with 4096 slots."""
    lead = (cfg.num_hidden_layers, 2, cfg.num_key_value_heads)
    last = (cfg.head_dim, 4096), (4096, cfg.head_dim)
    return KVCache(*(jax.ShapeDtypeStruct(lead + own, jnp.float32) for own in last))


@pytest.mark.parametrize(("num_beams", "caches"), [(1, 1), (4, 6)])
def test_the_loop_does_not_copy_the_cache(tiny, num_beams, caches):
    """Beside the cache given, which comes back in place: less than one more, in beam search less than its own twice."""
    model, params = tiny
    cfg = model.model.cfg.vlm.llm_config
    cache, number = cache_shapes(cfg), jax.ShapeDtypeStruct((), jnp.int32)
    rows, logits = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((2, cfg.vocab_size), jnp.float32)
    model = LanguageModel(model.model)
    if num_beams == 1:
        rules = Rules(rows, rows, number, None, jax.ShapeDtypeStruct((), jnp.float32), None, None, None)
        lowered = _write.lower(model, params, cache, logits, rules, number, buffer=32)
    else:
        given = (rows, logits, rows, number, number)
        lowered = _search.lower(model, params, cache, *given, buffer=32, num_beams=num_beams)
    compiled = lowered.compile()
    memory, size = compiled.memory_analysis(), sum(4 * leaf.size for leaf in cache)
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < caches * size


def test_a_block_does_not_copy_the_cache(tiny):
    model, params = LanguageModel(tiny[0].model), tiny[1]
    cfg = model.model.cfg.vlm.llm_config
    cache = cache_shapes(cfg)
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
    model, params = LanguageModel(tiny[0].model), tiny[1]
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
    assert got.cache.slots == 32


def test_a_token_reads_the_weights_and_the_cache_once():
    """With a list of layers: the bytes that the compiled step touches, and no array of a layer's size but the cache."""
    cfg, slots = small_config(), 1024
    llm = cfg.vlm.llm_config
    params = {"llm": param_shapes(cfg)["vlm"]["llm"]}
    params["llm"]["layers"] = jax.eval_shape(as_list, params["llm"]["layers"])
    heads, width = llm.num_key_value_heads, llm.head_dim
    k, v = (jax.ShapeDtypeStruct((1, heads, *last), jnp.float32) for last in ((width, slots), (slots, width)))
    cache = KVCache(llm.num_hidden_layers * (k,), llm.num_hidden_layers * (v,))
    model = LanguageModel(InternVLU(cfg, tuple(range(len(SPECIAL_TABLE))), Compute(layers="unrolled")))
    one, row = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((), (1,)))
    logits, heat = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, llm.vocab_size), ()))
    rules = Rules(row, row, one, None, heat, None, None, None)
    compiled = _write.lower(model, {"vlm": params}, cache, logits, rules, one, buffer=32).compile()
    cached = sum(4 * leaf.size for leaf in jax.tree.leaves(cache))
    read = sum(4 * leaf.size for leaf in jax.tree.leaves(params)) - 4 * params["llm"]["embed"]["embedding"].size
    assert read + cached < compiled.cost_analysis()["bytes accessed"] < 1.2 * (read + cached)
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * k.size
    made = re.findall(rf"= f32\[1,{slots},{llm.num_key_value_heads},{llm.head_dim}\]\S* ([\w-]+)\(", compiled.as_text())
    assert {"copy", "slice", "transpose", "convert"}.isdisjoint(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 9}, "max_new_tokens is 9"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "keys": numbered_keys(0, 4)}, "beam search draws nothing"),
        ({"keys": numbered_keys(0, 4), "temperature": 0.0}, "temperature is 0"),
        ({"keys": numbered_keys(0, 4), "top_p": 1.5}, "top_p is 1.5"),
        ({"keys": numbered_keys(0, 4), "top_k": 0}, "top_k is 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        write(Toy(), toy_params(0), PROMPTS, **options)


def test_the_cache_must_have_room():
    model, params = Toy(), toy_params(0)
    x = model.embed(params, jnp.ones((1, 8), jnp.int32))
    with pytest.raises(ValueError, match="capacity is 4"):
        prefill(model, params, x, jnp.asarray([8]), capacity=4)
    prompt = prefill(model, params, x, jnp.asarray([8]), capacity=8)
    with pytest.raises(ValueError, match="8 slots"):
        generate(model, params, prompt, toy_settings(4, 8))
