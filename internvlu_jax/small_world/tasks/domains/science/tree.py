"""Binary trees of up to three levels, with one digit in each node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.marks import Mark, Point, badge, line
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import article, listing, pick
from internvlu_jax.small_world.tasks.things import Asked, Riddle, Topic, distinct

LEVELS = 3
_TOP, _DOWN, _RADIUS = 9.5, 22.0, 6.0


@dataclass(frozen=True)
class Node:
    value: int
    left: Node | None = None
    right: Node | None = None

    @property
    def children(self) -> tuple[Node, ...]:
        return tuple(child for child in (self.left, self.right) if child)

    def walk(self) -> Iterator[Node]:
        """Itself and all nodes below, level by level."""
        level: tuple[Node, ...] = (self,)
        while level:
            yield from level
            level = tuple(child for node in level for child in node.children)

    @property
    def levels(self) -> int:
        return 1 + max((child.levels for child in self.children), default=0)

    def in_order(self) -> list[int]:
        """The values from left to right."""
        left, right = (child.in_order() if child else [] for child in (self.left, self.right))
        return [*left, self.value, *right]


@dataclass(frozen=True)
class Tree:
    root: Node
    colour: str

    @property
    def key(self) -> tuple[str, str]:
        return repr(self.root), self.colour

    def said(self) -> str:
        parts = [f"{node.value} has {_said_children(node)}" for node in self.root.walk() if node.children]
        return f"{article(self.colour)} binary tree with {self.root.value} at the root: {listing(parts)}"

    def marks(self) -> list[Mark]:
        edges, nodes = [], []
        for node, place, above in _placed(self.root, 0, 0, None):
            nodes += badge(str(node.value), *place, COLOURS[self.colour], _RADIUS)
            edges += [line(above, place)] if above else []
        return [*edges, *nodes]


def _said_children(node: Node) -> str:
    sides = ((node.left, "left"), (node.right, "right"))
    return " and ".join(f"{child.value} on the {side}" for child, side in sides if child)


def _placed(node: Node, level: int, slot: int, above: Point | None) -> Iterator[tuple[Node, Point, Point | None]]:
    """All nodes with their places and those of their parents; each level has twice the slots of the one above."""
    place = (64 / 2**level * (slot + 0.5), _TOP + _DOWN * level)
    yield node, place, above
    for side, child in enumerate((node.left, node.right)):
        if child:
            yield from _placed(child, level + 1, 2 * slot + side, place)


def inserted(values: Sequence[int]) -> Node:
    """The search tree of the values, put in one after another: smaller ones to the left, larger ones to the right."""
    first, *rest = values
    left, right = [v for v in rest if v < first], [v for v in rest if v > first]
    return Node(first, inserted(left) if left else None, inserted(right) if right else None)


def _search_tree(world: World, rng: np.random.Generator) -> tuple[tuple[int, ...], Tree]:
    """Values in the order in which they are put in, and their tree."""
    values = distinct(range(1, 10), int(rng.integers(3, 8)), rng)
    root = inserted(values)
    if root.levels > LEVELS:
        raise NoPlaceError("the tree has too many levels")
    return values, Tree(root, pick(world.colours, rng))


def _tree(world: World, rng: np.random.Generator) -> Tree:
    """A search tree, or one with the same shape and values in any order."""
    values, tree = _search_tree(world, rng)
    if rng.random() < 0.5:
        return tree
    exchanged = dict(zip(values, distinct(values, len(values), rng), strict=True))
    return Tree(_with_values(tree.root, exchanged), tree.colour)


def _with_values(node: Node, values: dict[int, int]) -> Node:
    left, right = (_with_values(child, values) if child else None for child in (node.left, node.right))
    return Node(values[node.value], left, right)


def _riddle(world: World, rng: np.random.Generator) -> Riddle:
    """Values put into a search tree one after another."""
    values, tree = _search_tree(world, rng)
    prompt = f"the {tree.colour} binary search tree of {', '.join(map(str, values))}, put in one after another"
    facts = [f"{values[0]} is the root."]
    for value in values[1:]:
        steps, node = [], tree.root
        while node.value != value:
            side, sign = ("left", "<") if value < node.value else ("right", ">")
            steps.append(f"{value} {sign} {node.value}: {side}")
            child = node.left if side == "left" else node.right
            assert child is not None
            node = child
        facts.append(f"{', '.join(steps)}.")
    return Riddle(prompt, tuple(facts), tree)


def _question(world: World, rng: np.random.Generator) -> Asked:
    tree = _tree(world, rng)
    root, nodes = tree.root, list(tree.root.walk())
    kind = pick(("root", "leaves", "nodes", "levels", "child", "parent", "search", "order"), rng)
    if kind in ("child", "parent"):
        node = pick([node for node in nodes if node.children], rng)
        return _child(tree, node, rng) if kind == "child" else _parent(tree, node, rng)
    text, answer = {
        "root": ("Which number is at the root?", str(root.value)),
        "leaves": ("How many leaves does the tree have?", str(sum(not node.children for node in nodes))),
        "nodes": ("How many nodes does the tree have?", str(len(nodes))),
        "levels": ("How many levels does the tree have?", str(root.levels)),
        "search": ("Is it a binary search tree?", "yes" if root.in_order() == sorted(root.in_order()) else "no"),
        "order": ("Which numbers does an in-order walk give?", " ".join(map(str, root.in_order()))),
    }[kind]
    return Asked(kind, text, answer, tree)


def _child(tree: Tree, node: Node, rng: np.random.Generator) -> Asked:
    side = pick(("left", "right"), rng)
    child = node.left if side == "left" else node.right
    return Asked("child", f"What is the {side} child of {node.value}?", str(child.value) if child else "none", tree)


def _parent(tree: Tree, node: Node, rng: np.random.Generator) -> Asked:
    child = pick(node.children, rng)
    return Asked("parent", f"What is the parent of {child.value}?", str(node.value), tree)


TOPIC = Topic(_tree, _riddle, _question)
