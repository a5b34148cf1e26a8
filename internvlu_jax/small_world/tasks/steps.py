"""Riddles of several steps: no single fact resolves them, each step needs the one before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import NUMBERS, article, listing, name, pick, plural
from internvlu_jax.small_world.tasks.spec_sampling import sample_spec
from internvlu_jax.small_world.tasks.specs import Group, SceneSpec

SceneRiddle = tuple[str, list[str], SceneSpec]
"""The prompt, what has to be inferred, and what is meant."""

_LAST = len(NUMBERS) - 1


def _changes(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    """An object that changes its colour or shape two or three times."""
    spec = sample_spec(world, "colours", rng, held_out)
    states = [spec.groups[0]]
    for _ in range(rng.integers(2, 4)):  # backwards, from what is meant
        after = states[0]
        before = [
            Group(kind, colour) for colour, kind in world.pairs if (kind == after.kind) != (colour == after.colour)
        ]
        if not before:
            raise NoPlaceError("there is one object only")
        states.insert(0, pick(before, rng))
    changes = [b.colour or "" if a.kind == b.kind else article(b.kind) for a, b in itertools.pairwise(states)]
    start, *others = [article(name(state)) for state in states]
    text = f"{start} that becomes {', then '.join(changes)}"
    return text, [f"{start} becomes {', then '.join(others)}."], spec


def _same(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    """A colour that is said of another object, and a third object that has nothing to do with it."""
    spec = sample_spec(world, "colours", rng, held_out)
    meant = spec.groups[0]
    like = [kind for colour, kind in world.pairs if colour == meant.colour and kind != meant.kind]
    if not like:
        raise NoPlaceError("nothing else has the colour")
    same = pick(like, rng)
    others = [pair for pair in world.pairs if pair[0] != meant.colour and pair[1] not in (meant.kind, same)]
    if not others:
        raise NoPlaceError("there are too few kinds")
    colour, kind = pick(others, rng)
    facts = [f"the {same} is {meant.colour}", f"the {kind} is {colour}", f"the {meant.kind} is like the {same}"]
    facts = [facts[n] for n in rng.permutation(3)]
    return (
        f"{', '.join(facts)}: the {meant.kind}",
        [f"the {same} is {meant.colour}, so the {meant.kind} is, too."],
        spec,
    )


def _order(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    """Three kinds ordered by two comparisons; the first or the last of them is meant."""
    spec = sample_spec(world, "colours", rng, held_out)
    meant = spec.groups[0]
    others = [kind for kind in world.kinds if kind != meant.kind]
    if len(others) < 2:
        raise NoPlaceError("there are too few kinds")
    others = [others[n] for n in rng.permutation(len(others))[:2]]
    which = pick(("largest", "smallest"), rng)
    falling = [meant.kind, *others] if which == "largest" else [*others, meant.kind]
    pairs = [(falling[n], falling[n + 1]) for n in rng.permutation(2)]
    facts = [
        f"the {a} is larger than the {b}" if rng.random() < 0.5 else f"the {b} is smaller than the {a}"
        for a, b in pairs
    ]
    text = f"{listing(facts)}: the {which}, in {meant.colour}"
    return text, [f"{', '.join(falling)}: the {which} is the {meant.kind}."], spec


def _sum(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    """Three numbers added and subtracted."""
    spec = sample_spec(world, "counting", rng, held_out)
    group = spec.groups[0]
    first, between = int(rng.integers(1, _LAST + 1)), int(rng.integers(1, _LAST + 1))
    if first == between or between == group.count:
        raise NoPlaceError("nothing is added")
    steps = [
        (a, *(("plus", b - a) if b > a else ("minus", a - b)), b) for a, b in ((first, between), (between, group.count))
    ]
    text = NUMBERS[first] + "".join(f" {sign} {NUMBERS[by]}" for _, sign, by, _ in steps)
    facts = ", ".join(f"{NUMBERS[a]} {sign} {NUMBERS[by]} is {NUMBERS[b]}" for a, sign, by, b in steps)
    return f"{text} {' '.join(w for w in (group.colour, plural(group.kind)) if w)}", [f"{facts}."], spec


STEPS: dict[str, Callable[[World, np.random.Generator, bool], SceneRiddle]] = {
    "changes": _changes,
    "same": _same,
    "order": _order,
    "sum": _sum,
}
