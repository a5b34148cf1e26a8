"""The autoencoder against recorded numbers, and the claim that one frame needs no third dimension."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.engine import convert, export
from converters.tensors import open_part
from converters.vae import vae_rules
from internvlu_jax.config import Compute, VAEConfig
from internvlu_jax.config_files import read_config
from internvlu_jax.models import vae as vae_module
from internvlu_jax.models.vae import VAE
from internvlu_jax.utils.tree import paths
from tests.conftest import sizes_only
from tests.helpers.measures import assert_close, channels_first, channels_last
from tests.helpers.vlm import Memory


def shapes(cfg: VAEConfig):
    return jax.eval_shape(lambda: VAE(cfg).init(jax.random.key(0), method="build"))["params"]


@pytest.fixture(scope="module")
def model(golden):
    """(config, released tensors, parameters)."""
    cfg = read_config(golden.checkpoint).vae
    reader = open_part(golden.checkpoint / "vae")
    params, _ = convert(vae_rules(cfg), reader, shapes(cfg))
    return cfg, reader, params


def run(model, method: str, x, dtype: str = "float32"):
    cfg, _, params = model
    apply = jax.jit(functools.partial(VAE(cfg, Compute(dtype)).apply, method=method))
    return apply({"params": params}, jnp.asarray(x))


@sizes_only
def test_encoding(golden, model):
    want = golden.component("vae")
    pixels = channels_last(want["pixels"])
    mean, logvar = run(model, "encode", pixels)
    assert_close(channels_first(mean), want["mean"], what="mean")
    assert_close(channels_first(logvar), want["logvar"], what="logvar")
    assert_close(channels_first(run(model, "encode_latents", pixels)), want["normalized"], what="normalised latents")


@sizes_only
def test_decoding(golden, model):
    want = golden.component("vae")
    latents = channels_last(want["latents"])
    assert_close(channels_first(run(model, "decode", latents)), want["decoded"], what="decode")
    pixels = run(model, "decode_latents", latents)
    assert_close(channels_first(pixels), want["pixels_from_normalized"], what="decode_latents")


@sizes_only
def test_bfloat16_is_close(golden, model):
    want = golden.component("vae")
    got = run(model, "encode_latents", channels_last(want["pixels"]), "bfloat16")
    assert got.dtype == jnp.float32
    assert_close(channels_first(got), want["normalized"], 2e-2)
    got = run(model, "decode_latents", channels_last(want["latents"]), "bfloat16")
    assert got.dtype == jnp.float32
    assert_close(channels_first(got), want["pixels_from_normalized"], 2e-2)


def test_one_frame_of_a_causal_3d_convolution_is_the_2d_one(model):
    """Two frames of zeros in front of one frame: what the released convolution pads."""
    _, reader, params = model
    kernel = reader.read("decoder.conv_in.weight")
    x = np.random.default_rng(0).standard_normal((1, 6, 5, kernel.shape[1])).astype(np.float32)
    video = np.pad(x[:, None], ((0, 0), (2, 0), (1, 1), (1, 1), (0, 0)))
    in_3d = jax.lax.conv_general_dilated(
        video, kernel, (1, 1, 1), "VALID", dimension_numbers=("NTHWC", "OITHW", "NTHWC")
    )
    in_2d = jax.lax.conv_general_dilated(
        x, params["decoder"]["conv_in"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert in_3d.shape[1] == 1
    assert_close(in_2d, in_3d[:, 0], 1e-6)


@sizes_only
def test_attention_in_pieces_is_the_same(golden, model, monkeypatch):
    pixels = channels_last(golden.component("vae")["pixels"])
    whole = run(model, "encode_latents", pixels)
    monkeypatch.setattr(vae_module, "_SCORES", 3 * 2 * 12 * 96)  # 3 of 8 rows at once, so that a remainder is left
    assert_close(run(model, "encode_latents", pixels), whole, 1e-6)


def test_upsampling_is_nearest_then_a_convolution(model):
    _, _, params = model
    weights = params["decoder"]["up_0"]["upsample"]
    x = np.random.default_rng(0).standard_normal((2, 5, 7, weights["kernel"].shape[2])).astype(np.float32)
    got = vae_module.Upsample(weights["kernel"].shape[3], Compute()).apply({"params": weights}, jnp.asarray(x))
    want = jax.lax.conv_general_dilated(
        x.repeat(2, 1).repeat(2, 2), weights["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert_close(got, want + weights["bias"], 1e-6)


def test_released_sizes():
    params = shapes(VAEConfig())
    used = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = vae_rules(VAEConfig())
    assert round(sum(_released_size(row, params) for row in rows) / 1e6, 1) == 126.9
    assert round(used / 1e6, 1) == 44.6


def _released_size(row, params) -> int:
    from converters.engine import Unused

    if isinstance(row, Unused):
        return int(np.prod(row.shape))
    return int(np.prod(row.released_shape(paths(params)[row.target].shape)))


def test_sides_must_be_multiples_of_eight(model):
    with pytest.raises(ValueError, match="60x64; expected multiples of 8"):
        run(model, "encode", jnp.zeros((1, 60, 64, 3)))


@pytest.mark.slow
def test_patches_as_channels():
    """With patches of 4 the first convolution works at a quarter of the resolution; sizes and the way back are kept."""
    cfg = VAEConfig(base_dim=8, patch_size=4, dim_mult=(1, 2), num_res_blocks=1, temperal_downsample=(False,))
    assert cfg.downsample_factor == 8
    vae = VAE(cfg)
    params = jax.jit(functools.partial(vae.init, method="build"))(jax.random.key(0))
    assert params["params"]["encoder"]["conv_in"]["kernel"].shape == (3, 3, 48, 8)
    pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)), jnp.float32)
    there, back = (functools.partial(vae.apply, method=f"{name}_latents") for name in ("encode", "decode"))
    latents = jax.eval_shape(there, params, pixels)
    assert latents.shape == (2, 2, 3, 16)
    assert jax.eval_shape(back, params, latents).shape == pixels.shape
    rules = vae_rules(cfg)
    tensors = export(rules, params["params"])
    back, _ = convert(rules, Memory({name: tensor.read() for name, tensor in tensors.items()}), params["params"])
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(params["params"]))
