"""Science: what is said, asked and drawn is worked out anew, from the texts and the pixels, by code of its own."""

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest

from internvlu_jax.small_world.scenes.marks import DARK, Disc
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.tasks.domains.science import TOPICS
from tests.helpers.world import examples

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
YES = {True: "yes", False: "no"}
SIZE = 64


def asked(topic: str, split: str = "train"):
    """(kind, text, answer, thing, picture) of the questions about a topic."""
    for example in examples("science/question", split):
        if example.topic.split()[0] == topic:
            yield example.topic.split()[1], example.prompt, example.answer, example.truth.thing, example.source


def drawn(topic: str, task: str = "science/picture", split: str = "train"):
    """(prompt, reasoning, thing, picture) of pictures."""
    for example in examples(task, split):
        if example.topic == topic:
            yield example.prompt, example.reasoning, example.truth.thing, example.image


def list_of(text: str) -> list[str]:
    """ "a, b and c" as its parts."""
    return re.split(r", | and ", text)


def inked(picture: np.ndarray, colour) -> np.ndarray:
    return (picture == colour).all(2)


def heights(picture: np.ndarray, colour, unit: int) -> list[int]:
    """Of bars that stand on row 51, from left to right, in units."""
    columns = inked(picture, colour)[:51].sum(0)
    runs = [list(run) for tall, run in itertools.groupby(columns, key=lambda n: n >= unit - 1) if tall]
    return [round(max(run) / unit) for run in runs]


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_has_enough_of_everything(topic):
    for split in ("train", "heldout"):
        kinds = Counter(kind for kind, *_ in asked(topic, split))
        assert sum(kinds.values()) > 100 and min(kinds.values()) > 3 and len(kinds) >= 4
        for task in ("science/picture", "science/reasoning"):
            made = list(drawn(topic, task, split))
            assert len(made) > 30 and len({prompt for prompt, *_ in made}) > 20


# Levers


def torques(text: str) -> list[int]:
    """Weight times distance on the left and on the right."""
    found = re.findall(r"(\d) (one|two|three|four) steps? (left|right)", text)
    return [sum(int(w) * WORDS.index(n) for w, n, side in found if side == goal) for goal in ("left", "right")]


def test_levers_tilt_to_the_side_with_more_torque():
    for prompt, reasoning, lever, drawing in [*drawn("lever"), *drawn("lever", "science/reasoning")]:
        left, right = torques(reasoning.split("So draw")[1] if reasoning else prompt)
        state = "in balance" if left == right else f"tilted to the {'left' if left > right else 'right'}"
        assert state in (reasoning or prompt)
        dark = inked(drawing.draw(SIZE), DARK)
        ends = [np.flatnonzero(dark[:, column]).max() for column in (5, 58)]  # below weights and their digits
        assert np.sign(ends[0] - ends[1]) == np.sign(left - right)
        assert sorted(load for load in lever.loads) == list(lever.loads) and len(lever.loads) in (2, 3)


def test_missing_weights_balance():
    seen = 0
    for prompt, reasoning, lever, _ in drawn("lever", "science/reasoning"):
        if found := re.search(r"weights: (\d) (\w+) steps? .* balances it (\w+) step", prompt):
            seen += 1
            weight = int(found[1]) * WORDS.index(found[2]) / WORDS.index(found[3])
            assert f"= {weight:.0f}." in reasoning and weight in [load[1] for load in lever.loads]
    assert seen > 5


def test_lever_questions():
    for kind, text, answer, lever, _ in asked("lever"):
        left = sum(-place * weight for place, weight in lever.loads if place < 0)
        right = sum(place * weight for place, weight in lever.loads if place > 0)
        side = -1 if "left" in text else 1
        assert (
            answer
            == {
                "balance": YES[left == right],
                "down": "neither" if left == right else "left" if left > right else "right",
                "torque": str(left if side < 0 else right),
                "number": str(len(lever.loads)),
                "weight": str(sum(weight for place, weight in lever.loads if place * side > 0)),
            }[kind]
        )


# Pendulums


def test_pendulums_hang_as_long_as_they_are():
    for prompt, reasoning, pendulums, drawing in [*drawn("pendulum"), *drawn("pendulum", "science/reasoning")]:
        picture = drawing.draw(SIZE)
        bobs = [np.argwhere(inked(picture, COLOURS[colour])[8:]).mean(0) for colour, _ in pendulums.bobs]
        lengths = [length for _, length in pendulums.bobs]
        assert list(np.argsort([bob[0] for bob in bobs])) == list(np.argsort(lengths))
        assert [bob[1] for bob in bobs] == sorted(bob[1] for bob in bobs)
        found = re.findall(r"an? (\w+) one of length (\d)", prompt if reasoning is None else reasoning)
        assert found == [(colour, str(length)) for colour, length in pendulums.bobs] or (reasoning and not found)


def test_slower_pendulums_are_longer():
    forms = Counter()
    for prompt, reasoning, pendulums, _ in drawn("pendulum", "science/reasoning"):
        bobs = dict(pendulums.bobs)
        times = [math.sqrt(length) for length in bobs.values()]
        if found := re.match(r"an? (\w+) pendulum that swings (\w+) than an? (\w+) one on its (\w+)", prompt):
            one, speed, other, side = found.groups()
            assert (bobs[one] > bobs[other]) == (speed == "slower")
            assert ([*bobs].index(one) < [*bobs].index(other)) == (side == "right")
            assert {"slower": "longer", "faster": "shorter"}[speed] in reasoning.split("So draw")[1]
        elif "from left to right" in prompt:
            assert times == sorted(times, reverse="faster and faster" in prompt)
        else:
            ratio = {"twice": 2, "half": 0.5}[re.search(r"takes (\w+) as long", prompt)[1]]
            assert times[1] / times[0] == pytest.approx(ratio)
        forms[prompt.split(" ")[2]] += 1
    assert len(forms) >= 2


def test_pendulum_questions():
    for kind, text, answer, pendulums, _ in asked("pendulum"):
        bobs = dict(pendulums.bobs)
        if kind == "faster":
            first, second = re.match(r"Does the (\w+) pendulum swing faster than the (\w+) one", text).groups()
            assert answer == YES[bobs[first] < bobs[second]]
        else:
            by_length = sorted(bobs, key=bobs.__getitem__)
            found = {
                "fastest": by_length[0],
                "slowest": by_length[-1],
                "number": str(len(bobs)),
                "place": pendulums.bobs[0][0],
            }
            assert answer == found[kind]


# Rays

NORMALS = {"bottom": (0, -1), "top": (0, 1), "left": (1, 0), "right": (-1, 0), "rising": (1, 1), "falling": (1, -1)}
SIDES = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}


def test_rays_are_reflected():
    """The law of reflection with vectors: r = d - 2 (d.n) n; and the arrow ends where it says."""
    for prompt, reasoning, ray, drawing in [*drawn("mirror"), *drawn("mirror", "science/reasoning")]:
        normal = np.array(NORMALS[ray.mirror]) / np.linalg.norm(NORMALS[ray.mirror])
        back, out = map(np.array, ray.ways)
        assert np.allclose(out, -back + 2 * (back @ normal) * normal) and np.linalg.norm(out) == pytest.approx(1)
        if ray.mirror in ("bottom", "top", "left", "right"):
            assert math.degrees(math.acos(back @ normal)) == pytest.approx(ray.angle)
        assert back @ SIDES[ray.start] > 0.4
        said = {"left": "to the left", "right": "to the right", "above": "upwards", "below": "downwards"}
        (leaves,) = (side for side, text in said.items() if f"reflected {text} by" in (reasoning or prompt))
        assert out @ SIDES[leaves] > 0.4
        picture = inked(drawing.draw(SIZE), COLOURS[ray.colour])
        assert picture.any() and not picture[[0, -1]].any() and not picture[:, [0, -1]].any()


def test_ray_questions():
    for kind, _, answer, ray, _ in asked("mirror"):
        back, out = map(np.array, ray.ways)
        between = math.degrees(math.acos(np.clip(back @ out, -1, 1)))
        goes = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
        if kind == "between":
            assert int(answer) == pytest.approx(between)
        elif kind == "angle":
            assert int(answer) == pytest.approx(between / 2)
        else:
            assert (back @ SIDES[answer] if kind == "start" else out @ goes[answer]) > 0.4


# Trees


def read_tree(text: str) -> tuple[int, dict[int, dict[str, int]]]:
    """The root, and the children of each value by side."""
    root = int(re.search(r"with (\d) at the root", text)[1])
    parts = re.split(r"(\d) has ", re.split(r", on a light", text.split("root:")[1])[0])[1:]
    return root, {
        int(value): {side: int(child) for child, side in re.findall(r"(\d) on the (left|right)", said)}
        for value, said in zip(parts[::2], parts[1::2], strict=True)
    }


def as_tuple(root: int, children: dict) -> tuple:
    found = children.get(root, {})
    return root, *(as_tuple(found[side], children) if side in found else None for side in ("left", "right"))


def node_tuple(node) -> tuple | None:
    return node and (node.value, node_tuple(node.left), node_tuple(node.right))


def put_in(tree, value):
    if tree is None:
        return value, None, None
    root, left, right = tree
    return (root, put_in(left, value), right) if value < root else (root, left, put_in(right, value))


def flat(tree) -> list[int]:
    return [*flat(tree[1]), tree[0], *flat(tree[2])] if tree else []


def level_count(tree) -> int:
    return 1 + max(level_count(tree[1]), level_count(tree[2])) if tree else 0


def subtrees(tree) -> list[tuple]:
    return [tree, *subtrees(tree[1]), *subtrees(tree[2])] if tree else []


def test_trees_are_what_is_said():
    for prompt, reasoning, tree, drawing in [*drawn("tree"), *drawn("tree", "science/reasoning")]:
        found = as_tuple(*read_tree(reasoning.split("So draw")[1] if reasoning else prompt))
        assert found == node_tuple(tree.root) and level_count(found) <= 3
        assert_apart(drawing)
        if reasoning:
            built = None
            for value in re.search(r"search tree of ([\d, ]+), put", prompt)[1].split(", "):
                built = put_in(built, int(value))
            assert built == found and flat(found) == sorted(flat(found))


def test_tree_questions():
    for kind, text, answer, tree, _ in asked("tree"):
        root = node_tuple(tree.root)
        parts = {part[0]: part for part in subtrees(root)}
        assert sorted(parts) == sorted(flat(root))
        if kind in ("child", "parent"):
            of = int(re.search(r"(\d)\?", text)[1])
            if kind == "child":
                child = parts[of][1 if "left" in text else 2]
                assert answer == (str(child[0]) if child else "none")
            else:
                assert of in [child[0] for child in parts[int(answer)][1:] if child]
            continue
        assert (
            answer
            == {
                "root": str(root[0]),
                "leaves": str(sum(part[1:] == (None, None) for part in parts.values())),
                "nodes": str(len(parts)),
                "levels": str(level_count(root)),
                "search": YES[flat(root) == sorted(flat(root))],
                "order": " ".join(map(str, flat(root))),
            }[kind]
        )


def assert_apart(drawing) -> None:
    """No two discs with letters touch."""
    discs = [mark for mark in drawing.thing.marks() if isinstance(mark, Disc) and mark.colour == DARK]
    assert len(discs) >= 2
    for a, b in itertools.combinations(discs, 2):
        assert math.dist((a.x, a.y), (b.x, b.y)) > a.radius + b.radius + 1


# Graphs


def steps(edges, start: str, end: str) -> int | None:
    """The length of the shortest path, by trying all walks."""
    reached, length = {start}, 0
    while end not in reached:
        further = reached | {b for a, b in edges if a in reached} | {a for a, b in edges if b in reached}
        if further == reached:
            return None
        reached, length = further, length + 1
    return length


def test_graphs_are_what_is_said():
    for prompt, reasoning, graph, drawing in [*drawn("graph"), *drawn("graph", "science/reasoning")]:
        text = reasoning.split("So draw")[1] if reasoning else prompt
        nodes, edges = re.search(r"a graph of (.+?) with the edges ((?:[A-F]-[A-F](?:, | and )?)+)", text).groups()
        assert "".join(list_of(nodes)) == graph.nodes
        assert tuple(edge.replace("-", "") for edge in re.findall(r"[A-F]-[A-F]", edges)) == graph.edges
        assert len(set(graph.edges)) == len(graph.edges) and all(a < b for a, b in graph.edges)
        assert_apart(drawing)
        if found := re.search(r"shortest path from (\w) to (\w)", prompt):
            assert (graph.path[0], graph.path[-1]) == found.groups()
            assert len(graph.path) - 1 == steps(graph.edges, *found.groups())
            assert all("".join(sorted(pair)) in graph.edges for pair in itertools.pairwise(graph.path))
            assert inked(drawing.draw(SIZE), COLOURS[graph.colour]).sum() > 100
        elif reasoning:
            degrees = Counter("".join(graph.edges))
            count = len(graph.nodes)
            family = prompt.removeprefix("a ").split(" of ")[0]
            ends = {"ring": 2, "complete graph": count - 1}.get(family)
            assert set(degrees.values()) == ({ends} if ends else {1, 2} if family == "chain" else {1, count - 1})


def test_graph_questions():
    for kind, text, answer, graph, _ in asked("graph"):
        ends = re.findall(r"\b([A-F])\b", text)
        if kind in ("nodes", "edges"):
            assert answer == str(len(graph.nodes if kind == "nodes" else graph.edges))
        elif kind == "neighbours":
            assert answer == str(sum(ends[0] in edge for edge in graph.edges))
        else:
            length = steps(graph.edges, *ends)
            found = {"joined": YES[length == 1], "connected": YES[length is not None], "shortest": str(length)}
            assert answer == found[kind]


# Sorting


def after(row: list[int], text: str) -> list[int]:
    """The heights after what a prompt or a question asks for."""
    row = list(row)
    if found := re.search(r"sorted from (\w+) to", text):
        return sorted(row, reverse=found[1] == "highest")
    count, algorithm = re.search(r"after (one|two) \w+ of (\w+) sort", text).groups()
    count = WORDS.index(count)
    if algorithm == "insertion":
        return [*sorted(row[: count + 1]), *row[count + 1 :]]
    for n in range(count):
        if algorithm == "selection":
            low = min(range(n, len(row)), key=row.__getitem__)
            row[n], row[low] = row[low], row[n]
        else:
            for m in range(1, len(row)):
                row[m - 1 : m + 1] = sorted(row[m - 1 : m + 1])
    return row


def test_bars_are_as_high_as_is_said_and_sorted():
    for prompt, reasoning, bars, drawing in [*drawn("sorting"), *drawn("sorting", "science/reasoning")]:
        row = [int(n) for n in re.findall(r"\d", prompt)]
        wanted = after(row, prompt) if reasoning else row
        assert list(bars.heights) == wanted == heights(drawing.draw(SIZE), COLOURS[bars.colour], 5)
        if reasoning:
            facts, so = reasoning.split("So draw")
            assert [int(n) for n in re.findall(r"\d", so)] == wanted
            assert re.findall(r": ([\d ]+)\.", facts)[-1] == " ".join(map(str, wanted))


def test_sorting_questions():
    places = ("first", "second", "third", "fourth", "fifth", "sixth")
    for kind, text, answer, bars, drawing in asked("sorting"):
        row = heights(drawing.draw(SIZE), COLOURS[bars.colour], 5)
        if kind == "step":
            assert answer == " ".join(map(str, after(row, text)))
        elif kind == "height":
            assert answer == str(row[places.index(re.search(r"the (\w+) bar", text)[1])])
        else:
            found = {"sorted": YES[row == sorted(row)], "number": len(row), "highest": max(row), "lowest": min(row)}
            assert answer == str(found[kind])
