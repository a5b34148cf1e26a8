"""The reader: right on clean pictures and mildly damaged ones, and no object where there is only a blob."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from converters.engine import on_host
from internvlu_jax.checkpoints import loading
from internvlu_jax.config import Compute
from internvlu_jax.models.vae import VAE
from internvlu_jax.small_world import FULL, SMALL, Item, Scene, Word
from internvlu_jax.small_world.scenes.scene import BACKGROUNDS, COLOURS, SIZES
from internvlu_jax.small_world.scoring.blobs import labels
from internvlu_jax.small_world.scoring.reader import read
from tests.helpers.evaluation import alone, corrupted, mismatch, misread, polygon, reading_rate, readings, scenes
from tests.helpers.unchecked import unchecked

FINE = dataclasses.replace(SMALL, grid=256)  # outlines between pixels, too
WORLDS = {"small": SMALL, "fine": FINE, "full": FULL}
DAMAGE = {"blur": (0.7, 0.0), "noise": (0.0, 6.0), "both": (0.7, 6.0)}


@pytest.mark.parametrize(
    "world, seed",
    [*(("small", n) for n in range(2)), ("fine", 0), ("full", 0), ("full", 1),
     *(pytest.param("small", n, marks=pytest.mark.slow) for n in range(2, 5))],
)  # fmt: skip
def test_clean_pictures_are_read_without_a_mistake(world, seed):
    """2000 pictures in all with the slow ones, a quarter or more with held-out combinations."""
    assert not unchecked(misread, WORLDS[world], 250, seed, "seen" if seed else "heldout")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("world, count", [("small", 100), ("fine", 100), ("full", 100)])
def test_damaged_pictures_are_read(world, count, damage):
    wrong = unchecked(misread, WORLDS[world], count, 7, "seen", 64, DAMAGE[damage])
    assert len(wrong) <= 0.01 * count, wrong


@pytest.mark.parametrize("side", [56, 96, 100, 128, 256])
def test_pictures_of_other_sizes_are_read(side):
    assert not unchecked(misread, FULL, 40, 8, "seen", side)


@pytest.fixture(scope="module")
def decoded():
    """Scenes, and their pictures after the autoencoder of the model in the box."""
    if not loading.BUILT_IN.is_dir():
        pytest.skip("there is no model in the box")
    model = loading.load(None, place=on_host)
    vae, params = VAE(model.config.vae, Compute()), {"params": model.params["vae"]}
    found = list(scenes(SMALL, 200, 9))
    pixels = np.stack([scene.draw(64) for scene in found]).astype(np.float32) / 127.5 - 1
    mean, _ = vae.apply(params, jnp.asarray(pixels), method="encode")
    back = np.asarray(vae.apply(params, mean, method="decode_unclipped"), np.float64)
    return found, np.clip(np.round((back + 1) * 127.5), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "damage",
    [(0.0, 0.0), *(pytest.param(one, marks=pytest.mark.slow) for one in list(DAMAGE.values())[:2]), DAMAGE["both"]],
)
def test_pictures_are_read_after_the_autoencoder(decoded, damage):
    rng = np.random.default_rng(1)
    read_back = unchecked(readings, [corrupted(picture, rng, *damage) for picture in decoded[1]], SMALL.kinds)
    wrong = [
        text for scene, reading in zip(decoded[0], read_back, strict=True) if (text := mismatch(scene, reading, 0.04))
    ]
    assert len(wrong) <= 0.01 * len(read_back), wrong


def test_a_hundred_pictures_a_second():
    pictures = [scene.draw(64) for scene in scenes(SMALL, 200, 9)]
    assert unchecked(reading_rate, pictures, SMALL.kinds) > 100


def is_malformed(picture, kinds=SMALL.kinds) -> bool:
    reading = read(np.clip(np.round(picture), 0, 255).astype(np.uint8), kinds)
    return bool(reading.malformed) and not reading.items and not reading.words


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", SMALL.kinds)
class TestNoObjects:
    """What a bad model draws in the place of an object."""

    def test_part_of_a_shape(self, kind, size):
        for share, axis in itertools.product((0.3, 0.5), (0, 1)):
            picture, radius = alone(kind, size), SIZES[size] * 64
            cut = np.s_[: round(32 - radius + 2 * radius * share)]
            picture[cut if axis == 0 else (slice(None), cut)] = 255
            assert is_malformed(picture), (share, axis)

    def test_two_in_one(self, kind, size):
        reach = SIZES[size] / 2
        for other, colour, shift in itertools.product(SMALL.kinds, ("red", "blue"), (0.7, 1.2)):
            pair = alone(kind, size, x=0.5 - shift * reach), alone(other, size, colour, x=0.5 + shift * reach)
            assert is_malformed(np.minimum(*pair)), (other, colour, shift)

    def test_between_two_shapes(self, kind, size):
        for other in set(SMALL.kinds) - {kind}:
            assert is_malformed((alone(kind, size) + alone(other, size)) / 2), other

    def test_smear(self, kind, size):
        picture, length = alone(kind, size), int(1.2 * SIZES[size] * 64)
        assert is_malformed(np.mean([np.roll(picture, n, 1) for n in range(length)], axis=0))

    def test_two_colours(self, kind, size):
        picture = alone(kind, size)
        picture[:, 32:] = alone(kind, size, "blue")[:, 32:]
        assert is_malformed(picture)

    def test_bite_and_spot(self, kind, size):
        rows, columns = np.mgrid[:64, :64] - 31.5
        spot = rows**2 + columns**2 <= (0.45 * SIZES[size] * 64) ** 2
        for colour in ((255, 255, 255), COLOURS["blue"]):
            picture = alone(kind, size)
            picture[spot] = colour
            assert is_malformed(picture), colour

    def test_stretched(self, kind, size):
        rows = np.clip(np.round((np.arange(64) - 32) / 1.35 + 32), 0, 63).astype(int)
        assert is_malformed(alone(kind, size)[rows])

    def test_too_small_or_large(self, kind, size):
        picture = Scene((Item(kind, "red", size, 0.5, 0.5),)).draw(128).astype(float)
        whole = {"large": picture[32:96, 32:96], "small": picture[::4, ::4]}[size]
        canvas = np.full((64, 64, 3), 255.0)
        low = 32 - len(whole) // 2
        canvas[low : low + len(whole), low : low + len(whole)] = whole
        assert is_malformed(canvas)


@pytest.mark.parametrize("radius", [8, 10, 12])
@pytest.mark.parametrize(
    "corners, turn, inner",
    [(5, 0, 1), (5, np.pi / 5, 1), (4, 0.4, 1), (3, np.pi / 3, 1), (3, 0.5, 1), (8, 0, 0.45), (12, 0, 0.6)],
)
def test_shapes_that_the_world_has_not(corners, turn, inner, radius):
    kinds = FULL.kinds if inner == 1 else SMALL.kinds
    assert is_malformed(polygon(corners, radius, turn, inner), kinds)


def test_a_kind_that_the_world_has_not():
    for kind in set(FULL.kinds) - set(SMALL.kinds):
        assert is_malformed(alone(kind)) and not is_malformed(alone(kind), FULL.kinds)


def test_random_blobs():
    """Smoothed noise above a threshold: of any shape, but for the rare one that happens to be round."""
    rng, found = np.random.default_rng(3), 0
    for _ in range(100):
        field = corrupted(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8), rng, 4.0).astype(float)[:, :, 0]
        rows, columns = np.mgrid[:64, :64] - 32
        mask = (field > np.median(field)) & (rows**2 + columns**2 < 18**2)
        found += len(read(np.where(mask[:, :, None], COLOURS["red"], 255).astype(np.uint8), SMALL.kinds).items)
    assert found <= 3


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_colour_on_every_background(background):
    for colour in COLOURS:
        scene = Scene((Item("star", colour, "small", 0.3, 0.3),), background, Word("B8", colour, 0.5, 0.75))
        assert not mismatch(scene, read(scene.draw(64)))


def test_a_colour_between_names_is_none():
    assert is_malformed(np.where(alone("circle") < 255, (190, 190, 60), 255), SMALL.kinds)
    assert read(np.full((64, 64, 3), (120, 200, 255), np.uint8)).background is None


def test_noise_alone_and_specks_are_nothing():
    rng = np.random.default_rng(0)
    picture = corrupted(Scene().draw(64), rng, noise=10)
    picture[10:12, 10:12] = 0
    reading = read(picture)
    assert not reading.items and not reading.words and not reading.malformed and reading.background == "white"


@pytest.mark.parametrize("shape", [(64, 63, 3), (40, 40, 3)])
def test_pictures_that_cannot_be_read(shape):
    with pytest.raises(ValueError, match="expected a square of at least 48"):
        read(np.zeros(shape, np.uint8))


def test_labels_are_those_of_a_flood_fill():
    rng = np.random.default_rng(1)
    for share in (0.2, 0.4, 0.6):
        mask = rng.random((24, 31)) < share
        found, count = labels(mask)
        wanted = _flooded(mask)
        assert count == wanted.max()
        pairs = set(zip(found.ravel().tolist(), wanted.ravel().tolist(), strict=True))
        assert len(pairs) == count + 1  # one name here for one there


def _flooded(mask):
    found, count = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if found[start]:
            continue
        count += 1
        todo = [start]
        while todo:
            row, column = todo.pop()
            if (
                0 <= row < mask.shape[0]
                and 0 <= column < mask.shape[1]
                and mask[row, column]
                and not found[row, column]
            ):
                found[row, column] = count
                todo += [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return found
