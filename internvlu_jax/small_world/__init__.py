"""A small world with known answers. A scene is the truth: pictures, prompts, edits, questions and scores come from it.

config.py     what exists, and what is kept from training     scene.py, render.py  scenes, and how they are drawn
wanted.py     what a prompt means, scenes that fulfil it      captions.py          meanings as text
edits.py, questions.py, riddles.py                            figure.py, things.py what is drawn of lines and letters
source.py     all of it as records to train on                domains/             the tasks of each domain
names.py      worlds as sources of a training run
"""

from internvlu_jax.small_world.scenes.scene import Item, Scene, Word
from internvlu_jax.small_world.scenes.world import FULL, SMALL, WORLDS, World
from internvlu_jax.small_world.source import WEIGHTS, WorldSource
from internvlu_jax.small_world.tasks.example import Example
from internvlu_jax.small_world.tasks.specs import Group, Wanted

__all__ = [
    "FULL",
    "SMALL",
    "WEIGHTS",
    "WORLDS",
    "Example",
    "Group",
    "Item",
    "Scene",
    "Wanted",
    "Word",
    "World",
    "WorldSource",
]
