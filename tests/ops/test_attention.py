"""Every way of computing attention against float64 numpy, in value and gradient, and which of them runs."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from internvlu_jax.ops.attention import attention, blocks, choice, resolve_implementation
from internvlu_jax.ops.attention.chunked import chunked_attention
from internvlu_jax.ops.attention.plain import plain_attention
from internvlu_jax.ops.attention.splash import splash_attention
from tests.helpers.measures import assert_close


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def reference_attention(q, k, v, causal=False, lengths=None, mask=None):
    """One query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    batch, queries, heads, width = q.shape
    for b, i, j in np.ndindex(batch, queries, heads):
        kv = j // (heads // k.shape[2])
        seen = np.ones(k.shape[1], bool)
        if causal:
            seen[i + 1 :] = False
        if lengths is not None:
            seen[lengths[b] :] = False
        if mask is not None:
            seen &= np.broadcast_to(mask, (batch, queries, k.shape[1]))[b, i]
        scores = k[b, seen, kv] @ q[b, i, j] / np.sqrt(width)
        weights = np.exp(scores - scores.max())
        out[b, i, j] = weights @ v[b, seen, kv] / weights.sum()
    return out


MASK = np.random.default_rng(0).random((2, 5, 7)) < 0.5
MASK[:, :, 0] = True
CASES = {
    "all keys": {},
    "causal": {"causal": True},
    "lengths": {"lengths": np.array([3, 7])},
    "mask": {"mask": MASK},
    "mask for all rows": {"mask": MASK[:1]},
    "mask for all queries": {"mask": MASK[:, :1]},
    "all of them": {"causal": True, "lengths": np.array([2, 6]), "mask": MASK},
}


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_equals_reference(heads, case):
    q, k, v = random(0, 2, 5, heads[0], 8), random(1, 2, 7, heads[1], 8), random(2, 2, 7, heads[1], 8)
    args = dict(CASES[case])
    want = reference_attention(q, k, v, **args)
    lengths, mask = args.pop("lengths", None), args.pop("mask", None)
    lengths = None if lengths is None else jnp.asarray(lengths)
    mask = None if mask is None else jnp.asarray(mask)
    assert_close(plain_attention(q, k, v, args.pop("causal", False), lengths, None, mask), want, 1e-6)


def test_a_query_that_sees_no_key_is_finite_and_so_is_its_gradient():
    q, k, v = (random(i, 1, 3, 2, 8) for i in range(3))
    lengths = jnp.array([0])
    out, pull = jax.vjp(lambda *qkv: attention(*qkv, key_lengths=lengths), q, k, v)
    for array in (out, *pull(jnp.ones_like(out))):
        assert np.isfinite(np.asarray(array)).all()


def test_attention_in_bfloat16_has_a_float32_softmax():
    q, k, v = (random(i, 1, 64, 2, 16) for i in range(3))
    low = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    got = attention(*low)
    assert got.dtype == jnp.bfloat16
    assert_close(got.astype(jnp.float32), reference_attention(*low), 5e-3)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="5 query heads are not a multiple of 2"):
        attention(random(0, 1, 2, 5, 8), random(1, 1, 2, 2, 8), random(2, 1, 2, 2, 8))


def test_implementation_is_resolved_by_what_can_run(monkeypatch):
    assert resolve_implementation("auto", jnp.bfloat16, 128) == "xla"
    with pytest.raises(ValueError, match="CUDA device"):
        resolve_implementation("cudnn", jnp.bfloat16, 128)
    with pytest.raises(ValueError, match="expected 'auto', 'xla', 'chunked', 'cudnn' or 'splash'"):
        resolve_implementation("flash", jnp.bfloat16, 128)
    monkeypatch.setattr(choice, "_cuda_capability", lambda: 9.0)
    assert resolve_implementation("auto", jnp.bfloat16, 128) == "cudnn"
    assert resolve_implementation("xla", jnp.bfloat16, 128) == "xla"
    cannot = [
        ((jnp.float32, 128, False), "bfloat16 or float16"),
        ((jnp.bfloat16, 12, False), "multiple of 8"),
        ((jnp.bfloat16, 256, False), "at most 128"),
        ((jnp.bfloat16, 128, True), "this call has segments"),
    ]
    for (*args, segments), reason in cannot:
        assert resolve_implementation("auto", *args, has_segments=segments) == "xla"
        with pytest.raises(ValueError, match=reason):
            resolve_implementation("cudnn", *args, has_segments=segments)
    monkeypatch.setattr(choice, "_cuda_capability", lambda: 7.5)
    assert resolve_implementation("auto", jnp.bfloat16, 128) == "xla"


def test_cudnn_is_given_the_same_problem(monkeypatch):
    """cuDNN needs a GPU; JAX's XLA path takes the same arguments, so it stands in for it."""
    in_jax = jax.nn.dot_product_attention

    def stand_in(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        assert not any(x.shape[1] % 2 for x in args), "JAX refuses gradients of odd lengths"
        return in_jax(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(choice, "_cuda_capability", lambda: 9.0)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    q, k, v = (random(i, 2, 5, n, 8).astype(jnp.bfloat16) for i, n in enumerate((4, 2, 2)))
    for args in ({}, {"causal": True}, {"key_lengths": jnp.array([2, 5])}):
        got = attention(q, k, v, implementation="cudnn", **args)
        want = attention(q, k, v, implementation="xla", **args)
        assert_close(got.astype(jnp.float32), want.astype(jnp.float32), 5e-3)


# Values and gradients of every way

SEGMENTS = np.stack([np.repeat([1, 2, 3, 0], parts) for parts in ([10, 20, 15, 5], [25, 9, 10, 6])])
RULES = {
    "all keys": {},
    "causal": {"causal": True},
    "lengths": {"lengths": np.array([33, 50])},
    "segments": {"segments": SEGMENTS},
    "causal lengths": {"causal": True, "lengths": np.array([33, 50])},
    "causal segments": {"causal": True, "segments": SEGMENTS},
}
PATHS = {
    "xla": plain_attention,
    "chunked": partial(chunked_attention, chunk=(16, 32)),
    "splash": partial(splash_attention, interpret=True),
}


def reference_gradients(q, k, v, d_out, causal=False, lengths=None, segments=None):
    """Output, and gradients of queries, keys and values, in float64, from the derivative of a softmax written out."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    group, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    seen = np.ones((q.shape[0], q.shape[1], k.shape[1]), bool)
    if causal:
        seen &= np.tri(q.shape[1], k.shape[1], dtype=bool)
    if lengths is not None:
        seen &= (np.arange(k.shape[1]) < lengths[:, None])[:, None]
    if segments is not None:
        seen &= segments[:, :, None] == segments[:, None]
    wide_k, wide_v = (np.repeat(x, group, axis=2) for x in (k, v))
    scores = np.where(seen[:, None], np.einsum("bsnh,btnh->bnst", q, wide_k) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = np.einsum("bsnh,btnh->bnst", d_out, wide_v)
    d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True)) * scale

    def of_keys(x):
        return x.reshape(*x.shape[:2], -1, group, x.shape[3]).sum(3)

    return (
        np.einsum("bnst,btnh->bsnh", weights, wide_v),
        np.einsum("bnst,btnh->bsnh", d_scores, wide_k),
        of_keys(np.einsum("bnst,bsnh->btnh", d_scores, q)),
        of_keys(np.einsum("bnst,bsnh->btnh", weights, d_out)),
    )


@partial(jax.jit, static_argnums=(0, 5))
def value_and_gradients(path, q, k, v, d_out, causal, lengths, segments):
    out, pull = jax.vjp(lambda q, k, v: PATHS[path](q, k, v, causal, lengths, segments), q, k, v)
    return out, *pull(d_out)


def inputs(queries, heads, width):
    """q, k, v, and the gradient of the output."""
    tokens, heads = (queries, 50, 50, queries), (heads[0], heads[1], heads[1], heads[0])
    return [random(i, 2, tokens[i], heads[i], width) for i in range(4)]


def check(path, rule, queries=50, heads=(4, 2), width=64):
    arguments, rules = inputs(queries, heads, width), RULES[rule]
    given = [
        None if rules.get(name) is None else jnp.asarray(rules[name], jnp.int32) for name in ("lengths", "segments")
    ]
    got = value_and_gradients(path, *arguments, rules.get("causal", False), *given)
    for name, a, b in zip(("value", "dq", "dk", "dv"), got, reference_gradients(*arguments, **rules), strict=True):
        assert_close(a, b, 2e-6, what=name)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("path", ["xla", "chunked"])
def test_values_and_gradients_equal_reference(path, rule):
    check(path, rule)


@pytest.mark.parametrize("rule", ["lengths", "causal segments"])
def test_the_kernel_equals_reference(rule):
    check("splash", rule)


@pytest.mark.parametrize("path", PATHS)
def test_wide_heads_and_fewer_queries_than_keys(path):
    check(path, "lengths", queries=21, heads=(2, 2), width=128)


@pytest.mark.parametrize("path", PATHS)
def test_a_token_stays_when_another_segment_moves(path):
    arguments, segments = inputs(50, (4, 2), 64), jnp.asarray(SEGMENTS, jnp.int32)
    run = partial(value_and_gradients, path)
    moved = (SEGMENTS == 1)[:, :, None, None]
    before = run(*arguments, True, None, segments)
    after = run(*(jnp.where(moved, x + 1, x) for x in arguments), True, None, segments)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.where(moved, 0, a), np.where(moved, 0, b))
        assert not np.array_equal(a, b)


@pytest.mark.parametrize("path", PATHS)
def test_a_row_without_keys_is_finite_and_so_are_gradients(path):
    """And the other row does not see that it is there."""
    arguments, lengths = inputs(50, (4, 2), 64), jnp.array([0, 50])
    got = value_and_gradients(path, *arguments, False, lengths, None)
    assert all(np.isfinite(x).all() for x in got)
    for x, want in zip(got, reference_gradients(*(x[1:] for x in arguments)), strict=True):
        assert_close(x[1:], want, 2e-6)


def test_chunks_pass_over_blocks_that_nobody_sees():
    """What stands in them is not even looked at."""
    q, k, v, _ = inputs(50, (4, 2), 64)
    v = v.at[:, 32:].set(jnp.nan)
    chunked = jax.jit(PATHS["chunked"], static_argnums=3)
    assert np.isfinite(chunked(q, k, v, False, jnp.array([32, 20]), None)).all()
    causal = np.asarray(chunked(q, k, v, True, None, None))
    assert np.isfinite(causal[:, :32]).all() and np.isnan(causal[:, 48:]).all()
    apart = jnp.broadcast_to((jnp.arange(50) >= 32).astype(jnp.int32), (2, 50))
    assert np.isfinite(np.asarray(chunked(q, k, v, False, None, apart))[:, :32]).all()


def largest(function, *shapes):
    """Entries of the largest array in a program."""
    sizes = re.findall(r"tensor<((?:\d+x)+)[a-z]\w+>", jax.jit(function).trace(*shapes).lower().as_text())
    return max(math.prod(map(int, size.split("x")[:-1])) for size in sizes)


def test_chunks_hold_no_array_of_all_scores():
    tokens = 4096
    shapes = [jax.ShapeDtypeStruct((1, tokens, heads, 64), jnp.bfloat16) for heads in (2, 1, 1, 2)]

    def run(path, q, k, v, d_out):
        return jax.vjp(lambda *qkv: PATHS[path](*qkv, True, None, None), q, k, v)[1](d_out)

    assert largest(partial(run, "xla"), *shapes) == 2 * tokens**2
    assert largest(partial(run, "chunked"), *shapes) <= 2 * tokens * 64


def test_a_scan_over_layers_stacks_no_masks_of_chunks():
    """JAX takes out of a scan what is the same in every layer, and of lengths alone that would be every mask."""
    tokens = 2048

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, lengths):
            x = x * self.param("scale", nn.initializers.ones, (64,))
            return chunked_attention(x, x, x, False, lengths, None), None

    scanned = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=3)
    shapes = jax.ShapeDtypeStruct((1, tokens, 1, 64), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(scanned().init, jax.random.key(0), *shapes)
    gradient = jax.grad(lambda *args: scanned().apply(*args)[0].sum())
    assert largest(gradient, params, *shapes) <= 3 * tokens * 64


def test_chunks_in_bfloat16_sum_in_float32():
    low = [x.astype(jnp.bfloat16) for x in inputs(50, (4, 2), 64)]
    got = value_and_gradients("chunked", *low, True, None, None)
    assert {x.dtype for x in got} == {jnp.bfloat16.dtype}
    for a, b in zip(got, reference_gradients(*low, causal=True), strict=True):
        assert_close(a.astype(jnp.float32), b, 6e-3)


def test_no_path_is_given_what_it_cannot_do():
    q, k, v, _ = inputs(50, (4, 2), 64)
    with pytest.raises(ValueError, match="20 queries and 50 keys"):
        attention(q[:, :20], k, v, segment_ids=jnp.asarray(SEGMENTS))
    with pytest.raises(ValueError, match="needs a TPU"):
        attention(q, k, v, implementation="splash")


def test_auto_takes_the_kernel_on_a_tpu_and_chunks_where_scores_are_many(monkeypatch):
    def resolved(dtype=jnp.bfloat16, width=128, segments=False, keys=1024, scores=2**25):
        return resolve_implementation("auto", dtype, width, has_segments=segments, keys=keys, scores=scores)

    assert resolved() == "chunked"
    assert resolved(scores=blocks.CHUNKED_SCORES) == resolved(keys=blocks.CHUNKED_KEYS) == "xla"
    monkeypatch.setattr(choice, "_cuda_capability", lambda: 9.0)
    assert (resolved(), resolved(dtype=jnp.float32), resolved(segments=True)) == ("cudnn", "chunked", "chunked")
    monkeypatch.setattr(choice, "_cuda_capability", lambda: 0.0)
    monkeypatch.setattr(choice, "_on_tpu", lambda: True)
    assert resolved() == resolved(width=64, segments=True, dtype=jnp.float32) == "splash"
    assert (resolved(keys=100), resolved(width=96)) == ("xla", "chunked")


def test_blocks_cut_rows_evenly():
    assert [blocks.even_block(tokens, 256) for tokens in (1, 256, 257, 1152)] == [16, 256, 144, 240]
    assert blocks.even_block(38, 10) == 16  # over 10, which is no multiple of 16
    assert [blocks.splash_block(tokens) for tokens in (50, 1025, 4224, 8620)] == [128, 384, 512, 512]
