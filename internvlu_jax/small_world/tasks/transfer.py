"""Facts that training shows in drawing alone, or in questions alone, put to the other: what passes between the two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from internvlu_jax.config import ConfigError
from internvlu_jax.small_world.scenes.scene import Scene
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.example import Example, Maker
from internvlu_jax.small_world.tasks.rejection import first_accepted

_TRIES = 200
_ANSWERED = ("question", "conversation", "description", "words")


def is_answered(task: str) -> bool:
    """Whether a task, as "general/question" or "general/question/colour", wants words and no picture."""
    return task.split("/")[1] in _ANSWERED


def transferred(world: World, task: str, make: Maker, rng: np.random.Generator) -> Example:
    """An example of a task about a pair that training shows in tasks of the other sort alone.

    A picture to draw or edit has at least one such object. What is asked about has no others, so that every question is
    about one. Nothing in it is held out of all training.

    Args:
        make: of the task.

    Raises:
        ConfigError: the world has no such pairs.
        NoPlaceError: none was found; another draw may find one.
    """
    answered = is_answered(task)
    pairs = world.drawn_pairs if answered else world.asked_pairs
    if not pairs:
        raise ConfigError(
            f"world.{'drawn' if answered else 'asked'}_pairs is empty; a test of transfer needs some. "
            'Take a world that has them, as "xs-transfer"'
        )
    view = replace(world, held_pairs=pairs, held_counts=(), drawn_pairs=(), asked_pairs=())

    def accept(example: Example) -> bool:
        scenes = [scene for scene in (example.image, example.source) if isinstance(scene, Scene)]
        strange = any((item.colour, item.kind) not in pairs for scene in scenes for item in scene.items)
        return not (any(map(world.holds, scenes)) or (answered and strange))

    return first_accepted(lambda: make(view, rng, True), accept, _TRIES, f"example of {task} for a test of transfer")
