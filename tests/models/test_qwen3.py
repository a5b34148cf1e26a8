import re
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.engine import export
from internvlu_jax.config import Compute
from internvlu_jax.models.qwen3 import Block, KVCache, LayerCarry, Outputs, Shared, as_list
from internvlu_jax.ops.rope import rotary_table
from tests.helpers.measures import assert_close, relative_l2
from tests.helpers.vlm import build, cast, layer_of, load, rules_of, vlm_config

# Properties hold for any weights: one recorded model is enough.
one_model = pytest.mark.parametrize("golden", ["base"], indirect=True)


@pytest.fixture(scope="module")
def recorded(golden):
    """(config, parameters)."""
    return vlm_config(golden), load(golden, "llm")


@lru_cache
def runner(cfg, compute, capture, return_kv):
    """The jitted model, compiled once for each kind of call."""
    llm, _ = build(cfg, "llm", compute)

    def run(variables, x, positions, kwargs):
        x = llm.apply(variables, x, method="embed") if x.ndim == 2 else x
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return llm.apply(variables, x, positions, capture=capture, return_kv=return_kv, **kwargs)

    return jax.jit(run)


def apply(recorded, x, positions=None, *, compute=Compute(), params=None, capture=(), return_kv=False, **kwargs):
    """The language model on embeddings, or on ids."""
    cfg, own = recorded
    params = own if params is None else params
    return runner(cfg, compute, capture, return_kv)({"params": params}, x, positions, kwargs)


def left_padding(attention_mask):
    """(positions, segments) of rows in which `attention_mask` is 1 where there is a token."""
    segments = jnp.asarray(attention_mask, jnp.int32)
    return jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0), segments


def some_ids(recorded, shape, seed=0):
    return jax.random.randint(jax.random.key(seed), shape, 0, recorded[0].llm_config.vocab_size)


def test_hidden_states_and_logits_equal_recorded(golden, recorded):
    numbers = golden.component("llm")
    valid = numbers["attention_mask"] == 1
    assert not valid[:, 0].all(), "one row is padded on the left"
    positions, segments = left_padding(valid)
    states = numbers["hidden"]
    out = apply(
        recorded, jnp.asarray(numbers["input_ids"]), positions, segments=segments, capture=tuple(range(len(states)))
    )
    got = np.split(np.asarray(out.captured), len(states), axis=-1)
    for i, want in enumerate(states):
        assert_close(got[i][valid], want[valid], what=f"hidden state {i}")
    logits = build(recorded[0], "llm")[0].apply({"params": recorded[1]}, out.last, method="logits")
    assert logits.dtype == jnp.float32
    assert_close(np.asarray(logits)[valid], numbers["logits"][valid], what="logits")


@one_model
def test_capture_keeps_the_order_asked_and_counts_from_both_ends(recorded):
    layers, width = recorded[0].llm_config.num_hidden_layers, recorded[0].llm_config.hidden_size
    x = some_ids(recorded, (1, 5))
    every = apply(recorded, x, capture=tuple(range(layers + 1))).captured
    out = apply(recorded, x, capture=(-1, -2, 0))
    want = [every[..., -width:], every[..., -2 * width : -width], every[..., :width]]
    np.testing.assert_array_equal(out.captured, np.concatenate(want, axis=-1))
    np.testing.assert_array_equal(out.captured[..., :width], out.last)
    assert apply(recorded, x).captured is None
    with pytest.raises(ValueError, match="do not exist"):
        apply(recorded, x, capture=(layers + 1,))


def cross_entropy(llm, variables, ids, labels, positions, segments):
    """Mean next-token loss over the labels that are not -100; position i predicts label i + 1."""
    x = llm.apply(variables, ids, method="embed")
    logits = llm.apply(variables, llm.apply(variables, x, positions, segments=segments).last, method="logits")[:, :-1]
    target, counted = labels[:, 1:], labels[:, 1:] != -100
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(counted, target, 0)[..., None], axis=-1)
    return -jnp.sum(log_p[..., 0] * counted) / jnp.sum(counted)


@pytest.fixture(scope="module")
def next_token(golden, recorded):
    """compute -> (loss, gradients) on the recorded batch, and the recorded numbers."""
    numbers = golden.component("ntp_grad")
    positions, segments = left_padding(numbers["attention_mask"])
    ids, labels = jnp.asarray(numbers["input_ids"]), jnp.asarray(numbers["labels"])

    def run(compute):
        llm, _ = build(recorded[0], "llm", compute)
        loss = jax.value_and_grad(lambda p: cross_entropy(llm, {"params": p}, ids, labels, positions, segments))
        return jax.jit(loss)(recorded[1])

    return run, numbers, run(Compute())


@one_model  # of the other, `training.losses` is held to them
def test_next_token_loss_and_gradients_equal_recorded(recorded, next_token):
    _, numbers, (loss, gradients) = next_token
    assert_close(loss, numbers["loss"], what="loss")
    tensors = {
        name.removeprefix("language_model."): tensor.read()
        for name, tensor in export(rules_of(recorded[0], "llm"), jax.device_get(gradients)).items()
    }
    norms = {name.removeprefix("norm/") for name in numbers if name.startswith("norm/")}
    assert norms == set(tensors)
    for name, tensor in tensors.items():
        assert_close(np.linalg.norm(tensor.astype(np.float64)), numbers[f"norm/{name}"], 2e-5, f"norm of {name}")
        if f"grad/{name}" in numbers:
            assert_close(tensor, numbers[f"grad/{name}"], 2e-5, name)


@one_model
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_leaves_gradients_alone(next_token, remat):
    run, _, (want_loss, want) = next_token
    loss, got = run(Compute(remat=remat))
    assert_close(loss, want_loss, 1e-6)
    jax.tree.map(lambda a, b: assert_close(a, b, 2e-5), got, want)


@one_model
def test_scan_equals_unrolled(recorded):
    cfg, params = recorded[0].llm_config, recorded[1]
    x = jax.random.normal(jax.random.key(1), (2, 6, cfg.hidden_size))
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    shared = Shared(positions, rotary_table(positions, cfg.head_dim, cfg.rope_theta), None, Outputs((), True))
    stream, fresh, block = LayerCarry(x, None), [], jax.jit(Block(cfg).apply)
    for i in range(cfg.num_hidden_layers):
        stream, kv = block({"params": layer_of(params["layers"], i)}, stream, jnp.asarray(i), None, shared)
        fresh.append(kv)
    out = apply(recorded, x, capture=(cfg.num_hidden_layers - 1,), return_kv=True)
    assert_close(
        out.last, build(recorded[0], "llm")[0].apply({"params": params}, stream.x, method=lambda m, x: m.norm(x))
    )
    assert_close(out.kv.k, np.stack([kv.k for kv in fresh]), 1e-6)
    assert_close(out.kv.v, np.stack([kv.v for kv in fresh]), 1e-6)


@one_model
def test_prefill_and_decode_equal_the_whole_at_every_position(recorded):
    """Rows of lengths 7, 4 and 1, padded on the right, go on from their own ends until each has 10 tokens."""
    total, lengths = 10, np.array([7, 4, 1])
    ids = np.array(some_ids(recorded, (3, total)))
    whole = apply(recorded, jnp.asarray(ids), capture=(-1, -2))
    prompt = np.where(np.arange(7) < lengths[:, None], ids[:, :7], 0)
    out = apply(recorded, jnp.asarray(prompt), return_kv=True)
    for row, length in enumerate(lengths):
        assert_close(out.last[row, :length], whole.last[row, :length], what=f"prompt of row {row}")
    cache = out.kv.grown(2 + total)
    for step in range(total - lengths.min()):
        at = np.minimum(lengths + step, total - 1)  # a finished row writes its last token again
        tokens = jnp.asarray(ids[np.arange(3), at][:, None])
        out = apply(recorded, tokens, jnp.asarray(at[:, None]), cache=cache, capture=(-1, -2))
        cache = out.kv
        for row in range(3):
            assert_close(out.last[row, 0], whole.last[row, at[row]], what=f"row {row}, position {at[row]}")
            assert_close(out.captured[row, 0], whole.captured[row, at[row]], what=f"captured, row {row}")


@one_model
def test_several_tokens_at_once_go_on_from_a_cache(recorded):
    ids = some_ids(recorded, (2, 8))
    whole = apply(recorded, ids)
    empty = apply(recorded, ids, return_kv=True).kv
    empty = KVCache(jnp.full_like(empty.k, 7.0), jnp.full_like(empty.v, 7.0))
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    first = apply(recorded, ids[:, :5], positions[:, :5], cache=empty)
    second = apply(recorded, ids[:, 5:], positions[:, 5:], cache=first.kv)
    assert_close(np.concatenate([first.last, second.last], axis=1), whole.last)


@one_model
def test_a_list_of_layers_equals_a_stack(recorded):
    """Prompt, one token and several after it, captured states and cache, with `as_list`'s parameters and without."""
    cfg, params = recorded[0], recorded[1]
    ids = some_ids(recorded, (2, 9))
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    one_by_one = {**params, "layers": as_list(jax.tree.map(jnp.copy, params["layers"]))}
    assert not any(leaf.ndim > 3 for leaf in jax.tree.leaves(one_by_one["layers"]))
    found = []
    for compute, own in ((Compute(), params), (Compute(layers="unrolled"), one_by_one)):
        options = {"compute": compute, "params": own, "capture": (0, -2)}
        out = apply(recorded, ids[:, :5], return_kv=True, **options)
        cache = out.kv.grown(9)
        steps = [out]
        for at in (slice(5, 6), slice(6, 9)):
            steps.append(apply(recorded, ids[:, at], positions[:, at], cache=cache, **options))
            cache = steps[-1].kv
        found.append((np.concatenate([s.last for s in steps], 1), np.concatenate([s.captured for s in steps], 1),
                      *map(np.asarray, cache)))  # fmt: skip
    for want, got in zip(*found, strict=True):
        assert_close(got, want)
    assert_close(found[1][0], apply(recorded, ids).last)
    assert len(cache.k) == cfg.llm_config.num_hidden_layers and cache.k[0].ndim == 4


def cache_shapes(rows: int, slots: int, cfg) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Keys and values of one layer."""
    last = (cfg.head_dim, slots), (slots, cfg.head_dim)
    return tuple(jax.ShapeDtypeStruct((rows, cfg.num_key_value_heads, *own), jnp.float32) for own in last)


@one_model
@pytest.mark.parametrize("layers", ["scan", "unrolled"])
@pytest.mark.parametrize("rows", [1, 2])
def test_cache_is_updated_in_place(recorded, layers, rows):
    """The step that decodes one token, given its cache, allocates less than one more cache: a list of layers, less than
    one layer's keys."""
    cfg, params = recorded[0], recorded[1]
    c = cfg.llm_config
    llm, _ = build(cfg, "llm", Compute(layers=layers))
    k, v = cache_shapes(rows, 4096, c)
    if layers == "unrolled":
        params = {**params, "layers": jax.eval_shape(as_list, params["layers"])}
        cache = KVCache(c.num_hidden_layers * (k,), c.num_hidden_layers * (v,))
    else:
        cache = KVCache(*(jax.ShapeDtypeStruct((c.num_hidden_layers, *one.shape), jnp.float32) for one in (k, v)))
    step = jax.jit(lambda params, x, at, kv: llm.apply({"params": params}, x, at, cache=kv), donate_argnums=3)
    x, at = jax.ShapeDtypeStruct((rows, 1, c.hidden_size), jnp.float32), jax.ShapeDtypeStruct((rows, 1), jnp.int32)
    compiled = step.lower(params, x, at, cache).compile()
    layer = 4 * k.size
    room = layer if layers == "unrolled" else 2 * c.num_hidden_layers * layer
    assert compiled.memory_analysis().temp_size_in_bytes < room
    copied = [line for line in compiled.as_text().splitlines() if re.search(r"\b4096,\S* (copy|transpose)\(", line)]
    assert not copied, "no copy, not even of one layer"


@one_model
def test_left_padding_changes_nothing(recorded):
    ids = some_ids(recorded, (1, 6))
    padded = jnp.concatenate([jnp.full((1, 4), 3), ids], axis=1)
    positions, segments = left_padding(jnp.arange(10)[None] >= 4)
    got = apply(recorded, padded, positions, segments=segments, capture=(-2,))
    want = apply(recorded, ids, capture=(-2,))
    assert np.isfinite(np.asarray(got.last)).all(), "what padding computes is finite"
    assert_close(got.last[:, 4:], want.last)
    assert_close(got.captured[:, 4:], want.captured)


@one_model
def test_packed_rows_equal_separate_rows(recorded):
    lengths = (5, 3, 5)
    parts = [some_ids(recorded, (1, n), seed=n) for n in lengths]
    segments = jnp.asarray(np.repeat(np.arange(3), lengths))[None]
    positions = np.concatenate([np.arange(n) for n in lengths])
    packed = apply(recorded, jnp.concatenate(parts, axis=1), jnp.asarray(positions)[None], segments=segments)
    separate = [apply(recorded, part).last for part in parts]
    assert_close(packed.last, np.concatenate(separate, axis=1))


@one_model
def test_segments_and_cache_together_are_refused(recorded):
    ids = some_ids(recorded, (1, 2))
    kv = apply(recorded, ids, return_kv=True).kv
    with pytest.raises(ValueError, match="segments and cache together"):
        apply(recorded, ids, segments=jnp.ones((1, 2), jnp.int32), cache=kv)


@one_model
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16_is_close_to_float32(recorded, param_dtype):
    ids = some_ids(recorded, (2, 12))
    params = cast(recorded[1], param_dtype)
    want = apply(recorded, ids)
    got = apply(recorded, ids, compute=Compute(dtype="bfloat16"), params=params)
    assert got.last.dtype == jnp.bfloat16
    llm, _ = build(recorded[0], "llm", Compute(dtype="bfloat16"))
    logits = llm.apply({"params": params}, got.last, method="logits")
    assert logits.dtype == jnp.float32
    assert 0 < relative_l2(got.last.astype(jnp.float32), want.last) <= 2e-2


@one_model
def test_float32_parameters_are_cast_inside_the_layer(recorded):
    """A cast of the whole stack outside the scan would hold a second copy of all weights."""
    llm, shapes = build(recorded[0], "llm", Compute(dtype="bfloat16"))
    x, at = jnp.zeros((1, 2, recorded[0].llm_config.hidden_size)), jnp.zeros((1, 2), jnp.int32)
    outside = jax.make_jaxpr(lambda p: llm.apply({"params": p}, x, at).last)(shapes).eqns
    stacked = [v.aval for eqn in outside if eqn.primitive.name == "scan" for v in eqn.invars]
    kernel = shapes["layers"]["mlp"]["gate"]["kernel"].shape
    assert [aval.dtype for aval in stacked if aval.shape == kernel] == [jnp.float32] * 2
