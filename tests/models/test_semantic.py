"""Latents that are features: equal to the encoder's, normalised; frozen; with a decoder that is trained on noise."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.config import SemanticCodec, VisionConfig
from internvlu_jax.models.semantic import SemanticAutoencoder, noised
from internvlu_jax.models.vit import VisionTransformer
from internvlu_jax.utils.tree import paths

RNG = np.random.default_rng(0)
ENCODER = VisionConfig(
    hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, patch_size=8, image_size=32
)
# Two by two features of six channels make one latent of 16 x 16 pixels.
CFG = SemanticCodec(
    encoder=ENCODER, shuffle=2, base_dim=4, patch_size=8, dim_mult=(1, 1), num_res_blocks=1,
    latents_mean=tuple(RNG.normal(size=24).tolist()), latents_std=tuple(RNG.uniform(0.5, 2, 24).tolist()),
)  # fmt: skip
PIXELS = jnp.asarray(RNG.uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)
CODEC = SemanticAutoencoder(CFG)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: CODEC.init(key, method="build"))(jax.random.key(0))["params"]


def test_latents_are_normalised_features(params):
    """In float64: latent (y, x) has the features of its four patches, row by row."""
    features = jax.jit(VisionTransformer(ENCODER).apply)({"params": params["encoder"]}, PIXELS)
    features = np.asarray(features, np.float64)
    grid, want = features.reshape(2, 4, 4, 6), np.empty((2, 2, 2, 24))
    for y, x in np.ndindex(2, 2):
        corners = [grid[:, 2 * y + r, 2 * x + s] for r in (0, 1) for s in (0, 1)]
        want[:, y, x] = (np.concatenate(corners, -1) - CFG.latents_mean) / CFG.latents_std
    got = jax.jit(partial(CODEC.apply, method="encode_latents"))({"params": params}, PIXELS)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_its_facts():
    assert (CFG.z_dim, CFG.downsample_factor, CFG.attention_widths) == (24, 16, (3,))
    assert CFG.problems() == [] == SemanticCodec().problems()
    assert "the decoder makes 8 pixels" in replace(CFG, dim_mult=(1,)).problems()[0]
    assert "23 and 24 entries" in replace(CFG, latents_mean=CFG.latents_mean[:-1]).problems()[0]
    assert replace(CFG, noise=-1.0).problems() == ["noise is -1.0; expected a deviation"]
    assert replace(CFG, encoder=replace(ENCODER, num_channels=4)).problems()[0].startswith("semantic codec: vision num")


def test_decoding(params):
    """Within the range of pixels, and any size of picture."""
    latents = 100 * jax.random.normal(jax.random.key(1), (2, 3, 1, 24))
    methods = ("decode_latents", "decode_unclipped")
    pixels, raw = jax.jit(lambda z: [CODEC.apply({"params": params}, z, method=name) for name in methods])(latents)
    assert pixels.shape == (2, 48, 16, 3) and float(jnp.max(jnp.abs(raw))) > 1.0
    np.testing.assert_array_equal(np.clip(raw, -1, 1), pixels)


def test_no_gradient_reaches_the_encoder(params):
    def loss(p):
        latents = CODEC.apply({"params": p}, PIXELS, method="encode_latents")
        return jnp.sum(jnp.square(CODEC.apply({"params": p}, latents, method="decode_unclipped")))

    for path, leaf in paths(jax.jit(jax.grad(loss))(params)).items():
        assert bool(jnp.any(leaf != 0)) == path.startswith("decoder/"), path


def test_noise_has_a_deviation_of_its_own_for_each_picture():
    """Uniform from 0 to `noise`: over 4000 pictures the deviations' quartiles are those of U(0, noise)."""
    latents = jnp.full((4000, 4, 4, 24), 3.0)
    added = np.asarray(noised(CFG, latents, jax.random.key(0)) - latents, np.float64)
    deviations = np.sqrt(np.mean(np.square(added), axis=(1, 2, 3)))
    np.testing.assert_allclose(np.quantile(deviations, (0.25, 0.5, 0.75)), (0.2, 0.4, 0.6), atol=0.03)
    np.testing.assert_array_equal(noised(replace(CFG, noise=0.0), latents[:2], jax.random.key(0)), latents[:2])


def test_a_picture_that_does_not_divide_is_refused(params):
    with pytest.raises(ValueError, match="picture is 32x24; expected multiples of 16"):
        CODEC.apply({"params": params}, PIXELS[:, :, :24], method="encode_latents")
