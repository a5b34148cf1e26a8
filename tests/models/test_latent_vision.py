"""The vision encoder on latents: the released blocks, patches of normalised latents, a codec that stays as it is."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.config import Compute, LatentVision, VAEConfig, VisionConfig
from internvlu_jax.models.latent_vision import LatentVisionTransformer
from internvlu_jax.models.vae import VAE
from internvlu_jax.models.vit import Block, VisionTransformer
from internvlu_jax.utils.tree import paths

CODEC = VAEConfig(
    base_dim=4, patch_size=8, z_dim=3, dim_mult=(1,), num_res_blocks=1, temperal_downsample=(),
    latents_mean=(0.5, -1.0, 0.0), latents_std=(2.0, 0.5, 1.0),
)  # fmt: skip
FIELDS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CFG = LatentVision(**FIELDS, patch_size=16, image_size=48, codec=CODEC)
PIXELS = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 48, 48, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(LatentVisionTransformer(CFG).init)(jax.random.key(0), PIXELS)["params"]


def test_its_parameters_are_the_released_ones_and_an_encoder(params):
    def shapes(module) -> dict:
        tree = jax.eval_shape(lambda: module.init(jax.random.key(0), PIXELS))["params"]
        return {path: leaf.shape for path, leaf in paths(tree).items()}

    released = shapes(VisionTransformer(VisionConfig(**FIELDS, patch_size=16, image_size=48)))
    vae = jax.eval_shape(lambda: VAE(CODEC).init(jax.random.key(0), method="build"))["params"]
    encoder = {f"codec/{p}": s.shape for p, s in paths(vae).items() if p.split("/")[0] in ("encoder", "quant_conv")}
    own = {path: leaf.shape for path, leaf in paths(params).items()}
    assert own == released | encoder | {"patch_embed/kernel": (2 * 2 * 3, 16)}


def test_patches_are_normalised_latents(params):
    """By hand, in float64: a patch of 16 pixels is 2 x 2 latents, channel by channel."""
    mean, _ = jax.jit(partial(VAE(CODEC).apply, method="encode"))({"params": params["codec"]}, PIXELS)
    latents = (np.asarray(mean, np.float64) - CODEC.latents_mean) / CODEC.latents_std
    want = np.empty((2, 9, 12))
    for row, column in np.ndindex(3, 3):
        square = latents[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        want[:, 3 * row + column] = np.moveaxis(square, 3, 1).reshape(2, 12)
    got = LatentVisionTransformer(CFG).apply({"params": params}, PIXELS, method="patches")
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_from_the_embedded_tokens_on_it_is_the_released_encoder(params):
    latent = LatentVisionTransformer(CFG)
    released = jax.jit(Block(VisionConfig(**FIELDS, patch_size=16, image_size=48)).apply)
    x = jax.jit(partial(latent.apply, method="embed"))({"params": params}, PIXELS)
    assert x.shape == (2, 1 + 9, 16)
    for layer in range(CFG.num_hidden_layers):
        x, _ = released({"params": jax.tree.map(lambda leaf, n=layer: leaf[n], params["layers"])}, x)
    np.testing.assert_allclose(jax.jit(latent.apply)({"params": params}, PIXELS), x[:, 1:], rtol=1e-6, atol=1e-6)


def test_no_gradient_reaches_the_codec(params):
    encoder = LatentVisionTransformer(CFG)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(encoder.apply({"params": p}, PIXELS)))))(params)
    for path, leaf in paths(gradient).items():
        assert bool(jnp.any(leaf != 0)) == (not path.startswith("codec/")), path


def test_in_bfloat16_features_are_bfloat16_and_close(params):
    want = jax.jit(LatentVisionTransformer(CFG).apply)({"params": params}, PIXELS)
    got = jax.jit(LatentVisionTransformer(CFG, Compute("bfloat16")).apply)({"params": params}, PIXELS)
    assert got.dtype == jnp.bfloat16
    assert np.linalg.norm(got.astype(jnp.float32) - want) < 3e-2 * np.linalg.norm(want)


def test_what_does_not_divide_is_refused(params):
    assert (
        "vision patch_size 12 must be a multiple of the 8 pixels of a latent" in replace(CFG, patch_size=12).problems()
    )
    assert any("z_dim, 4" in problem for problem in replace(CFG, codec=replace(CODEC, z_dim=4)).problems())
    assert not CFG.problems()
    with pytest.raises(ValueError, match="6x5 does not divide into 2x2 patches"):
        LatentVisionTransformer(CFG).apply({"params": params}, PIXELS[:, :, :40])
