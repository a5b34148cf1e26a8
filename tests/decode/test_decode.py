"""Writing text: against the goldens, against full forwards, and against searches and sums done by hand."""

import itertools
import json
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.engine import convert
from converters.tensors import open_part
from converters.vlm import vlm_rules
from internvlu_jax.config import Compute
from internvlu_jax.config_files import read_config
from internvlu_jax.decode.beam import search
from internvlu_jax.decode.generate import _search, _write, generate
from internvlu_jax.decode.model import LanguageModel, extend, prefill
from internvlu_jax.decode.sampling import choose
from internvlu_jax.models.internvlu import InternVLU, modules, param_shapes
from internvlu_jax.models.layers import unstack
from internvlu_jax.models.qwen3 import KVCache, Qwen3Output
from internvlu_jax.presets import debug_config, small_config
from internvlu_jax.processing.tokenizer import SPECIAL_TABLE
from internvlu_jax.utils.seeds import numbered_keys
from tests.conftest import sizes_only
from tests.helpers.measures import assert_close

STOPS, PAD = (0, 1), 2


@dataclass(frozen=True)
class Toy:
    """The state of a token is tanh of a sum over all tokens up to it, each weighted by its place; the cache holds the
    summands. So a wrong, stale or unordered cache changes what is written. Counts how often it is traced."""

    traced: tuple[list, ...] = ([],)
    capture: tuple[int, ...] = ()

    def __hash__(self):
        return id(self.traced[0])

    def embed(self, params, ids):
        return params["embed"][ids]

    def forward(self, params, x, positions, cache, return_kv):
        self.traced[0].append(x.shape)
        if cache is None:
            cache = KVCache(jnp.zeros((1, *x.shape[:2], 1, x.shape[2])), jnp.zeros((1, *x.shape[:2], 1, 1)))
        k = cache.k.at[0, jnp.arange(x.shape[0])[:, None], positions, 0].set(x)
        seen = jnp.arange(k.shape[2]) <= positions[..., None]
        state = jnp.tanh(jnp.einsum("bst,t,btd->bsd", seen, params["place"][: k.shape[2]], k[0, :, :, 0]))
        return Qwen3Output(state, state if self.capture else None, KVCache(k, cache.v))

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


def write(model, params, prompts, max_new_tokens=6, buffer=8, **options):
    ids, lengths = pad_prompts(prompts)
    prompt = prefill(model, params, model.embed(params, ids), lengths, capacity=ids.shape[1] + buffer)
    return generate(model, params, prompt, stop_ids=STOPS, pad_id=PAD, max_new_tokens=max_new_tokens, buffer=buffer,
                    **options)  # fmt: skip


def texts(result):
    return [row[:n].tolist() for row, n in zip(np.asarray(result.tokens), np.asarray(result.lengths), strict=True)]


PROMPTS = [[3, 4, 5], [6, 2, 2, 5, 3, 4, 4, 6], [5], [2, 6, 3, 3]]


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
    got = generate(model, params, prompt, stop_ids=stops, pad_id=stops[0], buffer=16, **kwargs)

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
        assert_close(result.cache.k[:, row, : len(prompt) + fed], out.kv.k[:, 0, :-1], what="keys")
        assert_close(result.cache.v[:, row, : len(prompt) + fed], out.kv.v[:, 0, :-1], what="values")
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
        assert_close(cache.k[:, row, : start + 4], whole.cache.k[:, row, : start + 4])


def test_beams_give_states_and_cache_of_the_chosen_text(tiny):
    model, params = tiny
    prompts = [[10, 20, 30, 40, 50], [7, 8, 9, 10, 11, 12, 13, 14]]
    result = write(model, params, prompts, max_new_tokens=8, num_beams=3)
    for row, (prompt, text) in enumerate(zip(prompts, texts(result), strict=True)):
        ids = jnp.asarray([prompt + text])
        out = model.forward(params, model.embed(params, ids), jnp.arange(ids.shape[1])[None], None, True)
        assert_close(result.captured[row, : len(text) - 1], out.captured[0, len(prompt) : -1])
        assert_close(result.cache.k[:, row, : ids.shape[1] - 1], out.kv.k[:, 0, :-1])


# Beam search


def beam_by_hand(params, prompt, num_beams, limit, penalty=1.0):
    """The rules in `decode.beam`'s docstring on lists of (score, text), for one row and without a cache."""
    running, finished = [(0.0, [])], []
    for count in range(1, limit + 1):
        longer = [
            (score + step, [*text, token])
            for score, text in running
            for token, step in enumerate(penalised_by_hand(toy_log_probs(params, prompt + text), text, penalty))
        ]
        longer = sorted(longer, key=lambda item: -item[0])[: 3 * num_beams]
        ends = [text[-1] in STOPS or count == limit for _, text in longer]
        new = [(s / count, text) for (s, text), end in list(zip(longer, ends, strict=True))[:num_beams] if end]
        finished = sorted(finished + new, key=lambda item: -item[0])[:num_beams]
        running = [item for item, end in zip(longer, ends, strict=True) if not end][:num_beams]
        if not running or (len(finished) == num_beams and running[0][0] / count <= finished[-1][0]):
            break
    return finished[0][1]


@pytest.mark.parametrize("num_beams", [2, 4])
def test_beam_search_follows_its_rules(num_beams):
    model, seen = Toy(), set()
    for seed in range(12):
        params = toy_params(seed)
        got = texts(write(model, params, PROMPTS, num_beams=num_beams))
        assert got == [beam_by_hand(params, prompt, num_beams, 6) for prompt in PROMPTS], seed
        seen.update(map(len, got))
    assert len(seen) > 2  # stops and the limit both end texts
    assert len(model.traced[0]) <= 3  # traced once for the prompt and once for the loop


def penalised_by_hand(scores, text, penalty):
    return [(s / penalty if s > 0 else s * penalty) if token in text else s for token, s in enumerate(scores)]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_repetition_costs_what_it_should(num_beams):
    """Greedily on what the output layer gives, in beam search on log probabilities; tokens of the prompt are free."""
    model, changed = Toy(), 0
    for seed in range(8):
        params = toy_params(seed)
        got = texts(write(model, params, PROMPTS, num_beams=num_beams, repetition_penalty=1.7))
        for prompt, text in zip(PROMPTS, got, strict=True):
            if num_beams > 1:
                want = beam_by_hand(params, prompt, num_beams, 6, 1.7)
            else:
                want = []
                while len(want) < 6 and not set(want) & set(STOPS):
                    want.append(int(np.argmax(penalised_by_hand(toy_logits(params, prompt + want), want, 1.7))))
            assert text == want, seed
        changed += got != texts(write(model, params, PROMPTS, num_beams=num_beams))
    assert changed > 2


def test_enough_beams_search_everything():
    """With a beam for every beginning, the best text of all is found: none longer than 3, two stops, 5 tokens."""
    model, params = Toy(), toy_params(3, vocabulary=5)
    free = [token for token in range(5) if token not in STOPS]
    got = texts(write(model, params, [[3, 4], [2]], max_new_tokens=3, num_beams=64))

    def mean(prompt, text):
        return np.mean([toy_log_probs(params, prompt + text[:i])[text[i]] for i in range(len(text))])

    for prompt, text in zip([[3, 4], [2]], got, strict=True):
        everything = [[*head, stop] for n in (0, 1, 2) for head in itertools.product(free, repeat=n) for stop in STOPS]
        everything += [list(head) for head in itertools.product(free, repeat=3)]
        assert text == max(everything, key=lambda t: mean(prompt, t))


def test_one_beam_is_greedy():
    model = Toy()
    search_jitted = jax.jit(search, static_argnums=(0, 8, 9))
    for seed in range(5):
        params = toy_params(seed)
        ids, lengths = pad_prompts(PROMPTS)
        prompt = prefill(model, params, model.embed(params, ids), lengths, capacity=16)
        end = (jnp.asarray(STOPS), jnp.int32(PAD), jnp.int32(6))
        found = search_jitted(model, params, prompt.cache, prompt.lengths, prompt.logits, *end, 8, 1)
        assert texts(found) == texts(write(model, params, PROMPTS))


# Sampling


def chi_square(drawn, probabilities):
    expected = len(drawn) * probabilities
    counts = np.bincount(drawn, minlength=len(probabilities))
    return float(np.sum((counts - expected) ** 2 / expected))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_have_the_distribution(temperature):
    """6 degrees of freedom: 30 is exceeded in 4 of 100 000 draws, and the key is fixed."""
    model, params, count = Toy(), toy_params(0), 4000
    result = write(model, params, [[3, 4, 5]] * count, 2, keys=numbered_keys(0, count), temperature=temperature)
    first, second = np.asarray(result.tokens)[:, :2].T

    def wanted(history):
        p = np.exp(toy_log_probs(params, history) / temperature)
        return p / p.sum()

    assert chi_square(first, wanted([3, 4, 5])) < 30
    common = max((t for t in range(7) if t not in STOPS), key=lambda t: np.sum(first == t))
    assert chi_square(second[first == common], wanted([3, 4, 5, common])) < 30


def test_the_nucleus_holds_the_token_that_crosses_it():
    """Sampling at temperature 2 from p**2: the nucleus is that of p, so the temperature comes first."""
    p = np.array([0.05, 0.5, 0.15, 0.3])
    logits = jnp.broadcast_to(jnp.asarray(2 * np.log(p), jnp.float32), (2000, 4))
    for top_p, kept in [
        (0.01, {1}),
        (0.45, {1}),
        (0.55, {1, 3}),
        (0.79, {1, 3}),
        (0.81, {1, 2, 3}),
        (0.96, {0, 1, 2, 3}),
    ]:
        drawn = np.asarray(choose(logits, numbered_keys(1, 2000), 0, 2.0, top_p))
        assert set(drawn.tolist()) == kept
        inside = np.where(np.isin(np.arange(4), list(kept)), p, 1e-30)
        assert chi_square(drawn, inside / inside.sum()) < 30


@pytest.mark.parametrize(("top_k", "top_p"), [(1, None), (2, None), (3, None), (9, None), (2, 0.6), (3, 0.8), (3, 0.9)])
def test_the_best_so_many_are_drawn_from_and_the_nucleus_is_that_of_these(top_k, top_p):
    """In float64: of 0.3, 0.5, 0.05, 0.15 the best two have the nucleus 0.6 of one token, 0.5 / 0.8."""
    p = np.array([0.3, 0.5, 0.05, 0.15])
    best = np.argsort(-p)[:top_k]
    before = np.cumsum(p[best]) / p[best].sum() - p[best] / p[best].sum()
    kept = best if top_p is None else best[before < top_p]
    logits = jnp.broadcast_to(jnp.asarray(2 * np.log(p), jnp.float32), (2000, 4))
    drawn = np.asarray(choose(logits, numbered_keys(1, 2000), 0, 2.0, top_p, top_k))
    assert set(drawn.tolist()) == set(kept.tolist())
    inside = np.where(np.isin(np.arange(4), kept), p, 1e-30)
    assert chi_square(drawn, inside / inside.sum()) < 30


def test_a_tiny_nucleus_is_greedy():
    model, params = Toy(), toy_params(0)
    sampled = write(model, params, PROMPTS, keys=numbered_keys(0, len(PROMPTS)), top_p=1e-6)
    assert texts(sampled) == texts(write(model, params, PROMPTS))


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
    generate(model, params, prompt, stop_ids=STOPS, pad_id=PAD, max_new_tokens=4, buffer=8, num_beams=num_beams)
    assert prompt.cache.k.is_deleted()


@pytest.mark.parametrize(("num_beams", "caches"), [(1, 1), (4, 6)])
def test_the_loop_does_not_copy_the_cache(tiny, num_beams, caches):
    """Beside the cache given, which comes back in place: less than one more, in beam search less than its own twice."""
    model, params = tiny
    cfg = model.model.cfg.vlm.llm_config
    shape = (cfg.num_hidden_layers, 2, 4096, cfg.num_key_value_heads, cfg.head_dim)
    cache, number = KVCache(*2 * [jax.ShapeDtypeStruct(shape, jnp.float32)]), jax.ShapeDtypeStruct((), jnp.int32)
    rows, logits = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((2, cfg.vocab_size), jnp.float32)
    run = _write if num_beams == 1 else _search
    temperature = jax.ShapeDtypeStruct((), jnp.float32)
    rest, static = ((None, temperature, None), {}) if num_beams == 1 else ((), {"num_beams": num_beams})
    model = LanguageModel(model.model)
    lowered = run.lower(model, params, cache, rows, logits, rows, number, number, *rest, buffer=32, **static)
    compiled = lowered.compile()
    memory, size = compiled.memory_analysis(), 2 * 4 * np.prod(shape)
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < caches * size


def test_a_token_reads_the_weights_and_the_cache_once():
    """With a list of layers: the bytes that the compiled step touches, and no array of a layer's size but the cache."""
    cfg, slots = small_config(), 1024
    llm = cfg.vlm.llm_config
    params = {"llm": param_shapes(cfg)["vlm"]["llm"]}
    params["llm"]["layers"] = jax.eval_shape(unstack, params["llm"]["layers"])
    layer = jax.ShapeDtypeStruct((1, slots, llm.num_key_value_heads, llm.head_dim), jnp.float32)
    cache = KVCache(*2 * [llm.num_hidden_layers * (layer,)])
    model = LanguageModel(InternVLU(cfg, tuple(range(len(SPECIAL_TABLE))), Compute(layers="unrolled")))
    one, row = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((), (1,)))
    logits, heat = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, llm.vocab_size), ()))
    lowered = _write.lower(
        model, {"vlm": params}, cache, row, logits, row, one, one, None, heat, None, buffer=32
    )  # fmt: skip
    compiled = lowered.compile()
    cached = sum(4 * leaf.size for leaf in jax.tree.leaves(cache))
    read = sum(4 * leaf.size for leaf in jax.tree.leaves(params)) - 4 * params["llm"]["embed"]["embedding"].size
    assert read + cached < compiled.cost_analysis()["bytes accessed"] < 1.2 * (read + cached)
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * layer.size
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
        generate(model, params, prompt, stop_ids=STOPS, pad_id=PAD, max_new_tokens=4, buffer=8)
