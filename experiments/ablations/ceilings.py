"""What an arm's codec alone costs: renders through its encoder and decoder, and what is then read from them.

No model that generates in a space draws better than its codec does, so scores are given as they are and as a share of
this ceiling.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from internvlu_jax.evaluation.scores import Score, mean, psnr, share
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.small_world import Scene, World, WorldSource
from internvlu_jax.small_world.scoring.geneval import score
from internvlu_jax.small_world.tasks.spec_sampling import described

RENDERS = 2000


@dataclass(frozen=True)
class Ceiling:
    """psnr: in dB, a mean over pictures. right: the share of the pictures that still show their scene."""

    psnr: Score
    right: Score


def ceiling(
    model: InternVLU, params: Params, world: World, count: int = RENDERS, seed: int = 0, side: int = 64, batch: int = 50
) -> Ceiling:
    """The ceiling of a model's codec, whichever it is, on pictures that training has not seen.

    Args:
        params: with the key vae.
        count: of the pictures.
        batch: pictures that go through together.

    Raises:
        ValueError: count is under 1.
    """
    source = WorldSource(world, {"general/picture": 1.0}, seed=seed, split="seen", side=side)
    scenes = [source.example(n).image for n in range(count)]
    decibels, rights = list[float](), list[bool]()
    everywhere = np.ones((side, side), bool)
    for first in range(0, count, batch):
        chunk = [scene for scene in scenes[first : first + batch] if isinstance(scene, Scene)]
        drawn = np.stack([scene.draw(side) for scene in chunk])
        padded = np.pad(drawn, ((0, batch - len(drawn)), (0, 0), (0, 0), (0, 0)))
        renders = np.asarray(_there_and_back(model, {"vae": params["vae"]}, padded))
        for scene, before, after in zip(chunk, drawn, renders, strict=False):
            decibels.append(psnr(after, before, everywhere))
            rights.append(score(world, described(scene), after).right)
    return Ceiling(mean(decibels), share(rights))


@partial(jax.jit, static_argnums=0)
def _there_and_back(model: InternVLU, params: Params, pictures: jax.Array) -> jax.Array:
    return model.decode(params, model.encode(params, pictures))
