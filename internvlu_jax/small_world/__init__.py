"""A small world with known answers. A scene is the truth: pictures, prompts, edits, questions and scores come from it.

scenes/    what exists, scenes, and how they are drawn      tasks/     prompts, edits, questions, and the domains
scoring/   pictures read back, verdicts, a model's scores   weights/   the model in the box, whose card is README.md
source.py  all of it as records to train on                 names.py   worlds as sources of a training run
"""

from internvlu_jax.small_world.scenes.scene import Item, Scene, Word
from internvlu_jax.small_world.scenes.world import FULL, SMALL, WORLDS, XS, XS_TRANSFER, World
from internvlu_jax.small_world.source import WEIGHTS, WorldSource
from internvlu_jax.small_world.tasks.example import Example
from internvlu_jax.small_world.tasks.specs import Group, SceneSpec

__all__ = [
    "FULL",
    "SMALL",
    "WEIGHTS",
    "WORLDS",
    "XS",
    "XS_TRANSFER",
    "Example",
    "Group",
    "Item",
    "Scene",
    "SceneSpec",
    "Word",
    "World",
    "WorldSource",
]
