"""What an arm's codec alone costs: renders through its encoder and decoder, and what is then read from them.

No model that generates in a space draws better than its codec does, so scores are given as they are and as a share of
this ceiling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np
from jaxtyping import UInt8

from experiments.ablations.design import CASE_SEEDS
from experiments.ablations.endpoints import DRAWN
from experiments.ablations.judging import judged, world_of
from internvlu_jax.evaluation.scores import Score, mean, psnr, share
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.small_world import WORLDS, Scene, World, WorldSource
from internvlu_jax.small_world.scoring.cases import cases
from internvlu_jax.small_world.scoring.geneval import score
from internvlu_jax.small_world.scoring.suite import Reply
from internvlu_jax.small_world.tasks.spec_sampling import described

RENDERS = 2000


@dataclass(frozen=True)
class Ceiling:
    """psnr: in dB, a mean over pictures. right: the share of the pictures that still show their scene.

    drawn: by endpoint of `endpoints.DRAWN`, the score that a model would have which drew every case's true picture.
    """

    psnr: Score
    right: Score
    drawn: Mapping[str, float] = field(default_factory=dict)


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
    if count < 1:
        raise ValueError(f"{count} renders; expected at least 1")
    source = WorldSource(world, {"general/picture": 1.0}, seed=seed, split="seen", side=side)
    scenes = [source.example(n).image for n in range(count)]
    shown = [scene for scene in scenes if isinstance(scene, Scene)]
    before = np.stack([scene.draw(side) for scene in shown])
    renders = list(_renders(model, params, before, batch))
    everywhere = np.ones((side, side), bool)
    decibels = [psnr(after, picture, everywhere) for picture, after in zip(before, renders, strict=True)]
    rights = [score(world, described(scene), after).right for scene, after in zip(shown, renders, strict=True)]
    return Ceiling(mean(decibels), share(rights))


def drawn_at_best(
    model: InternVLU, params: Params, world: str, count: int, side: int = 64, batch: int = 50
) -> dict[str, float]:
    """`Ceiling.drawn`, of the cases that counted runs are scored by.

    Args:
        world: of the study, one of `WORLDS`. The rest as in `ceiling`.
    """
    seed, best = CASE_SEEDS["test"], dict[str, float]()
    for name in DRAWN:
        examples = cases(WORLDS[world_of(world, name)], name, count, seed)
        pictures = np.stack([example.image.draw(side) for example in examples if example.image is not None])
        replies = [Reply(render) for render in _renders(model, params, pictures, batch)]
        best[name] = judged(world, name, count, seed, replies)[0][name]
    return best


def _renders(
    model: InternVLU, params: Params, pictures: UInt8[np.ndarray, "n y x 3"], batch: int
) -> Iterator[UInt8[np.ndarray, "y x 3"]]:
    """Pictures as they come back from encoder and decoder, so many at a time."""
    for first in range(0, len(pictures), batch):
        chunk = pictures[first : first + batch]
        padded = np.pad(chunk, ((0, batch - len(chunk)), (0, 0), (0, 0), (0, 0)))
        yield from np.asarray(_there_and_back(model, {"vae": params["vae"]}, padded))[: len(chunk)]


@partial(jax.jit, static_argnums=0)
def _there_and_back(model: InternVLU, params: Params, pictures: jax.Array) -> jax.Array:
    return model.decode(params, model.encode(params, pictures))
