"""What training starts from: a tokenizer and an autoencoder for the small world, and everything else at random."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from internvlu_jax.checkpoints.model_directory import save_model
from internvlu_jax.models.internvlu import init_params
from internvlu_jax.presets import small_config
from internvlu_jax.processing import chat
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.small_world import WorldSource
from internvlu_jax.small_world.scenes.scene import Scene
from internvlu_jax.training.autoencoder import (
    AutoencoderConfig,
    latent_statistics,
    train_autoencoder,
    with_statistics,
)

SIDE = 64
_CROP = 32  # pixels; crops around objects teach the autoencoder in minutes what whole pictures take hours for
_CROPS = 32  # of one step
_MERGES = 1200
_RAMP = 3.0  # about as large as the patches' values
_TEXTS = 20_000  # examples whose texts the tokenizer is made from
_DRAWN = {"general/picture": 3.0, "text/picture": 1.0}
_CROPPED = {"general/picture": 1.0, "text/picture": 1.0}  # letters are the hardest to keep


def texts() -> Iterator[str]:
    """What the tokenizer is made from: all texts of the world, but for the words in pictures.

    Those stay single letters: the head has to draw them one by one.
    """
    source = WorldSource(seed=1)
    for n in range(_TEXTS):
        example = source.example(n)
        for text in (example.prompt, example.answer, example.reasoning or ""):
            plain = re.sub(r"[A-Z0-9]{2,}", " ", text)
            yield from (plain, chat.normalise_user_text(plain))


def crops(seed: int, step: int) -> UInt8[np.ndarray, "b y x 3"]:
    """Parts of pictures with something in them, for one step of the autoencoder."""
    source = WorldSource(weights=_CROPPED, seed=seed)
    rng = np.random.default_rng([seed, step])
    return np.stack([crop(source.example(step * _CROPS + n).image, rng) for n in range(_CROPS)])


def crop(scene: Any, rng: np.random.Generator) -> UInt8[np.ndarray, "y x 3"]:
    """A part of a picture around one of the things in it."""
    assert isinstance(scene, Scene)
    boxes = [item.box for item in scene.items] + ([scene.word.box] if scene.word else [])
    left, top, right, bottom = (SIDE * edge for edge in boxes[rng.integers(len(boxes))])
    x, y = (int(rng.uniform(*ends) - _CROP / 2 + rng.integers(-8, 9)) for ends in ((left, right), (top, bottom)))
    x, y = (min(max(v // 8 * 8, 0), SIDE - _CROP) for v in (x, y))  # latents are drawn on this grid, too
    return scene.draw(SIDE)[y : y + _CROP, x : x + _CROP]


def make_start(target: Path, autoencoder: Path, files: Path, steps: int, seed: int) -> None:
    """Writes the model directory `target`.

    Args:
        autoencoder, files: work directories of the autoencoder's training and of the tokenizer.
        steps: of the autoencoder.

    Raises:
        ConfigError: the autoencoder's training began under other settings.
        Stopped: a signal ended it.
    """
    config = small_config()
    how = AutoencoderConfig(steps=steps, kl_weight=4e-3, seed=seed)
    vae = train_autoencoder(config.vae, how, lambda step: crops(seed + 2, step), autoencoder)
    source = WorldSource(weights=_DRAWN, seed=seed + 3)
    pictures = [np.stack([source[n + 64 * k].image.pixels() for n in range(64)]) for k in range(16)]  # type: ignore
    mean, std = latent_statistics(config.vae, vae, pictures)
    # One scale for all channels: those that say little would be blown up, and cost the head as much as others.
    config = with_statistics(config, mean, np.full_like(std, np.sqrt(np.mean(np.square(std)))))
    params = {**init_params(config, jax.random.key(seed)), "vae": vae}
    table = params["vlm"]["vit"]["position_embedding"]
    params["vlm"]["vit"]["position_embedding"] = with_ramps(table, np.random.default_rng(seed))
    Tokenizer.trained(texts(), _MERGES, chat.FIXED_TEXTS).save(files / "processor")
    save_model(target, config, params, {}, files)


def with_ramps(table: Any, rng: np.random.Generator) -> np.ndarray:
    """A vision encoder's new position table, with the coordinates of the patches in two directions of it.

    New tables are of 0.02, and patches of 2: questions where something is stayed at chance for thousands of steps.

    Args:
        table: [1 + n * n, d], the class token first.
    """
    side = round((len(table) - 1) ** 0.5)
    at = np.linspace(-1.0, 1.0, side)
    coordinates = np.stack(np.meshgrid(at, at, indexing="ij"), -1).reshape(-1, 2)
    ramped = np.array(table)
    ramped[1:] += _RAMP * coordinates @ rng.standard_normal((2, table.shape[1]))
    return ramped
