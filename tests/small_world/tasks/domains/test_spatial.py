"""Stacks of cubes and turned figures: texts and pixels worked out anew."""

import re
from collections import Counter

import numpy as np
import pytest

from internvlu_jax.small_world.scenes.marks import WHITE, mixed
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.tasks.domains.spatial.turns import Turned
from internvlu_jax.small_world.tasks.things import Drawing
from tests.helpers.unchecked import shapes_unchecked
from tests.helpers.world import examples
from tests.small_world.tasks.domains.test_science import inked, list_of


@pytest.fixture(autouse=True)
def many_polygons():
    """The marks that make up pictures are drawn with their shapes checked in `test_things`; here there are 40,000."""
    with shapes_unchecked():
        yield


# Blocks


def stacks(text: str) -> np.ndarray:
    """Heights that a text gives, rows from back to front."""
    rows = re.search(r"(\d \d \d) in the back, (\d \d \d) in the middle and (\d \d \d) in front", text)
    return np.array([[int(n) for n in row.split()] for row in rows.groups()])


def faces(view: str, cubes: np.ndarray) -> np.ndarray:
    """Which of three by three faces are seen, by looking through all cubes (row, column, level)."""
    solid = np.arange(3) < cubes[:, :, None]
    if view == "top":
        return solid.any(2)
    seen = solid.any(0) if view == "front" else solid.any(1)[::-1]
    return seen.T[::-1]


def seen_faces(picture: np.ndarray, colour, left: float, top: float, size: float) -> np.ndarray:
    """Of a view that is drawn there, in 64ths of the side, by the middles of the faces."""
    at = (np.arange(3) + 0.5) * size * len(picture) / 64
    rows, columns = (np.floor(start * len(picture) / 64 + at).astype(int) for start in (top, left))
    return inked(picture, colour)[np.ix_(rows, columns)]


def assert_shows(drawing, cubes: np.ndarray) -> None:
    """The picture shows these cubes, in the view that it is in."""
    blocks, picture = drawing.thing, drawing.draw(64)
    colour = COLOURS[blocks.colour]
    if blocks.view == "three":
        for view, left, top in (("top", 5.0, 5.0), ("front", 5.0, 35.0), ("right", 35.0, 35.0)):
            assert (seen_faces(picture, colour, left, top, 8.0) == faces(view, cubes)).all()
    elif blocks.view == "angle":
        assert (np.array(blocks.heights) == cubes).all()
    else:
        assert (seen_faces(picture, colour, 11.0, 11.0, 14.0) == faces(blocks.view, cubes)).all()


def spatial(task: str, topic: str, split: str = "train"):
    return [example for example in examples(f"spatial/{task}", split) if example.topic.split()[0] == topic]


def test_block_pictures_are_what_is_said():
    views = Counter()
    for example in spatial("picture", "blocks"):
        blocks, text = example.image.thing, example.prompt
        views[blocks.view] += 1
        cubes = np.array(blocks.heights)
        assert_shows(example.image, cubes)
        if blocks.view == "angle":
            assert (stacks(text) == cubes).all()
        if blocks.view in ("top", "three"):
            assert (stacks(text) == (cubes > 0)).all()
        columns = {view: faces(view, cubes).sum(0).tolist() for view in ("front", "right")}
        for view in {"three": ("front", "right")}.get(blocks.view, {blocks.view} & {"front", "right"}):
            said = re.search(rf"{view} (\d, \d and \d)|from the {view}, columns of (\d, \d and \d)", text)
            assert [int(n) for n in list_of(said[1] or said[2])] == columns[view]
    assert set(views) == {"angle", "front", "right", "top", "three"}


def test_block_riddles():
    for example in spatial("reasoning", "blocks"):
        cubes = stacks(example.prompt)
        if found := re.search(r"turned (a quarter clockwise|by half|a quarter anticlockwise)", example.prompt):
            cubes = turned(cubes, found[1])
            assert (stacks(example.reasoning.split("So draw")[1]) == cubes).all()
        assert_shows(example.image, cubes)


def turned(cubes: np.ndarray, how: str) -> np.ndarray:
    """As seen from above, place by place: what was (row, column) goes to (column, 2 - row) by a quarter clockwise."""
    for _ in range({"a quarter clockwise": 1, "by half": 2, "a quarter anticlockwise": 3}[how]):
        new = np.empty_like(cubes)
        for row in range(3):
            for column in range(3):
                new[column, 2 - row] = cubes[row, column]
        cubes = new
    return cubes


def test_no_cube_is_hidden_where_they_are_counted():
    """The light tops of all stacks show: their area is that of as many whole faces."""
    face = 9.0 * 9.0 * np.sin(np.pi / 3) * (128 / 64) ** 2
    for example in spatial("question", "blocks")[:60]:
        blocks = example.source.thing
        if blocks.view == "angle":
            top = inked(example.source.draw(128), mixed(COLOURS[blocks.colour], WHITE, 0.5)).sum()
            assert 0.65 < top / (face * np.count_nonzero(blocks.heights)) < 1


def test_block_questions():
    for example in spatial("question", "blocks"):
        kind, text, cubes = example.topic.split()[1], example.prompt, np.array(example.source.thing.heights)
        words = ("no", "one", "two", "three")
        number = next((words.index(word) for word in re.findall(r"\w+", text) if word in words), 0)
        assert (
            int(example.answer)
            == {
                "cubes": cubes.sum(),
                "levels": cubes.max(),
                "ground": (cubes > 0).sum(),
                "front": faces("front", cubes).sum(),
                "right": faces("right", cubes).sum(),
                "stacks": (cubes == number).sum(),
            }[kind]
        )


def test_block_edits():
    kinds = Counter()
    for example in spatial("edit", "blocks"):
        before, after, text = np.array(example.truth.before.heights), example.image, example.prompt
        kinds[example.topic] += 1
        if found := re.search(r"turn the cubes (.+) as seen from above", text):
            assert after.thing.view == "angle"
            assert_shows(after, turned(before, found[1]))
        else:
            assert after.thing.view == ("three" if "three" in text else text.split()[-1])
            assert_shows(after, before)
        assert after.background == example.source.background
    assert len(kinds) == 2


# Turned figures

STATES = ("upright", "turned a quarter clockwise", "upside down", "turned a quarter anticlockwise")
WAYS = ("up", "right", "down", "left")
QUARTERS = {"a quarter clockwise": 1, "by half": 2, "a quarter anticlockwise": 3}


def test_turned_pictures_are_the_upright_one_turned():
    """Turning the pixels is turning the figure; and an arrow points to where its head is."""
    for figure in ("arrow", *"FGJLPR47"):
        pictures = [Drawing(Turned(figure, turns, "red")).draw(128) for turns in range(4)]
        for turns in range(4):
            assert (np.rot90(pictures[0], -turns) == pictures[turns]).all()
            assert turns == 0 or (pictures[turns] != pictures[0]).any()
    ink = inked(Drawing(Turned("arrow", 1, "red")).draw(64), COLOURS["red"])
    assert ink[:, 32:].sum() > ink[:, :32].sum()


def test_turned_figures_are_what_is_said():
    for example in [*spatial("picture", "turns"), *spatial("reasoning", "turns")]:
        thing, text = example.image.thing, (example.reasoning or example.prompt).split("So draw")[-1]
        if thing.figure == "arrow":
            assert re.search(rf"{thing.colour} arrow that points {WAYS[thing.turns]}\b", text)
        else:
            assert re.search(rf"{thing.colour} (letter|digit) {thing.figure}, {STATES[thing.turns]}\b", text)
        if example.reasoning:
            start, *turns = re.split(r",(?: then)? turned ", re.split(r", on a", example.prompt)[0])
            first = (
                WAYS.index(start.split()[-1])
                if thing.figure == "arrow"
                else STATES.index(start.split(", ")[1] if ", " in start else f"turned {turns.pop(0)}")
            )
            assert (first + sum(QUARTERS[turn] for turn in turns)) % 4 == thing.turns


def test_turn_questions_and_edits():
    for example in spatial("question", "turns"):
        thing, kind = example.source.thing, example.topic.split()[1]
        found = {"direction": WAYS[thing.turns], "letter": thing.figure, "turn": STATES[thing.turns]}[kind]
        assert example.answer == found.removeprefix("turned ")
    for example in spatial("edit", "turns"):
        before, after = (drawing.draw(128) for drawing in (example.source, example.image))
        by = QUARTERS[re.match(r"turn the (?:arrow|letter \w|digit \w) (.+)", example.prompt)[1]]
        assert (np.rot90(before, -by) == after).all()
