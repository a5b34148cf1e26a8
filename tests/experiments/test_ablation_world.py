"""What a study takes from world XS: its tokens and shapes, an autoencoder, and what an autoencoder alone costs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ablations.arms import ARMS
from experiments.ablations.ceilings import ceiling
from experiments.ablations.pool import KINDS, PoolConfig, collated, draw
from experiments.ablations.world import DATA, autoencoder, sources, tokenizer
from internvlu_jax.config import ConfigError
from internvlu_jax.models.internvlu import InternVLU
from internvlu_jax.small_world import XS
from internvlu_jax.training.autoencoder import AutoencoderConfig
from tests.helpers.training import leaves_equal
from tests.helpers.unchecked import unchecked

ARM = ARMS["decoupled"].config


@pytest.mark.parametrize("world", ["xs", "xs-transfer"])
def test_a_pool_of_either_world_has_one_shape_of_each_kind(world):
    whole = collated(unchecked(draw, PoolConfig(sources(world), 400)), ARM, tokenizer(), DATA)
    assert tuple(whole) == KINDS
    assert [whole[name].picture.context_index.shape[1] for name in ("pictures", "edits")] == [32, 48]
    assert all(len(batch.index) >= 16 for batch in whole.values())
    used = np.mean(whole["questions"].text.segments > 0)
    assert used > 0.8, "rows of questions are nearly full"
    assert tokenizer().vocab_size <= ARM.vlm.llm_config.vocab_size


def test_every_word_is_one_token():
    for word in ("square", "cross", "ring", "squares", "crosses", "rings", "red", "green", "blue", "yellow"):
        assert len(tokenizer().encode(f" {word}")) == 1, word


@pytest.mark.slow
def test_an_autoencoder_is_made_once(tmp_path):
    tiny = dataclasses.replace(ARM.vae, base_dim=4)
    how = AutoencoderConfig(steps=2, seed=3)
    config, params = autoencoder(tiny, how, tmp_path)
    again, same = autoencoder(tiny, how, tmp_path)
    assert (
        config == again and dataclasses.replace(config, latents_mean=tiny.latents_mean, latents_std=(1.0,) * 8) == tiny
    )
    leaves_equal(params, same)
    assert len(set(config.latents_std)) == 1 and len(set(config.latents_mean)) == 8
    with pytest.raises(ConfigError, match=r"autoencoder\.seed: 3 -> 4"):
        autoencoder(tiny, dataclasses.replace(how, seed=4), tmp_path)


class Copying(InternVLU):
    """A codec that loses nothing."""

    def encode(self, params, pixels):
        return pixels.astype(jnp.float32)

    def decode(self, params, latents):
        return latents.astype(jnp.uint8)


class Darkening(Copying):
    """Sixteen levels lost everywhere: 20 log10(255 / 16) dB, and white is read as no background that there is."""

    def decode(self, params, latents):
        return jnp.clip(latents - 16 * params["vae"]["share"], 0, 255).astype(jnp.uint8)


class Blank(Copying):
    def decode(self, params, latents):
        return jnp.full_like(latents, 255).astype(jnp.uint8)


def ceiling_of(kind, count=30, **params):
    return ceiling(kind(ARM, (-1,) * 10), {"vae": params}, XS, count, batch=8)


def test_ceilings_of_codecs_whose_loss_is_known():
    best = ceiling_of(Copying)
    assert (best.psnr.value, best.right.value, best.right.count) == (60.0, 1.0, 30)
    assert ceiling_of(Blank).right.value == 0.0
    darker = ceiling_of(Darkening, share=1.0)
    assert 24.0 <= darker.psnr.value <= 24.4 and darker.psnr.value < best.psnr.value
    with pytest.raises(ValueError, match="0 renders; expected at least 1"):
        ceiling_of(Copying, 0)
