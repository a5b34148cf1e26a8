"""World XS as the studies use it: what is read, a tokenizer, and an autoencoder for its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from experiments.ablations.arms import ARMS, SIDE
from experiments.ablations.pool import PoolConfig, PooledSteps, collated, draw, with_latents
from experiments.small_world.mixtures import Mixture
from experiments.small_world.start import crop
from internvlu_jax.config import Compute, SemanticCodec, VAEConfig
from internvlu_jax.data.batch import Batch
from internvlu_jax.data.config import DataConfig
from internvlu_jax.models.internvlu import InternVLU, Params, init_params
from internvlu_jax.processing import chat
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.small_world import XS, World, WorldSource
from internvlu_jax.training.autoencoder import (
    AutoencoderConfig,
    latent_statistics,
    train_autoencoder,
    train_decoder,
)
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig
from internvlu_jax.training.losses import Objective
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.step import Step
from internvlu_jax.utils.tree import Tree

_PICTURES = 32  # of one step of an autoencoder
_TEXTS = 1000  # examples whose texts the tokenizer is made from, by when they have repeated many times
_MERGES = 400  # more than the words of the world have
MEASURED = 1024
"""Pictures that the scale of latents is taken from."""

DATA = DataConfig(
    batch_size=8, packed_rows=8, sides=(SIDE,), text_lengths=(32, 48), pack_length=400, pack_tiles=4, threads=1,
)  # fmt: skip
"""Shapes of the batches: prompts of pictures have at most 30 tokens, those of edits from 40 to 48; a row of questions
holds two conversations and a question."""


_GENERAL = {
    "general/picture": 4.0, "general/picture/single": 1.0, "general/picture/counting": 1.0, "general/edit": 3.0,
    "general/conversation": 3.0, "general/question": 1.0, "general/description": 0.5,
}  # fmt: skip

PICTURES: Mapping[str, World] = {"xs": XS, "xs-all": replace(XS, held_pairs=(), held_counts=())}
"""What autoencoders learn from: pictures of what training draws, or with those combinations that it never draws.

Those of "xs" cannot draw what is held out of training, whatever arm gives them latents of it.
"""

MIXTURES: Mapping[str, Mapping[str, float]] = {
    "general": _GENERAL,
    "reasoning": {**_GENERAL, "reasoning/picture": 2.0, "reasoning/steps": 2.0},
    "questions": {"general/conversation": 3.0, "general/question": 1.0, "general/description": 0.5},
}
"""Tasks that a pool is drawn from, with their weights. How many rows of each kind a step reads is said elsewhere."""


def sources(world: str = "xs", mixture: str = "general") -> Mixture:
    """What a pool is drawn from, of XS or "xs-transfer". mixture: of `MIXTURES`."""
    return tuple((f"world:{world}/{task}", weight) for task, weight in MIXTURES[mixture].items())


@cache
def tokenizer() -> Tokenizer:
    """Every word of XS is a token, those of its reasoning among them."""
    return Tokenizer.trained(_texts(), _MERGES, chat.FIXED_TEXTS)


def _texts() -> Iterator[str]:
    source = WorldSource("xs", seed=1)
    for n in range(_TEXTS):
        example = source.example(n)
        for text in (example.prompt, example.answer, example.reasoning or ""):
            yield from (text, chat.normalise_user_text(text))


def autoencoder(
    cfg: VAEConfig, how: AutoencoderConfig, workdir: Path, measured: int = MEASURED, pictures: str = "xs"
) -> tuple[VAEConfig, Params]:
    """A VAE for `PICTURES`, trained in `workdir` or taken from there; and its config, with the latents' scale.

    All channels have one scale: those that say little would be blown up, and cost the head as much as others. Where no
    pictures are `measured` latents stay as they are.

    Raises:
        ConfigError: the one in `workdir` began under other settings.
        Stopped: a signal ended the training; the same call goes on.
    """
    params = train_autoencoder(cfg, how, lambda step: _crops(pictures, how.seed, step), workdir)
    if not measured:
        return cfg, params
    mean, std = latent_statistics(cfg, params, _measured(pictures, how.seed, measured))
    scale = float(np.sqrt(np.mean(np.square(std))))
    return replace(cfg, latents_mean=tuple(map(float, mean)), latents_std=(scale,) * cfg.z_dim), params


def semantic_autoencoder(
    cfg: SemanticCodec,
    how: AutoencoderConfig,
    encoder: Params,
    workdir: Path,
    measured: int = MEASURED,
    pictures: str = "xs",
) -> tuple[SemanticCodec, Params]:
    """An autoencoder whose latents are features of a frozen encoder, its decoder trained in `workdir` or from there.

    Every channel is normalised by itself, as the features' source does. As many pictures of the same kind are read as
    by the VAE, but whole: what the encoder says of a part depends on all of the picture, and on where the part is.

    Args:
        encoder: parameters of a vision encoder.

    Raises:
        ConfigError: the one in `workdir` began under other settings.
        Stopped: a signal ended the training; the same call goes on.
    """
    if measured:
        mean, std = latent_statistics(cfg, {"encoder": encoder}, _measured(pictures, how.seed, measured))
        cfg = replace(cfg, latents_mean=tuple(map(float, mean)), latents_std=tuple(map(float, std)))
    return cfg, train_decoder(cfg, how, encoder, lambda step: _whole(pictures, how.seed, step), workdir)


def _measured(pictures: str, seed: int, count: int) -> list[UInt8[np.ndarray, "b y x 3"]]:
    """Pictures that training with this seed does not read, in 16 batches."""
    source = _pictures(pictures, seed + 1)
    return np.split(np.stack([_drawn(source, n) for n in range(count)]), 16)


def _whole(pictures: str, seed: int, step: int) -> UInt8[np.ndarray, "b y x 3"]:
    """Pictures for one step."""
    source = _pictures(pictures, seed)
    return np.stack([_drawn(source, step * _PICTURES + n) for n in range(_PICTURES)])


def _pictures(pictures: str, seed: int) -> WorldSource:
    return WorldSource(PICTURES[pictures], {"general/picture": 1.0}, seed=seed)


def _drawn(source: WorldSource, n: int) -> UInt8[np.ndarray, "y x 3"]:
    return source.example(n).image.draw(SIDE)  # type: ignore[union-attr]


def _crops(pictures: str, seed: int, step: int) -> UInt8[np.ndarray, "b y x 3"]:
    """Parts of pictures with something in them, for one step."""
    source = _pictures(pictures, seed)
    rng = np.random.default_rng([seed, step])
    return np.stack([crop(source.example(step * _PICTURES + n).image, rng) for n in range(_PICTURES)])


def speed_case(seeds: int, rows: int) -> tuple[Step, Sequence[Tree], tuple[Batch, ...]]:
    """What a step of the decoupled arm is timed with: the step, random models, and micro-batches of all kinds."""
    config, words = ARMS["decoupled"].config, tokenizer()
    optimizer = OptimizerConfig(warmup=1, rates=ARMS["decoupled"].rates, ema=0.99)
    model = InternVLU(config, words.special_table_ids, Compute(attention="xla"))
    models = [init_params(config, jax.random.key(seed)) for seed in range(seeds)]
    models = [{**params, "vae": models[0]["vae"]} for params in models]
    step = Step(Objective(model, ObjectiveConfig()), optimizer, factors(models[0], optimizer), steps=1000)
    pool = collated(draw(PoolConfig(sources(), 12 * rows)), config, words, DATA)
    whole = {name: with_latents(batch, model, models[0]) for name, batch in pool.items()}
    batches = PooledSteps(whole, {"pictures": rows, "edits": rows, "questions": max(rows // 4, 1)})(0)
    return step, models, batches
