"""Humour: memes, a line of text above and one below a scene that they make fun of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from internvlu_jax.small_world.scenes.layout import NoPlaceError, free_places
from internvlu_jax.small_world.scenes.marks import DARK, UNITS, letters
from internvlu_jax.small_world.scenes.scene import SIZES, Item, Scene
from internvlu_jax.small_world.scenes.shapes import extent
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import article, frame, pick, plain, plural
from internvlu_jax.small_world.tasks.example import Example, Maker
from internvlu_jax.small_world.tasks.spec_sampling import background
from internvlu_jax.small_world.tasks.specs import Group, SceneSpec
from internvlu_jax.small_world.tasks.things import distinct

LONGEST = 10
"""Characters of a line."""

_LINES = (6.5, 57.5)  # middles of the lines, in units
_TAKEN = ((0.0, 0.0, 1.0, 10 / UNITS), (0.0, 54 / UNITS, 1.0, 1.0))  # by the lines
_TRIES = 100


@dataclass(frozen=True)
class Meme:
    """joke: one of `JOKES`. spec: what the scene shows. about: what it makes fun of. why: what is funny."""

    joke: str
    scene: Scene
    spec: SceneSpec
    top: str
    bottom: str
    about: str
    why: str

    def said(self) -> str:
        return f'a meme with "{self.top}" above and "{self.bottom}" below {plain(self.spec)}'

    def draw(self, side: int) -> UInt8[np.ndarray, "y x 3"]:
        """The picture, side by side pixels.

        Raises:
            ValueError: side is under 8.
        """
        picture = self.scene.draw(side)
        for text, y in zip((self.top, self.bottom), _LINES, strict=True):
            letters(text, UNITS / 2, y, DARK).paint(picture)
        return picture


@dataclass(frozen=True)
class _Joke:
    """groups: what is shown. lines: above and below."""

    groups: tuple[Group, ...]
    lines: tuple[str, str]
    about: str
    why: str


def _group(world: World, rng: np.random.Generator, count: int = 1, size: str | None = None) -> Group:
    return Group(pick(world.kinds, rng), pick(world.colours, rng), size, count)


def _alone(world: World, rng: np.random.Generator) -> _Joke:
    one = _group(world, rng)
    lines = pick((("BEST TEAM", "EVER"), ("PARTY FOR", "EVERYONE"), ("WE ARE", "MANY")), rng)
    return _Joke((one,), lines, "being alone", f"There is only one {one.kind}, and it speaks as if there were many.")


def _twins(world: World, rng: np.random.Generator) -> _Joke:
    pair = _group(world, rng, 2, pick(world.sizes, rng))
    lines = pick((("SPOT THE", "FAKE"), ("WE ARE ALL", "UNIQUE"), ("NOBODY IS", "LIKE I AM")), rng)
    return _Joke((pair,), lines, "twins", f"Both {plural(pair.kind)} look the same.")


def _odd(world: World, rng: np.random.Generator) -> _Joke:
    many, other = _group(world, rng, 2), _group(world, rng)
    if other.kind == many.kind or other.colour == many.colour:
        raise NoPlaceError("it is not odd")
    lines = pick((("I FIT IN", "VERY WELL"), ("CANT SEE", "THE SPY"), ("JUST", "LIKE YOU")), rng)
    why = f"The {other.kind} among the {plural(many.kind)} believes that nobody sees the difference."
    return _Joke((many, other), lines, "the odd one out", why)


def _disguise(world: World, rng: np.random.Generator) -> _Joke:
    shown, claimed = distinct(world.kinds, 2, rng)
    lines = pick(("YES I AM", "TRUST US", "TOTALLY"), rng), article(claimed).upper()
    why = f"It is {article(shown)} and wants to pass for {article(claimed)}."
    return _Joke((Group(shown, pick(world.colours, rng)),), lines, f"wanting to pass for {article(claimed)}", why)


def _hate(world: World, rng: np.random.Generator) -> _Joke:
    kind, colour = pick(world.kinds, rng), pick(world.colours, rng)
    lines = pick(("I HATE", "NO TO"), rng), colour.upper()
    why = f"The {kind} speaks against {colour} and is {colour} itself."
    return _Joke((Group(kind, colour),), lines, "hating one's own colour", why)


def _small(world: World, rng: np.random.Generator) -> _Joke:
    small = _group(world, rng, size=_smallest(world))
    lines = pick((("FEAR THE", "GIANT"), ("SO STRONG", "SO TALL"), ("I AM THE", "BOSS")), rng)
    return _Joke((small,), lines, "a small boaster", f"The {small.kind} is small and speaks of itself as great.")


def _large(world: World, rng: np.random.Generator) -> _Joke:
    large = _group(world, rng, size=max(world.sizes, key=lambda size: SIZES[size]))
    lines = pick((("DAY 1", "MY DIET"), ("JUST ONE", "SNACK"), ("NOT EVEN", "HUNGRY")), rng)
    return _Joke((large,), lines, "a diet", f"The {large.kind} is large and says that it eats little.")


_JOKES: Mapping[str, Callable[[World, np.random.Generator], _Joke]] = {
    "alone": _alone,
    "twins": _twins,
    "odd": _odd,
    "disguise": _disguise,
    "hate": _hate,
    "small": _small,
    "large": _large,
}

JOKES = tuple(_JOKES)
"""Kinds of jokes."""


def holds(world: World, meme: Meme) -> bool:
    """Whether something about the scene, or a word of the lines, is held out of training."""
    return world.holds(meme.scene) or any(map(world.holds_word, f"{meme.top} {meme.bottom}".split()))


def _meme(world: World, rng: np.random.Generator, held_out: bool) -> Meme:
    """A meme with something held out in it, or nothing.

    Raises:
        NoPlaceError: none was found; another draw may find one.
    """
    name = pick(JOKES, rng)
    for _ in range(_TRIES):
        try:
            joke = _JOKES[name](world, rng)
            scene = _scene(world, joke.groups, rng)
        except NoPlaceError:
            continue
        spec = SceneSpec(joke.groups, background=scene.background)
        meme = Meme(name, scene, spec, *joke.lines, joke.about, joke.why)
        if max(map(len, joke.lines)) <= LONGEST and holds(world, meme) == held_out:
            return meme
    raise NoPlaceError(f"no meme {name!r} was found with held_out {held_out}")


def _scene(world: World, groups: tuple[Group, ...], rng: np.random.Generator) -> Scene:
    """The objects between the lines; three or more are small.

    Raises:
        NoPlaceError: they do not fit.
    """
    sizes = world.sizes if sum(group.count for group in groups) < 3 else (_smallest(world),)
    named = [
        (group.kind, group.colour or pick(world.colours, rng), group.size or pick(sizes, rng))
        for group in groups
        for _ in range(group.count)
    ]
    places = free_places([extent(kind, SIZES[size]) for kind, _, size in named], _TAKEN, UNITS, rng)
    items = tuple(Item(*what, *place) for what, place in zip(named, places, strict=True))
    return Scene(items, background(world, rng) or "white")


def _smallest(world: World) -> str:
    return min(world.sizes, key=lambda size: SIZES[size])


def picture(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """A prompt with both lines and the scene."""
    meme = _meme(world, rng, held_out)
    return Example("t2i", meme.joke, frame(rng).format(meme.said()), meme, meme)


def reasoning(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """A prompt with the scene and what is to be made fun of; the lines are to be found."""
    meme = _meme(world, rng, held_out)
    prompt = f"a meme about {meme.about} over {plain(meme.spec)}"
    return Example("t2i", meme.joke, prompt, meme, meme, reasoning=f"{meme.why} So draw {meme.said()}.")


def asked(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """What a line says, what is made fun of, or why it is funny."""
    meme = _meme(world, rng, held_out)
    kind = pick(("top", "bottom", "about", "why"), rng)
    text, answer = {
        "top": ("What does the line at the top say?", meme.top),
        "bottom": ("What does the line at the bottom say?", meme.bottom),
        "about": ("What is the meme about?", meme.about),
        "why": ("Why is it funny?", meme.why),
    }[kind]
    return Example("understanding", kind, text, meme, source=meme, answer=answer)


TASKS: Mapping[str, Maker] = {"picture": picture, "reasoning": reasoning, "question": asked}
