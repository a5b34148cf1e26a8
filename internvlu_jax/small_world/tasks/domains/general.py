"""General and compositional: objects with kinds, colours, sizes, numbers and places, on plain backgrounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks import edits, questions
from internvlu_jax.small_world.tasks.captions import caption, pick, plain
from internvlu_jax.small_world.tasks.edits import EDITS, edit
from internvlu_jax.small_world.tasks.example import Example, Maker
from internvlu_jax.small_world.tasks.questions import PLACE, QUESTIONS, further, question
from internvlu_jax.small_world.tasks.spec_sampling import CATEGORIES, background, described, sample_spec
from internvlu_jax.small_world.tasks.specs import scene_of

_EDITS = tuple(kind for kind in EDITS if kind != "text")
_QUESTIONS = tuple(kind for kind in QUESTIONS if kind != "reading")
_FURTHER = 5  # questions of a conversation after the first
_KindMaker = Callable[[World, str, np.random.Generator, bool], Example]


def picture(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """A prompt of one of GenEval's categories, or of a mixed scene."""
    return picture_example(world, pick((*CATEGORIES, "mixed", "mixed"), rng), rng, held_out)


def picture_example(world: World, category: str, rng: np.random.Generator, held_out: bool) -> Example:
    """A prompt of one category."""
    spec = sample_spec(world, category, rng, held_out)
    if category != "mixed":
        spec = replace(spec, background=background(world, rng))
    return Example("t2i", category, caption(spec, rng), spec, scene_of(world, spec, rng, held_out))


def edited(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """An edit of any kind but that of words."""
    return edit_example(world, _pick(world, _EDITS, edits.least_objects, rng), rng, held_out)


def edit_example(world: World, kind: str, rng: np.random.Generator, held_out: bool) -> Example:
    """An edit of one kind."""
    made = edit(world, kind, rng, held_out)
    return Example("edit", made.kind, made.instruction, made, made.after, made.before)


def asked(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """A question of any kind but reading."""
    return question_example(world, _pick(world, _QUESTIONS, questions.least_objects, rng), rng, held_out)


def question_example(world: World, kind: str, rng: np.random.Generator, held_out: bool) -> Example:
    """A question of one kind."""
    made = question(world, kind, rng, held_out)
    return Example("understanding", made.kind, made.text, made, source=made.scene, answer=made.answer)


def conversation(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """A question of any kind, reading among them, and others about the same picture: many answers for one picture."""
    made = question(world, _pick(world, QUESTIONS, questions.least_objects, rng), rng, held_out)
    more = tuple((other.text, other.answer) for other in further(world, made, _FURTHER, rng, held_out))
    return Example("understanding", made.kind, made.text, made, source=made.scene, answer=made.answer, further=more)


def _pick(world: World, kinds: Sequence[str], least_objects: Callable[[str], int], rng: np.random.Generator) -> str:
    """One of the kinds that the world has."""
    return pick([kind for kind in kinds if world.has(kind, least_objects(kind))], rng)


def _of_kind(make: _KindMaker, kind: str, world: World, rng: np.random.Generator, held_out: bool) -> Example:
    return make(world, kind, rng, held_out)


def told(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """The request to say what a picture shows; its answer names the objects from left to right."""
    scene = scene_of(world, sample_spec(world, "mixed", rng, held_out), rng, held_out)
    spec = described(scene)
    text = pick(("Describe the picture.", "What is in the picture?", "What do you see?"), rng)
    return Example("understanding", "description", text, spec, source=scene, answer=plain(spec))


TASKS: Mapping[str, Maker] = {
    "picture": picture,
    "edit": edited,
    "question": asked,
    "conversation": conversation,
    "description": told,
}

KINDS: Mapping[str, Maker] = {
    f"{task}/{kind}": partial(_of_kind, make, kind)
    for task, kinds, make in (
        ("picture", (*CATEGORIES, "mixed"), picture_example),
        ("edit", _EDITS, edit_example),
        ("question", (*_QUESTIONS, PLACE), question_example),
    )
    for kind in kinds
}
"""One kind of a task alone, for training on what is learned last."""
