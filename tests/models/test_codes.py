"""Quantized latents and codes against numpy, and scores of codes against loops over them."""

from dataclasses import fields, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.config import CodeHead, CodeVision, Compute, QuantizedCodec, VAEConfig
from internvlu_jax.models.codes import (
    CodeEmbedder,
    CodePredictor,
    QuantizedVAE,
    codes_of,
    quantized,
    values_of,
)
from internvlu_jax.models.vae import VAE
from internvlu_jax.training.autoencoder import AutoencoderConfig, autoencoder_loss
from internvlu_jax.utils.tree import paths

LEVELS = (5, 4, 3, 2)
CODEC = QuantizedCodec(
    base_dim=4, patch_size=4, z_dim=8, dim_mult=(1,), num_res_blocks=1, temperal_downsample=(),
    latents_mean=(0.0,) * 8, latents_std=(1.0,) * 8, levels=(3, 3, 2, 4),
)  # fmt: skip
HEAD = CodeHead(CODEC, input_hidden_size=6, num_layers=2, intermediate_size=5)


def levels_of(count: int) -> np.ndarray:
    """Values of a channel: -1, -1/2, 0, 1/2, 1 for five, -1, -1/2, 0, 1/2 for four."""
    return (np.arange(count) - count // 2) / (count // 2)


def test_every_channel_goes_to_a_level_of_its_own():
    """By the listing of arXiv 2309.15505, in float64; far out all of the levels are reached."""
    z = np.random.default_rng(0).normal(scale=2.0, size=(200, 4))
    z = np.concatenate([z, np.tile(np.linspace(-9, 9, 400)[:, None], 4)])
    want = np.empty_like(z)
    for channel, count in enumerate(LEVELS):
        reach = (count - 1) * (1 - 1e-3) / 2
        offset = 0.0 if count % 2 else 0.5
        bounded = np.tanh(z[:, channel] + np.tan(offset / reach)) * reach - offset
        want[:, channel] = np.round(bounded) / (count // 2)
    got = np.asarray(quantized(jnp.asarray(z, jnp.float32), LEVELS))
    np.testing.assert_allclose(got, want, atol=1e-6)
    for channel, count in enumerate(LEVELS):
        np.testing.assert_allclose(np.unique(got[:, channel]), levels_of(count), atol=1e-6)


def test_rounding_passes_gradients_on():
    """That of half tanh(z) (L - 1), for an odd L, in units of the levels."""
    z = jnp.linspace(-2, 2, 9)[:, None]
    got = jax.grad(lambda z: jnp.sum(quantized(z, (5,))))(z)
    np.testing.assert_allclose(got, 0.999 * (1 - np.tanh(np.asarray(z, np.float64)) ** 2), rtol=1e-5)


def test_codes_number_all_combinations_of_levels_and_are_undone():
    each = np.stack(np.meshgrid(*map(levels_of, LEVELS), indexing="ij"), axis=-1).reshape(-1, 4)
    codes = np.asarray(codes_of(jnp.asarray(each), LEVELS))
    assert sorted(codes[:, 0].tolist()) == list(range(5 * 4 * 3 * 2))
    np.testing.assert_allclose(values_of(jnp.asarray(codes), LEVELS), each, atol=1e-6)
    both = jnp.concatenate([jnp.asarray(each), jnp.asarray(each[::-1])], axis=-1)
    np.testing.assert_array_equal(codes_of(both, LEVELS), np.concatenate([codes, codes[::-1]], axis=-1))
    one = np.array([0.5, -0.5, 1.0, 0.0])  # the fourth of 5, second of 4, third of 3 and second of 2
    assert codes_of(jnp.asarray(one), LEVELS).tolist() == [3 + 5 * (1 + 4 * (2 + 3 * 1))]


@pytest.fixture(scope="module")
def autoencoder():
    return made_up(partial(QuantizedVAE(CODEC).init, method="build"))


def made_up(init, *arguments):
    """Random parameters of a module."""
    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / 2), shapes)


def test_a_quantized_vae_is_a_vae_whose_latents_are_quantized(autoencoder):
    """It has the parameters of the VAE; its loss is that of the rounded latents, without noise or divergence."""
    plain = VAE(VAEConfig(**{field.name: getattr(CODEC, field.name) for field in fields(VAEConfig)}))
    own = QuantizedVAE(CODEC)
    given, pixels = {"params": autoencoder}, jax.random.uniform(jax.random.key(1), (2, 8, 12, 3), minval=-1.0)
    mean, _ = plain.apply(given, pixels, method="encode")
    latents = own.apply(given, pixels, method="encode_latents")
    np.testing.assert_array_equal(latents, quantized(mean, (3, 3, 2, 4) * 2))
    codes = own.apply(given, pixels, method="codes")
    assert codes.shape == (2, 2, 3, 2) and codes.max() < CODEC.entries == 72
    np.testing.assert_array_equal(values_of(codes, CODEC.levels), latents)
    error = np.asarray(plain.apply(given, latents, method="decode_unclipped"), np.float64) - pixels
    loss = autoencoder_loss(CODEC, AutoencoderConfig(), autoencoder, pixels, jax.random.key(2))
    assert float(loss) == pytest.approx(np.abs(error).mean() + 2 * np.square(error).mean(), rel=1e-5)
    drawn = own.apply(given, latents, method="decode_latents")
    np.testing.assert_array_equal(drawn, plain.apply(given, latents, method="decode"))


def test_what_is_seen_of_a_latent_is_the_sum_of_its_embedded_codes(autoencoder):
    vision = CodeEmbedder(CodeVision(6, 8, CODEC))
    pixels = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3), minval=-1.0)
    params = made_up(vision.init, pixels)
    assert not any("decoder" in path or "post" in path for path in paths(params)), "the copy has no decoder"
    table = np.asarray(params["embedder"]["table"]["embedding"]).reshape(2, 72, 6)
    codes = np.asarray(QuantizedVAE(CODEC).apply({"params": params["codec"]}, pixels, method="codes"))
    want = table[0, codes[..., 0]] + table[1, codes[..., 1]]
    np.testing.assert_allclose(vision.apply({"params": params}, pixels), want.reshape(1, 4, 6), atol=1e-6)


@pytest.fixture(scope="module")
def predictor():
    return made_up(partial(CodePredictor(HEAD).init, method="build"))


def test_scores_of_codes_by_hand(predictor):
    """Code after code, each from the state, its place, and the sum of the embeddings of those before it; in float64."""
    rng, p = np.random.default_rng(0), jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), predictor)
    states, codes = rng.normal(size=(2, 6)), rng.integers(72, size=(2, 8))
    table, want = p["embedder"]["table"]["embedding"].reshape(8, 72, 6), np.empty((2, 8, 72))

    def norm(x, n):
        return x / np.sqrt(np.mean(x**2) + 1e-6) * p[f"norms_{n}"]["scale"]

    for row in range(2):
        for place in range(8):
            x = states[row] + p["places"][place] + sum(table[d, codes[row, d]] for d in range(place))
            for n in range(2):
                mlp = p[f"mlps_{n}"]
                hidden = norm(x, n) @ mlp["fc1"]["kernel"] + mlp["fc1"]["bias"]
                x = x + (hidden / (1 + np.exp(-hidden))) @ mlp["fc2"]["kernel"] + mlp["fc2"]["bias"]
            want[row, place] = norm(x, 2) @ p["out_kernel"][place]
    got = CodePredictor(HEAD).apply(
        {"params": predictor}, jnp.asarray(states[None], jnp.float32), jnp.asarray(codes[None]), method="scores"
    )
    np.testing.assert_allclose(got[0], want, atol=2e-4)


def test_scores_of_one_place_are_those_of_all_whatever_stands_behind_it(predictor):
    rng = np.random.default_rng(0)
    state, codes = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32), jnp.asarray(rng.integers(72, size=(3, 8)))
    head = CodePredictor(HEAD)
    every = head.apply({"params": predictor}, state[:, None], codes[:, None], method="scores")
    one = jax.jit(lambda *given: head.apply({"params": predictor}, *given, method="scores_at"))
    for place in range(8):
        later = jnp.where(jnp.arange(8) < place, codes, 0)
        np.testing.assert_allclose(one(state, later, jnp.asarray(place)), every[:, 0, place], atol=1e-5)


def test_a_code_is_not_seen_where_it_is_predicted(predictor):
    codes = jnp.arange(8)[None, None] + jnp.zeros((1, 1, 8), jnp.int32)
    scores = jax.jit(lambda codes: CodePredictor(HEAD, Compute()).apply(
        {"params": predictor}, jnp.ones((1, 1, 6)), codes, method="scores"))  # fmt: skip
    before, after = scores(codes), scores(codes.at[0, 0, 3].set(40))
    np.testing.assert_array_equal(before[0, 0, :4], after[0, 0, :4])
    assert all(not np.allclose(before[0, 0, d], after[0, 0, d]) for d in range(4, 8))


def test_what_is_wrong_with_a_quantized_codec():
    assert CODEC.problems() == []
    assert replace(CODEC, levels=(3, 3, 3)).problems() == ["z_dim 8 must be a multiple of the 3 levels"]
    (said,) = replace(CODEC, levels=(3, 1)).problems()
    assert said == "levels are (3, 1); expected at least 2 of each channel"
    (said,) = replace(CODEC, latents_std=(2.0,) * 8).problems()
    assert said == "latents_mean and latents_std of a quantized VAE must be 0 and 1"
