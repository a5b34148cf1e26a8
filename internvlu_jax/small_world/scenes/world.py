"""What exists in a world, and which combinations are kept from training."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from internvlu_jax.config import ConfigError
from internvlu_jax.small_world.scenes.letters import LETTERS
from internvlu_jax.small_world.scenes.scene import BACKGROUNDS, COLOURS, SIZES, Item, Scene
from internvlu_jax.small_world.scenes.shapes import KINDS

_HELD_WORDS = 8  # one word in so many is held out


@dataclass(frozen=True)
class World:
    """Everything that scenes are made of.

    most: objects of one scene. grid: positions are multiples of 1 / grid; 256 puts every outline at 64 pixels on the
    samples that draw it, a coarse one is easier to learn. plain: share of the scenes that have the first background,
    which prompts do not mention.
    letters, word_length: of words. words: these and any other string of the letters are drawn, each half of the time.
    held_pairs: (colour, kind) and held_counts: (count, kind): no scene of training has such an object, or exactly so
    many of that kind. One in eight words is held out too, see `holds_word`.
    drawn_pairs, asked_pairs: (colour, kind) that training shows in pictures to draw and edit alone, or in questions
    alone: what is learned of them by the other is transfer (`tasks.transfer`).
    without: domains, and kinds of edits, questions and riddles, that the world does not have.
    """

    kinds: tuple[str, ...] = KINDS[:4]
    colours: tuple[str, ...] = tuple(COLOURS)[:8]
    sizes: tuple[str, ...] = tuple(SIZES)
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)[:3]
    most: int = 4
    grid: int = 256
    plain: float = 0.7
    letters: str = LETTERS
    word_length: int = 4
    words: tuple[str, ...] = ()
    held_pairs: tuple[tuple[str, str], ...] = ()
    held_counts: tuple[tuple[int, str], ...] = ()
    # Not in the repr, by which scores know the world that they hold for: older worlds have none of these.
    drawn_pairs: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    asked_pairs: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    without: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        known = {"kinds": KINDS, "colours": COLOURS, "sizes": SIZES, "backgrounds": BACKGROUNDS, "letters": LETTERS}
        for name, options in known.items():
            _check_known(f"world.{name}", getattr(self, name), options)
        _check_known("world.words", set("".join(self.words)), self.letters)
        pairs = list(itertools.product(self.colours, self.kinds))
        for name in ("held_pairs", "drawn_pairs", "asked_pairs"):
            _check_known(f"world.{name}", getattr(self, name), pairs)
        several = Counter((*self.held_pairs, *self.drawn_pairs, *self.asked_pairs)).most_common(1)
        if several and several[0][1] > 1:
            raise ConfigError(
                f"{several[0][0]} stands {several[0][1]} times in world.held_pairs, drawn_pairs and asked_pairs; "
                "expected each pair once"
            )
        _check_known("world.held_counts", self.held_counts, list(itertools.product(range(1, 9), self.kinds)))
        for name, value, low, high in (
            ("most", self.most, 1, 4),
            ("grid", self.grid, 4, 4096),
            ("plain", self.plain, 0, 1),
            ("word_length", self.word_length, 1, 4),
        ):
            if not low <= value <= high:
                raise ConfigError(f"world.{name} is {value}; expected {low} to {high}")
        if not all((self.kinds, self.colours, self.sizes, self.backgrounds, self.letters)):
            raise ConfigError("the world has no kinds, colours, sizes, backgrounds or letters; expected some of each")

    def has(self, kind: str, objects: int) -> bool:
        """Whether there are edits or questions of a kind, which needs so many objects in one scene."""
        return kind not in self.without and objects <= self.most

    def require(self, kind: str, objects: int, what: str) -> None:
        """Raises ConfigError if there are no edits or questions of a kind (see `has`); `what` names it."""
        if kind in self.without:
            raise ConfigError(f"world.without has {kind!r}; there is no such thing as {what}. Leave it out")
        if self.most < objects:
            raise ConfigError(
                f"world.most is {self.most}; {what} needs {objects} objects in one scene. Take a world with more, or "
                "leave it out"
            )

    @cached_property
    def drawn(self) -> World:
        """The world as training draws it: what it shows in questions alone is held out."""
        return self._holding(self.asked_pairs)

    @cached_property
    def asked(self) -> World:
        """The world as training asks about it: what it shows in pictures to draw alone is held out."""
        return self._holding(self.drawn_pairs)

    def _holding(self, pairs: tuple[tuple[str, str], ...]) -> World:
        if not (self.drawn_pairs or self.asked_pairs):
            return self
        return replace(self, held_pairs=self.held_pairs + pairs, drawn_pairs=(), asked_pairs=())

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(colour, kind) of training."""
        return tuple(p for p in itertools.product(self.colours, self.kinds) if p not in self.held_pairs)

    @cached_property
    def counts(self) -> tuple[tuple[int, str], ...]:
        """(count, kind) of training, two and more."""
        every = itertools.product(range(2, self.most + 1), self.kinds)
        return tuple(count for count in every if count not in self.held_counts)

    def holds(self, scene: Scene) -> bool:
        """Whether anything about the scene is held out of training."""
        return self.holds_items(scene.items) or (scene.word is not None and self.holds_word(scene.word.text))

    def holds_items(self, items: Iterable[Item]) -> bool:
        """Whether an object, or the number of objects of a kind, is held out of training."""
        items = tuple(items)
        return any((item.colour, item.kind) in self.held_pairs for item in items) or self.holds_numbers(
            (1, item.kind) for item in items
        )

    def holds_numbers(self, numbers: Iterable[tuple[int, str]]) -> bool:
        """Whether so many of a kind, added up by kind, are held out of training."""
        totals: Counter[str] = Counter()
        for count, kind in numbers:
            totals[kind] += count
        return any((count, kind) in self.held_counts for kind, count in totals.items())

    def holds_word(self, text: str) -> bool:
        """Whether the word is one of the eighth that is held out of training; single letters never are."""
        return len(text) > 1 and zlib.crc32(text.encode()) % _HELD_WORDS == 0

    def word(self, rng: np.random.Generator, held_out: bool = False, length: int | None = None) -> str:
        """A word, held out or not: a string of letters of that length; with None, half of the time one of the list.

        Raises:
            ValueError: there is no such word.
        """
        for _ in range(1000):
            if length is None and self.words and rng.random() < 0.5:
                text = self.words[rng.integers(len(self.words))]
            else:
                size = length or rng.integers(1, self.word_length + 1)
                text = "".join(self.letters[i] for i in rng.integers(len(self.letters), size=size))
            if self.holds_word(text) == held_out:
                return text
        many = "" if length is None else f"of length {length} "
        raise ValueError(f"no word {many}was found with held_out {held_out} out of the letters {self.letters}")


def _check_known(name: str, values: Iterable, options: Iterable) -> None:
    unknown = [value for value in values if value not in options]
    if unknown:
        raise ConfigError(f"{name} has {unknown[0]!r}; expected some of {', '.join(map(str, options))}")


_LISTED = """
ANT APE ARM ART BAG BALL BAT BED BEE BELL BIRD BLUE BOAT BOOK BOX BOY BUS CAKE CAR CAT COW CUP DAY DOG DOOR DUCK
EAR EGG EYE FAN FISH FLAG FOX FROG GAME GIFT GOAT GO GOLD HAND HAT HEN HOME ICE INK JAM JAR KEY KING KITE LAMP
LEAF LION MAP MILK MOON NEST NET NO NOTE OIL OK OPEN OWL PAN PEN PIG PIN PLUM RAIN RED RING ROAD ROSE SEA SHIP
SKY SNOW STAR STOP SUN TEA TEN TOP TOY TREE UP VAN WAX WEB WOLF YES ZOO 1 2 3 4 5 6 7 8 9 10 12 24 42 50 99 100
365 2024 A1 B2 C3
"""
WORDS = tuple(_LISTED.split())
"""Words that a picture may say, numbers among them."""


def _held_pairs(kinds: tuple[str, ...], colours: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """One colour of each kind."""
    return tuple((colours[(3 * n + 3) % len(colours)], kind) for n, kind in enumerate(kinds))


_HELD_COUNTS = ((2, "triangle"), (3, "star"), (4, "circle"))
_DISTINCT = "DEKLNOPSTY"  # no two of these letters agree in more than 28 of their 35 cells

SMALL = World(
    grid=8,
    letters=_DISTINCT,
    words=tuple(word for word in WORDS if set(word) <= set(_DISTINCT)),
    held_pairs=_held_pairs(KINDS[:4], tuple(COLOURS)[:8]),
    held_counts=_HELD_COUNTS,
)
"""The world of the shipped model."""

FULL = World(
    kinds=KINDS,
    colours=tuple(COLOURS),
    backgrounds=tuple(BACKGROUNDS),
    words=WORDS,
    held_pairs=_held_pairs(KINDS, tuple(COLOURS)),
    held_counts=(*_HELD_COUNTS, (2, "heart"), (3, "cross")),
)
"""Everything, for larger budgets."""

_XS_KINDS, _XS_COLOURS = ("square", "cross", "ring"), ("red", "green", "blue", "yellow")
XS = World(
    kinds=_XS_KINDS,
    colours=_XS_COLOURS,
    sizes=("large",),
    backgrounds=("white",),
    most=2,
    grid=8,
    held_pairs=_held_pairs(_XS_KINDS, _XS_COLOURS),
    held_counts=((2, "cross"),),
    without=("text", "move", "resize", "background", "relation", "comparison", "place", "reading", "size", "letter"),
)
"""What a model of one or two million parameters learns to draw in an hour: no two of the kinds agree, as the reader
measures it, to more than 0.57 (circle and square: 0.84), and places are on the grid of the latents."""

XS_TRANSFER = replace(
    XS,
    held_pairs=(),
    drawn_pairs=(("red", "square"), ("yellow", "cross"), ("blue", "ring")),
    asked_pairs=XS.held_pairs,
)
"""For what passes between drawing and answering: pictures to draw are those of XS, and questions show what drawing
lacks, so that the two worlds differ in questions alone."""

WORLDS = {"small": SMALL, "full": FULL, "xs": XS, "xs-transfer": XS_TRANSFER}
