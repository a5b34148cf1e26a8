"""Training of an autoencoder alone: it learns, it goes on where it was stopped, and only as it began."""

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.config import ConfigError
from internvlu_jax.models.semantic import SemanticAutoencoder, noised
from internvlu_jax.models.vit import VisionTransformer
from internvlu_jax.presets import debug_config
from internvlu_jax.training.autoencoder import (
    AutoencoderConfig,
    autoencoder_loss,
    latent_statistics,
    train_autoencoder,
    train_decoder,
)
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.resuming import Stopped
from tests.models.test_semantic import CFG as CODEC
from tests.models.test_semantic import ENCODER

VAE = dataclasses.replace(debug_config().vae, dim_mult=(1, 1), temperal_downsample=(True,))
HOW = AutoencoderConfig(steps=6, optimizer=OptimizerConfig(learning_rate=3e-3, warmup=1))


def pictures(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work directory of an uninterrupted run, and its parameters."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train_autoencoder(VAE, HOW, pictures, workdir, quiet=True)


def test_every_step_is_recorded_and_the_loss_falls(whole):
    rows = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[0]["grad_norm"] > 0
    mean, std = latent_statistics(VAE, whole[1], [pictures(0), pictures(1)])
    assert mean.shape == std.shape == (VAE.z_dim,) and (std > 0).all()


def test_stopped_by_signals_it_goes_on_bit_for_bit(whole, tmp_path):
    """SIGTERM in the second step, Ctrl-C in the fourth, then the rest."""

    def stopping(at, which):
        return lambda number: (signal.raise_signal(which) if number == at else None, pictures(number))[1]

    with pytest.raises(Stopped, match="stopped at step 2"):
        train_autoencoder(VAE, HOW, stopping(1, signal.SIGTERM), tmp_path, quiet=True)
    with pytest.raises(Stopped, match="stopped at step 4"):
        train_autoencoder(VAE, HOW, stopping(3, signal.SIGINT), tmp_path, quiet=True)
    again = train_autoencoder(VAE, HOW, pictures, tmp_path, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, again, whole[1])


def test_it_goes_on_only_under_the_settings_it_began_with(whole):
    changed = dataclasses.replace(HOW, kl_weight=1e-2, seed=3)
    with pytest.raises(ConfigError, match=r"autoencoder.kl_weight: 0.0001 -> 0.01; autoencoder.seed: 0 -> 3"):
        train_autoencoder(VAE, changed, pytest.fail, whole[0], quiet=True)
    rare = dataclasses.replace(HOW, save_every=7)
    jax.tree.map(np.testing.assert_array_equal, train_autoencoder(VAE, rare, pictures, whole[0], quiet=True), whole[1])


# Around a frozen encoder


@pytest.fixture(scope="module")
def encoder():
    pixels = np.zeros((1, 32, 32, 3), np.float32)
    return jax.jit(VisionTransformer(ENCODER).init)(jax.random.key(4), pixels)["params"]


@pytest.fixture(scope="module")
def codec(encoder):
    """Of two by two features a latent, with the statistics of 16 pictures."""
    mean, std = latent_statistics(CODEC, {"encoder": encoder}, [wide(n) for n in range(8)])
    return dataclasses.replace(CODEC, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))


def wide(number: int) -> np.ndarray:
    """Two smooth pictures, which there is something to learn of."""
    corners = np.random.default_rng(number).integers(0, 256, (2, 2, 2, 3)).astype(np.uint8)
    return corners.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture(scope="module")
def decoded(codec, encoder, tmp_path_factory):
    """The work directory of an uninterrupted run, and its parameters."""
    workdir = tmp_path_factory.mktemp("decoder")
    return workdir, train_decoder(codec, HOW, encoder, wide, workdir, quiet=True)


def test_statistics_normalise_features(codec, encoder):
    def latents(pixels):
        return SemanticAutoencoder(codec).apply({"params": {"encoder": encoder}}, pixels, method="encode_latents")

    values = np.stack([jax.jit(latents)(wide(n) / np.float32(127.5) - 1) for n in range(8)]).reshape(-1, codec.z_dim)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-3)


@pytest.mark.slow
def test_a_decoder_learns_and_its_encoder_stays_as_it_is(decoded, encoder):
    rows = [json.loads(line)["loss"] for line in (decoded[0] / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and rows[-1] < rows[0]
    jax.tree.map(np.testing.assert_array_equal, decoded[1]["encoder"], encoder)


@pytest.mark.slow
def test_the_loss_of_a_decoder(codec, decoded):
    """By hand, of the same noisy latents, in float64; the weight of a divergence says nothing."""
    pixels, key, params = jnp.asarray(wide(9)) / 127.5 - 1, jax.random.key(2), {"params": decoded[1]}

    @jax.jit
    def noisy_and_drawn():
        model = SemanticAutoencoder(codec)
        latents = noised(codec, model.apply(params, pixels, method="encode_latents"), key)
        return model.apply(params, latents, method="decode_unclipped")

    error = np.asarray(noisy_and_drawn(), np.float64) - np.asarray(pixels)
    expected = np.mean(np.abs(error)) + 3.0 * np.mean(np.square(error))
    weights = dataclasses.replace(HOW, square_weight=3.0, kl_weight=1.0)
    loss = jax.jit(lambda: autoencoder_loss(codec, weights, decoded[1], pixels, key))()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_decoder_goes_on_bit_for_bit_and_only_with_its_encoder(codec, encoder, decoded, tmp_path):
    def stopping(number):
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        return wide(number)

    with pytest.raises(Stopped, match="stopped at step 3"):
        train_decoder(codec, HOW, encoder, stopping, tmp_path, quiet=True)
    again = train_decoder(codec, HOW, encoder, wide, tmp_path, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, again, decoded[1])
    other = dataclasses.replace(codec, latents_mean=(0.0, *codec.latents_mean[1:]))
    with pytest.raises(ConfigError, match=r"codec\.latents_mean\.0: .* -> 0\.0"):
        train_decoder(other, HOW, encoder, pytest.fail, decoded[0], quiet=True)
