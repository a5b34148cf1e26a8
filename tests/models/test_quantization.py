"""Weights in 8 bits: rounded as they should be, multiplied as they are, and where it does little harm."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from internvlu_jax.checkpoints import loading
from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.models import quantization
from internvlu_jax.models.internvlu import InternVLU, param_shapes
from internvlu_jax.models.layers import OutputsFirst, linear, merge_heads, outputs_first, stacked
from internvlu_jax.models.quantization import Kernel, quantize, quantized, spread
from internvlu_jax.utils.tree import from_paths, paths
from tests.conftest import Golden
from tests.helpers.measures import assert_close, relative_l2


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("path", "shape", "inputs"),
    [
        ("vlm/llm/layers/attn/q/kernel", (2, 6, 3, 4), (1,)),
        ("vlm/llm/layers/attn/out/kernel", (2, 3, 4, 6), (1, 2)),
        ("vlm/llm/lm_head/kernel", (6, 9), (0,)),
        ("head/mmdit/last_block/text/out/kernel", (3, 4, 6), (0, 1)),
    ],
)
def test_rounded_by_output(path, shape, inputs):
    """Against float64: an output's largest weight is 127.5 steps, and no weight is off by over half of one."""
    kernel = random(*shape)
    got = quantize("int8", path, kernel)
    steps = np.abs(kernel.astype(np.float64)).max(axis=inputs, keepdims=True) / 127.5
    assert got.values.dtype == np.int8 and got.scale.dtype == np.float32 and got.values.shape == shape
    assert_close(got.scale, steps.squeeze(inputs), 1e-6)
    assert np.abs(kernel - got.values * steps).max() <= 0.5001 * steps.max()
    assert (np.abs(got.values.astype(int)).max(axis=inputs) >= 127).all()


class Map(nn.Module):
    """One linear map as the models have them."""

    name_of: str

    @nn.compact
    def __call__(self, x):
        if self.name_of == "lm_head":
            return nn.Dense(7, use_bias=False, dtype=jnp.float32, dot_general=jax.lax.dot_general, name="lm_head")(x)
        return (
            merge_heads(5, Compute(), name="out") if self.name_of == "out" else linear((3, 4), Compute(), name="q")
        )(x)


MAPS = {
    "q": ((2, 3, 6), "bsd,dnh->bsnh"),
    "out": ((2, 3, 4, 6), "bsnh,nhd->bsd"),
    "lm_head": ((2, 3, 6), "bsd,dv->bsv"),
}


def quantized_params(name, params, prefix):
    return spread(from_paths({p: quantize(name, f"{prefix}/{p}", np.asarray(leaf)) if p.endswith("kernel") else leaf
                              for p, leaf in paths(params).items()}))  # fmt: skip


def largest(x):
    """Of each row, which the two leading axes count."""
    return np.abs(x).max(axis=tuple(range(2, x.ndim)), keepdims=True)


def rows_in_8_bits(x):
    """Independent of qwix. The largest entries stand half between two steps: above 0 both ways of rounding give 127."""
    scale = largest(x) / np.float32(127.5)
    return np.clip(np.round(x / scale), -128, 127).astype(np.float64) * scale


@pytest.mark.parametrize("which", MAPS)
@pytest.mark.parametrize("name", ["int8", "int8xint8"])
def test_products_equal_float64(name, which):
    shape, product = MAPS[which]
    x = random(*shape, seed=1)
    x = np.where(np.abs(x) == largest(x), np.abs(x), x)
    params = Map(which).init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: p + 0.1, params)  # biases that are not zero
    small = quantized_params(name, params, "head/mmdit/last_block")
    assert small[which]["kernel"].dtype == np.int8
    assert small[which]["kernel_scale"].shape == {"q": (3, 4), "out": (5,), "lm_head": (7,)}[which]
    with quantized(name):
        got = Map(which).apply({"params": small}, x)
    weights = small[which]["kernel"].astype(np.float64) * small[which]["kernel_scale"]
    rows = rows_in_8_bits(x) if name == "int8xint8" else x
    assert_close(got, np.einsum(product, rows, weights) + np.asarray(params[which].get("bias", 0.0)), 1e-6)


@pytest.mark.parametrize("name", ["int8xint8", "fp8"])
def test_activations_of_bfloat16_are_rounded_once(name):
    """The product is that of the same numbers in float32, bit for bit."""
    x = jnp.asarray(random(64, 256, seed=1), jnp.bfloat16)
    kernel = quantize(name, "vlm/llm/layers/attn/q/kernel", random(1, 256, 8))
    values, scale = (jnp.asarray(part[0]) for part in kernel)
    got, want = (quantization._product(name, rows, values, scale, False) for rows in (x, x.astype(jnp.float32)))
    assert got.dtype == want.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("which", ["q", "out"])
@pytest.mark.parametrize("name", ["int8", "int8xint8"])
def test_kernels_that_lead_with_their_outputs_give_the_same(name, which):
    """As a list of layers has them, scales beside them; inputs and outputs of several axes lie flat."""
    shape, product = MAPS[which]
    x = random(*shape, seed=1)
    x = np.where(np.abs(x) == largest(x), np.abs(x), x)
    params = {which: {"kernel": Map(which).init(jax.random.key(0), x)["params"][which]["kernel"]}}
    small = quantized_params(name, params, "head/mmdit/last_block")[which]
    turned = outputs_first(jax.tree.map(jnp.asarray, small), x.ndim - 2)
    assert turned["kernel"].dtype == np.int8 and turned["kernel_scale"].shape == turned["kernel"].shape[:1]
    with quantized(name):
        got = OutputsFirst(len(turned["kernel"])).apply({"params": turned}, x.reshape(2, 3, -1))
    weights = small["kernel"].astype(np.float64) * small["kernel_scale"]
    rows = rows_in_8_bits(x) if name == "int8xint8" else x
    assert_close(got, np.einsum(product, rows, weights).reshape(got.shape), 1e-6)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + linear(6, Compute(), name="q")(x), None


def test_a_scan_over_layers_takes_each_layers_own():
    x = random(2, 6)
    stack = stacked(Step, 3, Compute(), 0)(name="layers")
    params = stack.init(jax.random.key(0), x, jnp.arange(3))["params"]
    small = quantized_params("int8", params, "vlm/llm/layers")
    with quantized("int8"):
        got, _ = stack.apply({"params": small}, x, jnp.arange(3))
    y = x.astype(np.float64)
    for kernel, scale in zip(small["q"]["kernel"], small["q"]["kernel_scale"], strict=True):
        y = y + y @ (kernel.astype(np.float64) * scale)
    assert_close(got, y, 1e-6)


def test_maps_without_scales_stay_as_they_are():
    x = random(2, 3, 6)
    params = Map("q").init(jax.random.key(0), x)["params"]
    with quantized("int8"):
        got = Map("q").apply({"params": params}, x)
    np.testing.assert_array_equal(got, Map("q").apply({"params": params}, x))


def test_what_is_quantised_is_most_of_the_released_model():
    shapes = paths(param_shapes(InternVLUConfig()))
    chosen = {path: math.prod(s.shape) for path, s in shapes.items() if quantization.is_quantized(path)}
    rest = sum(math.prod(s.shape) for path, s in shapes.items() if path not in chosen)
    assert not [
        path for path in chosen if path.startswith("vae") or "norm" in path or "time" in path or "embed" in path
    ]
    assert sum(chosen.values()) + 2 * rest < 4.6e9


@pytest.fixture(scope="module")
def base():
    return loading.load(Golden("base").checkpoint)


@pytest.mark.parametrize(("name", "most"), [("int8", 0.02), ("int8xint8", 0.04)])
def test_hidden_states_of_a_recorded_checkpoint(base, name, most):
    """Weights of random numbers round worst: 1/254 of the largest of an output for each, and no more than `most`."""
    model = InternVLU(base.config, tuple(range(10)))
    ids = jnp.arange(20)[None] % base.config.vlm.llm_config.vocab_size

    def states(model, params):
        return jax.jit(lambda p: model.read(p, model.embed(p, ids), capture=True).captured)(params)

    def chosen(path, leaf):
        return quantize(name, path, np.asarray(leaf)) if quantization.is_quantized(path) else leaf

    small = spread(from_paths({path: chosen(path, leaf) for path, leaf in paths(base.params).items()}))
    apart = relative_l2(states(dataclasses.replace(model, quantization=name), small), states(model, base.params))
    assert 1e-4 < apart < most


def test_what_cannot_be_is_said():
    device = jax.devices()[0]
    with pytest.raises(ValueError, match=r"quantize is 'int4'; expected one of int8, int8xint8, fp8"):
        quantization.check_quantization("int4", device)
    with pytest.raises(ValueError, match="'fp8', which cpu does not compute with; expected int8"):
        quantization.check_quantization("fp8", device)
    quantization.check_quantization("int8", device)


@pytest.mark.parametrize(
    ("platform", "kind", "capability", "can"),
    [
        ("gpu", "NVIDIA H100", "9.0", True),
        ("gpu", "NVIDIA L4", "8.9", True),
        ("gpu", "NVIDIA A100", "8.0", False),
        ("gpu", "AMD Instinct MI300X", "gfx942", False),
        ("tpu", "TPU v7x", None, True),
        ("tpu", "TPU v5 lite", None, False),
    ],
)
def test_who_computes_with_fp8(platform, kind, capability, can):
    device = SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)
    if can:
        return quantization.check_quantization("fp8", device)
    with pytest.raises(ValueError, match=f"'fp8', which {kind} does not compute with; expected int8"):
        quantization.check_quantization("fp8", device)


def test_spread_keeps_the_rest():
    kernel = Kernel(np.zeros((2, 3), np.int8), np.ones(3, np.float32))
    assert spread({"a": {"kernel": kernel, "bias": 1}})["a"].keys() == {"kernel", "kernel_scale", "bias"}
