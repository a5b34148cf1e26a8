"""What a domain of the world makes: one example, its text and its truth, pictures not drawn yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from internvlu_jax.data.records import Task
from internvlu_jax.small_world.scenes.scene import Drawable
from internvlu_jax.small_world.scenes.world import World


@dataclass(frozen=True)
class Example:
    """One example of any task.

    topic: what kind of example it is within its domain, for scores by kind.
    prompt: the prompt, the instruction or the question. answer: to a question. further: other questions about the same
        picture, with their answers.
    image: the picture to draw; source: the picture that is edited or asked about.
    truth: what a scorer needs: a `SceneSpec`, an `Edit`, a `Question`, or what a domain's own scorer knows.
    reasoning: the words that lead from the prompt to the picture.
    """

    task: Task
    topic: str
    prompt: str
    truth: Any
    image: Drawable | None = None
    source: Drawable | None = None
    answer: str = ""
    reasoning: str | None = None
    further: tuple[tuple[str, str], ...] = ()


Maker = Callable[[World, np.random.Generator, bool], Example]
"""From a world, a generator and whether something held out has to be in it (else nothing must) to an example.

It may raise NoPlaceError where its random choices do not fit together, and is then called again.
"""
