"""Facts that a prompt may leave to be worked out, each with the sentence that says it."""

from __future__ import annotations

import numpy as np

from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import NUMBERS, pick

_THINGS = {
    1: ("a week has Sundays", "a unicorn has horns", "the earth has moons"),
    2: ("a bicycle has wheels", "a bird has wings", "a face has eyes", "a day has halves"),
    3: ("a triangle has corners", "a tricycle has wheels", "a traffic light has lamps"),
    4: ("a square has corners", "a car has wheels", "a dog has legs", "a year has seasons", "a table has legs"),
}

_OF_COLOUR = {
    "red": ("of blood", "of a ripe tomato"),
    "green": ("of grass", "of a frog"),
    "blue": ("of a clear sky", "of the sea"),
    "yellow": ("of a ripe banana", "of a lemon"),
    "purple": ("of an aubergine", "of lavender"),
    "orange": ("of a carrot", "of a pumpkin"),
    "black": ("of coal", "of the night"),
    "pink": ("of a pig", "of a flamingo"),
    "brown": ("of chocolate", "of earth"),
    "gray": ("of an elephant", "of a mouse"),
    "cyan": ("of a shallow lagoon",),
}

_MIXED = {
    "orange": (("red", "yellow"),),
    "green": (("blue", "yellow"),),
    "purple": (("red", "blue"),),
    "pink": (("red", "white"),),
    "gray": (("black", "white"),),
}

_KINDS = {
    "circle": ("the shape of a wheel", "the shape of a full moon", "a shape without corners"),
    "square": ("a shape with four equal sides", "the shape with one corner more than a triangle"),
    "triangle": (
        "a shape with three sides",
        "the shape of a slice of pizza",
        "the shape with one corner less than a square",
    ),
    "star": ("the shape on top of a Christmas tree", "the shape with five points"),
    "diamond": ("a square that stands on its corner",),
    "cross": ("the shape of a plus sign",),
    "heart": ("the shape that stands for love",),
    "ring": ("the shape of a doughnut",),
}


def number(count: int, rng: np.random.Generator) -> tuple[str, str]:
    """A phrase that asks for so many, with a place for their name, and the sentence that says how many they are."""
    form = rng.integers(4)
    said = NUMBERS[count]
    if form <= 1:
        fact = pick(_THINGS[count], rng)
        owner, _, things = fact.partition(" has ")
        return f"as many {{}} as {fact}", f"{owner[0].upper()}{owner[1:]} has {said} {_one(things, count)}."
    if form == 2:
        a = int(rng.integers(1, 7))
        if a >= count or rng.random() < 0.5:
            return (
                f"{NUMBERS[a + count]} minus {NUMBERS[a]} {{}}",
                f"{NUMBERS[a + count]} minus {NUMBERS[a]} is {said}.",
            )
        return f"{NUMBERS[a]} plus {NUMBERS[count - a]} {{}}", f"{NUMBERS[a]} plus {NUMBERS[count - a]} is {said}."
    return f"half of {NUMBERS[2 * count]} {{}}", f"Half of {NUMBERS[2 * count]} is {said}."


def _one(things: str, count: int) -> str:
    return things[:-1] if count == 1 else things


def colour(of: str, rng: np.random.Generator) -> tuple[str, str]:
    """A phrase that means the colour, after "in", and the sentence that says it."""
    if of in _MIXED and rng.random() < 0.4:
        a, b = pick(_MIXED[of], rng)
        if rng.random() < 0.5:
            a, b = b, a
        return f"the colour that {a} and {b} mix to", f"{a} and {b} mix to {of}."
    thing = pick(_OF_COLOUR[of], rng)
    return f"the colour {thing}", f"The colour {thing} is {of}."


def kind(of: str, world: World, rng: np.random.Generator) -> tuple[str, str]:
    """A phrase that means the kind of object, and the sentence that says it."""
    others = [other for other in world.kinds if other != of]
    if others and rng.random() < 0.25:
        other = pick(others, rng)
        row = ", ".join((other, of) * 2 + (other,))
        return f"the next shape after {row}", f"After {other} comes {of}."
    phrase = pick(_KINDS[of], rng)
    return phrase, f"{phrase[0].upper()}{phrase[1:]} is a {of}."


READABLE = (*(chr(n) for n in range(ord("B"), ord("Z") + 1)), *(str(n) for n in range(2, 21)))
"""Words that `letter` has a phrase for."""


def letter(of: str, rng: np.random.Generator) -> tuple[str, str]:
    """A phrase that means one letter or number of `READABLE`, and the sentence that says it."""
    if of.isdigit():
        a = int(rng.integers(1, int(of)))
        return f"the result of {a} + {int(of) - a}", f"{a} + {int(of) - a} = {of}."
    before = chr(ord(of) - 1)
    return f"the letter after {before}", f"After {before} comes {of}."
