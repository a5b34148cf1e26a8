"""Small molecules as graphs of atoms and bonds, in which each atom has as many bonds as its kind can have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from internvlu_jax.small_world.scenes.marks import WHITE, Mark, Point, badge, line
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import article, listing, pick
from internvlu_jax.small_world.tasks.things import Asked, Riddle, Topic

ELEMENTS = {"H": "hydrogen", "C": "carbon", "N": "nitrogen", "O": "oxygen"}
_ORDERS = ("", "single", "double", "triple")
_APART, _RADIUS = 16.0, 5.5


@dataclass(frozen=True)
class Compound:
    """atoms: element, and place in distances of neighbours. bonds: (atom, atom, order). hint: what it is known as."""

    atoms: tuple[tuple[str, float, float], ...]
    bonds: tuple[tuple[int, int, int], ...]
    hint: str

    @property
    def formula(self) -> str:
        """Carbon and hydrogen first, as chemists write it; without carbon, nitrogen before hydrogen."""
        counts = Counter(element for element, _, _ in self.atoms)
        order = "CHNOF" if "C" in counts else "NHOF"
        return "".join(e + (str(counts[e]) if counts[e] > 1 else "") for e in order if counts[e])

    def said_bonds(self) -> str:
        """ "two single bonds" as "2 single bonds O-H"."""
        names = ((_ORDERS[order], "-".join(sorted((self.atoms[a][0], self.atoms[b][0])))) for a, b, order in self.bonds)
        counts = Counter(names)
        return listing([f"{n} {order} bond{'s' if n > 1 else ''} {pair}" for (order, pair), n in counts.items()])


def _star(centre: str, *around: tuple[str, float, float, int], hint: str) -> Compound:
    """One atom in the middle, bonds from it to all others."""
    atoms = ((centre, 0.0, 0.0), *((element, x, y) for element, x, y, _ in around))
    return Compound(atoms, tuple((0, n, order) for n, (_, _, _, order) in enumerate(around, 1)), hint)


def _two(a: str, b: str, order: int, hint: str) -> Compound:
    return Compound(((a, -0.7, 0.0), (b, 0.7, 0.0)), ((0, 1, order),), hint)


_ENDS = ((-1.3, -0.8), (-1.3, 0.8), (1.3, -0.8), (1.3, 0.8))


def _pair(element: str, order: int, around: tuple[Point, ...], hint: str) -> Compound:
    """Two equal atoms, hydrogen around: that on the left is bound to the left one."""
    half = 0.5 if max(around)[0] == 1.5 else 0.65
    atoms = ((element, -half, 0.0), (element, half, 0.0), *(("H", x, y) for x, y in around))
    return Compound(atoms, ((0, 1, order), *((int(x > 0), n, 1) for n, (x, _) in enumerate(around, 2))), hint)


COMPOUNDS: Mapping[str, Compound] = {
    "hydrogen": _two("H", "H", 1, "the lightest gas"),
    "oxygen": _two("O", "O", 2, "the gas that fire needs"),
    "nitrogen": _two("N", "N", 3, "the gas that most of air is"),
    "hydrogen fluoride": _two("H", "F", 1, "the acid that etches glass"),
    "water": _star("O", ("H", -0.8, 0.6, 1), ("H", 0.8, 0.6, 1), hint="what rain is"),
    "ammonia": _star("N", ("H", -0.95, 0.3, 1), ("H", 0.95, 0.3, 1), ("H", 0.0, 1.0, 1), hint="the simplest base"),
    "methane": _star(
        "C", ("H", -1.0, 0.0, 1), ("H", 1.0, 0.0, 1), ("H", 0.0, -1.0, 1), ("H", 0.0, 1.0, 1),
        hint="the simplest hydrocarbon",
    ),
    "carbon dioxide": _star("C", ("O", -1.2, 0.0, 2), ("O", 1.2, 0.0, 2), hint="the gas that plants take in"),
    "hydrogen cyanide": _star("C", ("H", -1.2, 0.0, 1), ("N", 1.2, 0.0, 3), hint="the poison of bitter almonds"),
    "formaldehyde": _star(
        "C", ("O", 0.0, -1.0, 2), ("H", -0.85, 0.55, 1), ("H", 0.85, 0.55, 1), hint="the simplest aldehyde"
    ),
    "ethane": _pair(
        "C", 1, ((-1.5, 0.0), (-0.5, -1.0), (-0.5, 1.0), (1.5, 0.0), (0.5, -1.0), (0.5, 1.0)),
        "the hydrocarbon with two carbon atoms and single bonds",
    ),
    "ethene": _pair("C", 2, _ENDS, "the simplest hydrocarbon with a double bond"),
    "ethyne": _pair("C", 3, ((-1.5, 0.0), (1.5, 0.0)), "the simplest hydrocarbon with a triple bond"),
    "hydrazine": _pair("N", 1, _ENDS, "the rocket fuel of nitrogen and hydrogen"),
    "hydrogen peroxide": _pair("O", 1, ((-1.1, 0.9), (1.1, -0.9)), "the bleach of hydrogen and oxygen"),
}  # fmt: skip


@dataclass(frozen=True)
class Molecule:
    """name: one of `COMPOUNDS`. turns: quarters, clockwise, which do not matter. colour: of all atoms but hydrogen."""

    name: str
    colour: str
    turns: int

    @property
    def compound(self) -> Compound:
        return COMPOUNDS[self.name]

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.colour

    def said(self) -> str:
        return f"{article(self.colour)} molecule of {self.name}, {self.compound.formula}"

    def marks(self) -> list[Mark]:
        atoms, places = self.compound.atoms, self._places()
        made: list[Mark] = []
        for a, b, order in self.compound.bonds:
            made += _bond(places[a], places[b], order)
        for (element, _, _), place in zip(atoms, places, strict=True):
            made += badge(element, *place, WHITE if element == "H" else COLOURS[self.colour], _RADIUS)
        return made

    def _places(self) -> list[Point]:
        """Turned, around the middle of the picture, on half units."""
        points = [(x, y) for _, x, y in self.compound.atoms]
        for _ in range(self.turns):
            points = [(-y, x) for x, y in points]
        middle = [(max(axis) + min(axis)) / 2 for axis in zip(*points, strict=True)]
        return [
            (math.floor(32 + _APART * (x - middle[0])) + 0.5, math.floor(32 + _APART * (y - middle[1])) + 0.5)
            for x, y in points
        ]


def _bond(a: Point, b: Point, order: int) -> list[Mark]:
    """As many parallel lines as its order."""
    length = math.dist(a, b)
    across = ((a[1] - b[1]) / length, (b[0] - a[0]) / length)
    shifts = [3.0 * (n - (order - 1) / 2) for n in range(order)]
    return [line(_moved(a, across, shift), _moved(b, across, shift), width=1.25) for shift in shifts]


def _moved(point: Point, direction: Point, by: float) -> Point:
    return point[0] + by * direction[0], point[1] + by * direction[1]


def _molecule(world: World, rng: np.random.Generator) -> Molecule:
    return Molecule(pick(tuple(COMPOUNDS), rng), pick(world.colours, rng), int(rng.integers(4)))


def _riddle(world: World, rng: np.random.Generator) -> Riddle:
    """The formula of a name, or the molecule of a hint."""
    molecule = _molecule(world, rng)
    compound, name = molecule.compound, molecule.name
    facts = [f"{name.capitalize()} is {compound.formula}.", f"It has {compound.said_bonds()}."]
    if rng.random() < 0.5:
        return Riddle(f"{article(molecule.colour)} molecule of {name}", tuple(facts), molecule)
    fact = f"{compound.hint.capitalize()} is {name}."
    return Riddle(f"a molecule of {compound.hint}, in {molecule.colour}", (fact, *facts), molecule)


def _question(world: World, rng: np.random.Generator) -> Asked:
    molecule = _molecule(world, rng)
    compound, element = molecule.compound, pick(tuple(ELEMENTS), rng)
    count = sum(atom[0] == element for atom in compound.atoms)
    order = int(rng.integers(1, 4))
    kind = pick(("atoms", "element", "bonds", "order", "name", "formula"), rng)
    text, answer = {
        "atoms": ("How many atoms does the molecule have?", str(len(compound.atoms))),
        "element": (f"How many {ELEMENTS[element]} atoms are there?", str(count)),
        "bonds": ("How many pairs of atoms are bound to each other?", str(len(compound.bonds))),
        "order": (f"Is there a {_ORDERS[order]} bond?", "yes" if any(b[2] == order for b in compound.bonds) else "no"),
        "name": ("Which substance is this?", molecule.name),
        "formula": ("What is the formula?", compound.formula),
    }[kind]
    return Asked(kind, text, answer, molecule)


TOPIC = Topic(_molecule, _riddle, _question)
