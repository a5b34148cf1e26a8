"""The fixed cases of every score: number n is always the same for a seed, however many are asked for."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import caption
from internvlu_jax.small_world.tasks.domains import general, humour, reasoning, science, spatial, text
from internvlu_jax.small_world.tasks.edits import EDITS
from internvlu_jax.small_world.tasks.example import Example
from internvlu_jax.small_world.tasks.questions import QUESTIONS
from internvlu_jax.small_world.tasks.spec_sampling import CATEGORIES, sample_spec
from internvlu_jax.small_world.tasks.specs import scene_of
from internvlu_jax.small_world.tasks.steps import STEPS
from internvlu_jax.small_world.tasks.transfer import transferred

_Maker = Callable[[World, str, np.random.Generator], Example]
_TRIES = 500
_ABOUT_OBJECTS = tuple(kind for kind in QUESTIONS if kind != "reading")
_DOMAINS = {"science": science.TASKS, "spatial": spatial.TASKS, "humour": humour.TASKS}


def _geneval(held_out: bool, world: World, category: str, rng: np.random.Generator) -> Example:
    world = world if held_out else world.drawn
    spec = sample_spec(world, category, rng, held_out)
    return Example("t2i", category, caption(spec, rng), spec, scene_of(world, spec, rng, held_out))


def _question(world: World, kind: str, rng: np.random.Generator) -> Example:
    return general.question_example(world.asked, kind, rng, held_out=False)


def _domain_question(world: World, domain: str, rng: np.random.Generator) -> Example:
    return _DOMAINS[domain]["question"](world, rng, False)


def _edit(world: World, kind: str, rng: np.random.Generator) -> Example:
    return general.edit_example(world.drawn, kind, rng, held_out=False)


def _words(world: World, _: str, rng: np.random.Generator) -> Example:
    return text.picture(world.drawn, rng, held_out=False)


def _reasoning(world: World, kind: str, rng: np.random.Generator) -> Example:
    world = world.drawn
    prompt, thought, spec = reasoning.riddle(world, kind, rng)
    return Example("t2i", kind, prompt, spec, scene_of(world, spec, rng), reasoning=thought)


def _transfer(task: str, world: World, kind: str, rng: np.random.Generator) -> Example:
    return transferred(world, task, general.KINDS[f"{task.removeprefix('general/')}/{kind}"], rng)


_CASES: Mapping[str, tuple[tuple[str, ...], _Maker]] = {
    "geneval_seen": (CATEGORIES, partial(_geneval, False)),
    "geneval_heldout": (CATEGORIES, partial(_geneval, True)),
    "questions": (QUESTIONS, _question),
    "domain_questions": (tuple(_DOMAINS), _domain_question),
    "edits": (EDITS, _edit),
    "words": (("word",), _words),
    "reasoning": ((*reasoning.RIDDLES, *STEPS), _reasoning),
    "transfer_pictures": (CATEGORIES, partial(_transfer, "general/picture")),
    "transfer_questions": (_ABOUT_OBJECTS, partial(_transfer, "general/question")),
}

NAMES = tuple(_CASES)
"""Of all sets of cases."""


def kinds(name: str) -> tuple[str, ...]:
    """The kinds of cases of a set, which come in turn."""
    return _known(name)[0]


def cases(world: World, name: str, count: int, seed: int = 0) -> list[Example]:
    """So many cases of a set, those of its kinds that the world has in turn.

    Only those of "geneval_heldout" have something held out in them.

    Raises:
        ValueError: there is no such set, or the world is too small for it.
    """
    kinds, make = _known(name)
    kinds = tuple(kind for kind in kinds if kind not in world.without)
    return [
        _made(partial(make, world, kinds[n % len(kinds)]), np.random.default_rng([seed, zlib.crc32(name.encode()), n]))
        for n in range(count)
    ]


def _known(name: str) -> tuple[tuple[str, ...], _Maker]:
    if name not in _CASES:
        raise ValueError(f"the set of cases is {name!r}; expected one of {', '.join(NAMES)}")
    return _CASES[name]


def _made(make: Callable[[np.random.Generator], Example], rng: np.random.Generator) -> Example:
    for _ in range(_TRIES):
        try:
            return make(rng)
        except NoPlaceError:
            continue
    raise ValueError(f"no case was found in {_TRIES} tries; the world may be too small for it")
