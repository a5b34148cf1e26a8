"""Graphs of nodes A to F: neighbours, connection, shortest paths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.marks import Mark, Point, badge, line
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import NUMBERS, listing, pick
from internvlu_jax.small_world.tasks.things import Asked, Riddle, Topic, bold

NODES = "ABCDEF"
_AROUND, _RADIUS = 23.0, 6.0
_PLAIN = (232, 232, 240)


@dataclass(frozen=True)
class Graph:
    """edges: in order, as "AB" for that between A and B. path: nodes along a path drawn in the colour, or none."""

    nodes: str
    edges: tuple[str, ...]
    colour: str
    path: str = ""

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        return self.nodes, self.edges

    def neighbours(self, node: str) -> str:
        return "".join(sorted(edge.replace(node, "") for edge in self.edges if node in edge))

    def layers(self, start: str) -> list[str]:
        """The nodes by their distance from one, as far as they can be reached."""
        layers, left = [start], set(self.nodes) - {start}
        while layer := sorted({n for node in layers[-1] for n in self.neighbours(node)} & left):
            layers.append("".join(layer))
            left -= set(layer)
        return layers

    def distance(self, start: str, end: str) -> int | None:
        """The number of edges on the shortest path, None if there is no path."""
        return next((n for n, layer in enumerate(self.layers(start)) if end in layer), None)

    def said(self) -> str:
        text = f"a graph of {listing(self.nodes)} with the edges {said_edges(self.edges)}"
        return f"{text}, and the path {'-'.join(self.path)} in {self.colour}" if self.path else text

    def marks(self) -> list[Mark]:
        places = {node: _place(n, len(self.nodes)) for n, node in enumerate(self.nodes)}
        on_path = edges_of(self.path)
        colour = COLOURS[self.colour]
        marks: list[Mark] = [line(places[edge[0]], places[edge[1]]) for edge in self.edges if edge not in on_path]
        marks += [line(places[edge[0]], places[edge[1]], colour, 3.5) for edge in on_path]
        for node, place in places.items():
            marks += badge(node, *place, colour if node in self.path else _PLAIN, _RADIUS)
        return marks


def _place(n: int, count: int) -> Point:
    """On a circle, clockwise from the top, on half units: letters are an odd number of units wide."""
    angle = 2 * math.pi * n / count
    return math.floor(32 + _AROUND * math.sin(angle)) + 0.5, math.floor(32 - _AROUND * math.cos(angle)) + 0.5


def edges_of(path: str) -> tuple[str, ...]:
    """The edges along a path, in order."""
    return _ordered(a + b for a, b in itertools.pairwise(path))


def said_edges(edges: Iterable[str]) -> str:
    return listing(["-".join(edge) for edge in edges])


def _ordered(edges: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted("".join(sorted(edge)) for edge in edges))


def _graph(world: World, rng: np.random.Generator) -> Graph:
    """Any edges; not too many."""
    nodes = NODES[: rng.integers(3, len(NODES) + 1)]
    pairs = list(itertools.combinations(nodes, 2))
    count = int(rng.integers(2, min(len(pairs), len(nodes) + 2) + 1))
    chosen = rng.choice(len(pairs), count, replace=False)
    return Graph(nodes, _ordered("".join(pairs[int(n)]) for n in chosen), pick(bold(world), rng))


def _riddle(world: World, rng: np.random.Generator) -> Riddle:
    return _shortest(world, rng) if rng.random() < 0.7 else _family(world, rng)


def _shortest(world: World, rng: np.random.Generator) -> Riddle:
    """The one shortest path between two nodes."""
    graph = _graph(world, rng)
    start, end = pick(list(itertools.combinations(graph.nodes, 2)), rng)
    paths = _shortest_paths(graph, start, end)
    if len(paths) != 1 or len(paths[0]) < 3:
        raise NoPlaceError("there is no shortest path, or more than one, or it is an edge")
    prompt = f"{graph.said()}, the shortest path from {start} to {end} in {graph.colour}"
    layers = graph.layers(start)[1 : len(paths[0])]
    facts = [
        f"{NUMBERS[n].capitalize()} step{'s' if n > 1 else ''} from {start}: {listing(layer)}."
        for n, layer in enumerate(layers, 1)
    ]
    facts.append(f"So the shortest path is {'-'.join(paths[0])}.")
    return Riddle(prompt, tuple(facts), Graph(graph.nodes, graph.edges, graph.colour, paths[0]))


def _shortest_paths(graph: Graph, start: str, end: str) -> list[str]:
    paths = [start]
    for _ in graph.nodes:
        arrived = [path for path in paths if path[-1] == end]
        if arrived:
            return arrived
        paths = [path + node for path in paths for node in graph.neighbours(path[-1]) if node not in path]
    return []


def _family(world: World, rng: np.random.Generator) -> Riddle:
    nodes = NODES[: rng.integers(4, len(NODES) + 1)]
    family, hub = pick(("ring", "star", "chain", "complete graph"), rng), pick(nodes, rng)
    edges, fact = {
        "ring": (edges_of(nodes + nodes[0]), "In a ring each node is joined to the next, and the last to the first."),
        "star": (_ordered(hub + n for n in nodes if n != hub), f"In a star {hub} is joined to all others."),
        "chain": (edges_of(nodes), "In a chain each node is joined to the next."),
        "complete graph": (
            _ordered(a + b for a, b in itertools.combinations(nodes, 2)),
            "In a complete graph every two nodes are joined.",
        ),
    }[family]
    around = f" around {hub}" if family == "star" else ""
    return Riddle(f"a {family} of {listing(nodes)}{around}", (fact,), Graph(nodes, edges, pick(bold(world), rng)))


def _question(world: World, rng: np.random.Generator) -> Asked:
    graph = _graph(world, rng)
    a, b = pick(list(itertools.combinations(graph.nodes, 2)), rng)
    distance = graph.distance(a, b)
    kind = pick(("nodes", "edges", "neighbours", "joined", "connected", "shortest"), rng)
    if kind == "shortest" and distance is None:
        raise NoPlaceError("there is no path")
    text, answer = {
        "nodes": ("How many nodes does the graph have?", str(len(graph.nodes))),
        "edges": ("How many edges does the graph have?", str(len(graph.edges))),
        "neighbours": (f"How many neighbours does {a} have?", str(len(graph.neighbours(a)))),
        "joined": (f"Is there an edge between {a} and {b}?", "yes" if a + b in graph.edges else "no"),
        "connected": (f"Is there a path from {a} to {b}?", "no" if distance is None else "yes"),
        "shortest": (f"How many edges are on the shortest path from {a} to {b}?", str(distance)),
    }[kind]
    return Asked(kind, text, answer, graph)


TOPIC = Topic(_graph, _riddle, _question)
