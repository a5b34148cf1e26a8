"""Training of the VAE alone: it learns, it goes on where it was stopped, and only as it began."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest

from internvlu_jax.config import ConfigError
from internvlu_jax.presets import debug_config
from internvlu_jax.training.autoencoder import AutoencoderConfig, latent_statistics, train_autoencoder
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.resuming import Stopped

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
    assert rows[-1]["loss"] < rows[0]["loss"]
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
