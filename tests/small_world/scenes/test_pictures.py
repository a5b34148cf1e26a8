"""Pictures of scenes: what is in them is drawn as large as it is, nothing else is, and nothing touches."""

import functools

import numpy as np
import pytest

from internvlu_jax.small_world import Item, Scene, Word, WorldSource
from internvlu_jax.small_world.scenes.letters import word_cells
from internvlu_jax.small_world.scenes.scene import BACKGROUNDS, COLOURS
from internvlu_jax.small_world.scenes.shapes import inside


def within(box, side: int) -> tuple[slice, slice]:
    left, top, right, bottom = (edge * side for edge in box)
    return slice(int(top), int(np.ceil(bottom))), slice(int(left), int(np.ceil(right)))


def things(scene: Scene) -> list[Item | Word]:
    return [*scene.items, *([scene.word] if scene.word else [])]


@pytest.mark.parametrize(("world", "side", "count"), [("small", 64, 400), ("full", 64, 150), ("small", 32, 100)])
def test_pictures_show_the_scene_and_nothing_else(world, side, count):
    """Each box holds as much of its object's colour as the shape covers; everywhere else is background."""
    drawn = WorldSource(world, {"general/picture": 3.0, "text/picture": 1.0}, seed=6)
    for n in range(count):
        scene = drawn.example(n).image
        assert isinstance(scene, Scene)
        picture = scene.draw(side)
        outside = np.ones((side, side), bool)
        for thing in things(scene):
            rows, columns = within(thing.box, side)
            outside[rows, columns] = False
            exact = (picture[rows, columns] == COLOURS[thing.colour]).all(2).sum() / side**2
            inked = (picture[rows, columns] != BACKGROUNDS[scene.background]).any(2).sum() / side**2
            assert 0.97 * exact <= area(thing) <= 1.03 * inked, (scene, thing)
        assert (picture[outside] == BACKGROUNDS[scene.background]).all(), scene


def area(thing: Item | Word) -> float:
    """In squares of the picture's side."""
    if isinstance(thing, Word):
        return word_cells(thing.text).sum() / 32 * 3 / 64
    return unit_area(thing.kind) * thing.radius**2


@functools.cache
def unit_area(kind: str) -> float:
    """Of the shape with radius one, by counting points."""
    x, y = np.meshgrid(*[(np.arange(600) + 0.5) / 200 - 1.5] * 2)
    return inside(kind, x, y).mean() * 9


@pytest.mark.parametrize("side", [32, 64, 128])
def test_nothing_is_cut_or_touches(side):
    """The edge is free, and so are the pixels around each object; drawn alone, objects share no pixel."""
    drawn = WorldSource("full", {"general/picture": 3.0, "text/picture": 1.0, "general/edit": 1.0}, seed=8)
    for n in range(100):
        scene = drawn.example(n).image
        assert isinstance(scene, Scene)
        picture, under = scene.draw(side), BACKGROUNDS[scene.background]
        edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (edge == under).all(), scene
        alone = [Scene((item,), scene.background) for item in scene.items]
        alone += [Scene((), scene.background, scene.word)] if scene.word else []
        masks = [(single.draw(side) != under).any(2) for single in alone]
        assert sum(map(grown, masks), np.zeros((side, side), int)).max(initial=0) <= 1, scene


def grown(mask: np.ndarray) -> np.ndarray:
    """With one pixel more to the right and below, so that neighbours would overlap."""
    padded = np.pad(mask, ((1, 0), (1, 0)))
    return (padded[1:, 1:] | padded[:-1, 1:] | padded[1:, :-1] | padded[:-1, :-1]).astype(int)


def test_larger_pictures_are_the_same_picture():
    """Averaged down, a picture of four times the size is the small one, but for the rounding of single samples."""
    drawn = WorldSource(weights={"general/picture": 1.0, "text/picture": 1.0}, seed=9)
    for n in range(20):
        scene = drawn.example(n).image
        assert scene is not None
        small, large = scene.draw(64).astype(float), scene.draw(256).astype(float)
        shrunk = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
        assert np.abs(shrunk - small).max() < 40 and np.abs(shrunk - small).mean() < 0.6
