"""The generation head's transformer: against the recorded numbers, and by its own properties."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from converters.engine import export
from converters.head import head_rules
from internvlu_jax.config import Compute, MMDiTConfig
from internvlu_jax.models.layers import MLP
from internvlu_jax.models.mmdit import Block, MMDiT
from internvlu_jax.ops.msrope import msrope_table
from internvlu_jax.ops.timestep import timestep_sinusoid
from internvlu_jax.processing.positions import msrope_positions
from tests.conftest import sizes_only
from tests.helpers.head import grouped_rows, load_head, load_mmdit, random_inputs, row_inputs, runs_of
from tests.helpers.measures import assert_close, channels_first, relative_l2

FORWARD, GRADIENT = 1e-5, 2e-5
CASES = ["t2i", "edit_resized"]  # the other cases are in test_flow


@pytest.fixture(scope="module")
def small() -> SimpleNamespace:
    """A transformer with random weights that are not their initial values."""
    cfg = MMDiTConfig(
        num_layers=3, num_attention_heads=2, attention_head_dim=16, joint_attention_dim=24, axes_dims_rope=(4, 6, 6)
    )
    return build_small(cfg)


def build_small(cfg: MMDiTConfig, compute: Compute = Compute()) -> SimpleNamespace:
    module = MMDiT(cfg, compute)

    def touch(module):
        context = module.embed_context(jnp.zeros((1, 1, cfg.joint_attention_dim)))
        table = jnp.zeros((1, 2, cfg.attention_head_dim // 2))
        return module(jnp.zeros((1, 2, 2, 16)), jnp.zeros(1), context, jnp.ones(1, jnp.int32), (table, table))

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), method=touch))["params"]
    rng = np.random.default_rng(1)

    def weights(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.2 * rng.normal(size=leaf.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(weights, shapes)
    return SimpleNamespace(cfg=cfg, module=module, params=params, apply=jax.jit(module.apply))


def apply(mmdit, **inputs):
    return mmdit.apply({"params": mmdit.params}, **inputs)


# Time


def test_sinusoid_rounds_as_recorded():
    """Arguments up to 1e6 agree bit for bit with the definition, under jit, for every time that a sampler uses."""
    times = np.arange(1001, dtype=np.float32)
    exponent = np.float32(-np.log(10000.0)) * np.arange(128, dtype=np.float32) / np.float32(128)
    frequencies = np.exp(exponent.astype(np.float64)).astype(np.float32)
    arguments = (np.float32(1000) * (times[:, None] * frequencies)).astype(np.float64)
    got = jax.jit(lambda t: timestep_sinusoid(t, jnp.float32))(times)
    want = np.concatenate([np.cos(arguments), np.sin(arguments)], axis=-1)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_sinusoid_casts_time_to_the_compute_dtype_first(golden):
    recorded = golden.component("timestep")
    got = jax.jit(timestep_sinusoid, static_argnums=1)(jnp.asarray(recorded["timesteps"]), jnp.bfloat16)
    want = jax.jit(timestep_sinusoid, static_argnums=1)(recorded["timesteps_rounded_bfloat16"], jnp.float32)
    np.testing.assert_array_equal(got, want)
    assert relative_l2(got, timestep_sinusoid(jnp.asarray(recorded["timesteps"]), jnp.float32)) > 0.1


@sizes_only
def test_recorded_time_embedding(golden):
    recorded, mmdit = golden.component("timestep"), load_mmdit(golden.checkpoint)
    width = mmdit.cfg.hidden_size
    time_embed = MLP(width, width, jax.nn.silu, Compute())

    @jax.jit
    def embed(times):
        return time_embed.apply({"params": mmdit.params["time_embed"]}, timestep_sinusoid(times, jnp.float32))

    assert_close(embed(recorded["timesteps"]), recorded["embedding"], FORWARD)
    assert_close(embed(recorded["timesteps_rounded_bfloat16"]), recorded["embedding_of_rounded"], FORWARD)


# Against the recorded head


def test_every_parameter_comes_from_one_tensor(golden):
    cfg, params = load_head(golden.checkpoint)
    tensors = load_file(golden.checkpoint / "generation_decoder/model.safetensors")
    back = export(head_rules(cfg), params)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name].read(), tensor, err_msg=name)


@sizes_only
def test_recorded_block(golden):
    """Two packed samples through block 0, each on its own."""
    recorded, mmdit = golden.component("mmdit_block"), load_mmdit(golden.checkpoint)
    block = jax.jit(Block(mmdit.cfg, Compute()).apply, static_argnums=5)
    params = {"params": jax.tree.map(lambda leaf: leaf[0], mmdit.params["blocks"])}
    bounds = recorded["cumulative_lengths"][0]
    for sample, (start, stop) in enumerate(pairwise(bounds)):
        (_, latents), (is_text, _) = runs_of(recorded["is_text"][0, start:stop])
        assert is_text
        hidden = recorded["hidden"][:, start:stop]
        rope = msrope_table(recorded["positions"][None, start:stop], mmdit.cfg.axes_dims_rope)
        time = jax.nn.silu(recorded["temb"][sample : sample + 1])
        tokens, seen = (jnp.asarray(hidden[:, :latents]), jnp.asarray(hidden[:, latents:])), jnp.array([stop - start])
        (image, text), _ = block(params, tokens, time, rope, seen, None)
        assert_close(jnp.concatenate([image, text], 1), recorded["output"][:, start:stop], FORWARD, f"sample {sample}")
        (noisy, _), _ = block(params, tokens, time, rope, seen, 3)
        assert_close(noisy, recorded["output"][:, start : start + 3], FORWARD, "as the last block")


@sizes_only
@pytest.mark.parametrize("name", CASES)
def test_recorded_velocity(golden, name):
    case, mmdit = golden.case(name), load_mmdit(golden.checkpoint)
    for rows in grouped_rows(case):
        for step in (0, 1):
            got = apply(mmdit, **row_inputs(case, rows, mmdit, step))
            assert_close(channels_first(got), case[f"dit{step}_velocity"][rows], FORWARD, f"step {step}, rows {rows}")


# Properties


def test_scan_equals_unrolled(small):
    """The stacked blocks in one scan, and one after the other with their slices of the weights."""
    rng = np.random.default_rng(0)
    width, rope = small.cfg.hidden_size, random_inputs(small)["rope"]
    tokens = tuple(jnp.asarray(rng.normal(size=(3, size, width)), jnp.float32) for size in (13, 7))
    time, seen = jnp.asarray(rng.normal(size=(3, width)), jnp.float32), jnp.asarray([16, 20, 14])
    run = jax.jit(lambda variables, *args: small.module.bind(variables).blocks(*args)[0])
    scanned = run({"params": small.params}, tokens, time, rope, seen)
    block = jax.jit(Block(small.cfg, Compute()).apply)
    for i in range(small.cfg.num_layers - 1):
        weights = {"params": jax.tree.map(lambda leaf, i=i: leaf[i], small.params["blocks"])}
        tokens, _ = block(weights, tokens, time, rope, seen)
    for got, want in zip(scanned, tokens, strict=True):
        assert_close(got, want, 1e-6)


def test_one_block_is_enough(small):
    shallow = build_small(replace(small.cfg, num_layers=1))
    assert "blocks" not in shallow.params
    assert apply(shallow, **random_inputs(shallow)).shape == (3, 4, 6, 16)


def test_padding_of_the_context_changes_nothing(small):
    inputs = random_inputs(small)
    inputs["context_lengths"] = jnp.asarray([4, 7, 1], jnp.int32)
    garbage = jnp.full((3, 5, small.cfg.hidden_size), 1e3)
    longer = inputs | {
        "context": jnp.concatenate([inputs["context"].at[0, 4:].set(-1e3), garbage], axis=1),
        "rope": tuple(jnp.pad(part, ((0, 0), (0, 5), (0, 0)), constant_values=0.3) for part in inputs["rope"]),
    }
    assert_close(apply(small, **longer), apply(small, **inputs), 1e-6)


def test_batch_equals_one_by_one(small):
    inputs = random_inputs(small)
    together = apply(small, **inputs)
    for row in range(3):
        one = {key: value[row : row + 1] for key, value in inputs.items() if key not in ("rope", "conditions")}
        one |= {"rope": inputs["rope"], "conditions": tuple(c[row : row + 1] for c in inputs["conditions"])}
        assert_close(apply(small, **one)[0], together[row], 1e-6)


def test_order_of_condition_pictures_is_in_their_positions_only(small):
    """Swapping two pictures together with their positions changes nothing; swapping only the pictures does."""
    inputs = random_inputs(small)
    first, second = inputs["conditions"]
    order = np.concatenate([np.arange(6), np.arange(10, 13), np.arange(6, 10), np.arange(13, 20)])
    swapped = inputs | {"conditions": (second, first)}
    moved = swapped | {"rope": tuple(part[:, order] for part in inputs["rope"])}
    want = apply(small, **inputs)
    assert_close(apply(small, **moved), want, 1e-6)
    renumbered = msrope_positions((2, 3), [(False, 7)], condition_grids=[(1, 3), (2, 2)])
    swapped["rope"] = msrope_table(renumbered[None], small.cfg.axes_dims_rope)
    assert relative_l2(apply(small, **swapped), want) > 1e-4


def test_one_stream_per_token(small):
    """Text weights act on context tokens only: with a context of length 0 they do not matter."""
    inputs = random_inputs(small)
    inputs["context_lengths"] = jnp.zeros(3, jnp.int32)

    def with_text_scaled(factor):
        params = {**small.params}
        for name in ("blocks", "last_block"):
            params[name] = {**params[name], "text": jax.tree.map(lambda leaf: factor * leaf, params[name]["text"])}
        return small.apply({"params": params}, **inputs)

    assert_close(with_text_scaled(3.0), with_text_scaled(1.0), 1e-6)


@sizes_only
def test_bfloat16_stays_near_float32(golden):
    """With the time rounded as the bfloat16 model rounds it, the rest is within 2e-2."""
    case = golden.case("edit_resized")
    exact, rounded = load_mmdit(golden.checkpoint), load_mmdit(golden.checkpoint, Compute(dtype="bfloat16"))
    inputs = row_inputs(case, grouped_rows(case)[0], exact)
    same_time = inputs["timestep"].astype(jnp.bfloat16).astype(jnp.float32)
    assert (same_time != inputs["timestep"]).all()
    want = apply(exact, **(inputs | {"timestep": same_time}))
    got = apply(rounded, **inputs)
    assert got.dtype == jnp.float32
    assert_close(got, want, 2e-2)


def test_without_a_gate_it_is_as_if_every_gate_were_open(small):
    """The gate's half of the query projection does not exist; a gate of sigmoid(100) is 1 in float32."""

    def split(path, leaf):
        if path[-2].key != "q":
            return leaf, leaf
        query, gate = np.split(np.asarray(leaf), 2, axis=-1)
        opened = np.full_like(gate, 100.0 if path[-1].key == "bias" else 0.0)
        return np.concatenate([query, opened], axis=-1), query

    both = jax.tree_util.tree_map_with_path(split, small.params)
    opened, ungated = (jax.tree.map(lambda p, n=n: p[n], both, is_leaf=lambda p: isinstance(p, tuple)) for n in (0, 1))
    plain = build_small(replace(small.cfg, gate=False))
    assert jax.tree.map(jnp.shape, plain.params) == jax.tree.map(jnp.shape, ungated)
    inputs = random_inputs(small)
    got, want = (m.apply({"params": p}, **inputs) for m, p in ((plain, ungated), (small, opened)))
    assert_close(got, want, 1e-6)
    assert relative_l2(got, apply(small, **inputs)) > 1e-2


def test_a_context_that_is_not_normalised(small):
    plain = build_small(replace(small.cfg, context_norm=False))
    params = {name: part for name, part in small.params.items() if name != "context_norm"}
    assert jax.tree.map(jnp.shape, plain.params) == jax.tree.map(jnp.shape, params)
    context = np.random.default_rng(0).normal(size=(2, 3, 24))
    kernel, bias = (np.asarray(params["context_in"][name], np.float64) for name in ("kernel", "bias"))
    embedded = plain.module.apply({"params": params}, jnp.asarray(context, jnp.float32), method="embed_context")
    assert_close(embedded, context @ kernel + bias, 1e-6)


def test_modulation_vectors_are_not_expanded_over_tokens(small):
    """No array of the traced computation is [b, s, 6, d] or larger than the MLP's hidden activations."""
    inputs = random_inputs(small, grid=(8, 8), conditions=())
    text = str(jax.make_jaxpr(lambda p: small.module.apply({"params": p}, **inputs))(small.params))
    width, tokens = small.cfg.hidden_size, 64 + 7
    assert f"3,64,{4 * width}" in text
    for shape in (f"3,64,6,{width}", f"3,{tokens},6,{width}", f"3,64,{6 * width}", f"3,{tokens},{6 * width}"):
        assert shape not in text


def test_last_block_computes_for_noisy_tokens_only(small):
    """In the last block no matrix product of the MLP or of the queries has more rows than noisy tokens."""
    inputs = random_inputs(small, grid=(2, 3), conditions=((2, 2),), context=7)
    shallow = build_small(replace(small.cfg, num_layers=1))
    text = str(jax.make_jaxpr(lambda p: shallow.module.apply({"params": p}, **inputs))(shallow.params))
    hidden = 4 * small.cfg.hidden_size
    assert f"3,6,{hidden}" in text
    assert f"3,10,{hidden}" not in text and f"3,7,{hidden}" not in text


def test_wrong_table_length_is_refused(small):
    inputs = random_inputs(small)
    inputs["rope"] = tuple(part[:, :-1] for part in inputs["rope"])
    with pytest.raises(ValueError, match="rope has 19 positions"):
        apply(small, **inputs)


def test_latents_that_do_not_divide_are_refused(small):
    inputs = random_inputs(small)
    inputs["latents"] = jnp.zeros((3, 3, 6, 16))
    with pytest.raises(ValueError, match="does not divide"):
        apply(small, **inputs)
