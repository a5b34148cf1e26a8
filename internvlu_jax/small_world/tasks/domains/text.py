"""Text-centric: words and numbers in the picture, asked for in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import caption, chinese, pick
from internvlu_jax.small_world.tasks.domains.general import edit_example, question_example
from internvlu_jax.small_world.tasks.example import Example, Maker
from internvlu_jax.small_world.tasks.spec_sampling import background
from internvlu_jax.small_world.tasks.specs import Group, SceneSpec, scene_of


def sample_spec(world: World, rng: np.random.Generator, held_out: bool = False, length: int | None = None) -> SceneSpec:
    """A word (see `World.word`), sometimes with its colour said, sometimes above or below an object."""
    groups: tuple[Group, ...] = ()
    place = None
    if rng.random() < 0.25:
        colour, kind = pick(world.pairs, rng)
        groups, place = (Group(kind, colour),), pick(("above", "below"), rng)
    word_colour = pick(world.colours, rng) if rng.random() < 0.5 else None
    return SceneSpec(groups, None, background(world, rng), world.word(rng, held_out, length), word_colour, place)


def picture(world: World, rng: np.random.Generator, held_out: bool, length: int | None = None) -> Example:
    """A prompt for a word, one in three in Chinese."""
    spec = sample_spec(world, rng, held_out, length)
    in_chinese = rng.random() < 1 / 3
    text = chinese(spec, rng) if in_chinese else caption(spec, rng)
    return Example("t2i", "chinese" if in_chinese else "english", text, spec, scene_of(world, spec, rng, held_out))


def edited(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """One word put in the place of another."""
    return edit_example(world, "text", rng, held_out)


def read(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """The question what is written."""
    return question_example(world, "reading", rng, held_out)


TASKS: Mapping[str, Maker] = {"picture": picture, "edit": edited, "question": read}

KINDS: Mapping[str, Maker] = {f"picture/{length}": partial(picture, length=length) for length in range(1, 5)}
"""Words of so many letters, none of the list: letters are learned one at a time, or not at all."""
