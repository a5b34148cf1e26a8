"""Sizes of pictures to be drawn, which of them a picture goes to, and what of it stays."""

import dataclasses

import numpy as np
import pytest

from internvlu_jax.data import buckets
from internvlu_jax.data.examples import ExampleBuilder
from tests.helpers.data import CFG, DATA, TOKENIZER


@pytest.mark.parametrize(("side", "aspect"), [(64, 1.0), (64, 2.0), (512, 2.0), (1024, 2.0), (768, 4.0), (100, 3.0)])
def test_buckets(side, aspect):
    sizes = buckets.buckets(side, aspect, 16)
    ratios = np.log([height / width for height, width in sizes])
    assert all(height % 16 == width % 16 == 0 and height * width <= side * side for height, width in sizes)
    assert np.max(np.abs(ratios)) <= np.log(aspect) + 1e-9
    assert sorted(sizes) == sorted((width, height) for height, width in sizes)
    if side >= 512:
        assert np.max(np.diff(ratios), initial=0) < np.log(1.5)
        assert np.min(np.prod(sizes, axis=1)) > 0.85 * side * side


def test_buckets_that_are_too_narrow():
    with pytest.raises(ValueError, match=r"data.sides has 32: .* narrower than the 16 pixels"):
        ExampleBuilder(CFG, TOKENIZER, dataclasses.replace(DATA, sides=(32,), max_aspect=9.0))


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((100, 100), (64, 64)),
        ((63, 64), (32, 32)),
        ((10, 10), (32, 32)),
        ((900, 300), (80, 32)),
        ((300, 900), (32, 80)),
    ],
)
def test_choice_of_a_bucket(size, bucket):
    """No picture is enlarged if a side is small enough; the nearest ratio."""
    assert buckets.choose(size, (32, 64), 2.5, 16) == bucket


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 2048), (352, 704)),  # 512 x 1024 are kept, fewer pixels than 768 x 768
        ((1640, 640), (1056, 528)),
        ((300, 4000), (352, 704)),
        ((768, 1400), (720, 1440)),  # within the ratio the area of all of it counts
    ],
)
def test_choice_beyond_the_largest_ratio(size, bucket):
    """What is cut off beyond it is no reason for a larger bucket."""
    assert buckets.choose(size, (512, 768, 1024), 2.0, 16) == bucket


def test_no_panorama_is_enlarged():
    for long in range(1100, 6000, 37):
        for short in range(363, long // 2, 29):
            height, width = buckets.choose((short, long), (512, 768, 1024), 2.0, 16)
            assert height <= short and width <= long, (short, long)


def test_fit_keeps_the_middle():
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 24:76] = 255
    fitted = buckets.fit(picture, (20, 20))
    assert fitted.shape == (20, 20, 3) and np.all(fitted == 255)
    np.testing.assert_array_equal(buckets.fit(picture, (40, 100)), picture)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(39, 29, (112, 112)), (880, 1624, (1440, 672)), (1, 7, (32, 32))]
)
def test_fit_whatever_the_rounding(height, width, size):
    picture = np.full((height, width, 3), 9, np.uint8)
    np.testing.assert_array_equal(buckets.fit(picture, size), np.full((*size, 3), 9))


def test_fit_takes_every_pixel_from_its_place():
    """Columns and rows numbered in two channels: evenly spaced in the middle of the picture, as far as its edges."""
    rng = np.random.default_rng(0)
    for height, width, *size in rng.integers(24, 200, (300, 4)).tolist():
        y, x = np.mgrid[:height, :width].astype(np.uint8)
        fitted = buckets.fit(np.stack([y, x, x], axis=-1), tuple(size)).astype(float)
        scale = min(height / size[0], width / size[1])
        for axis, side in enumerate((height, width)):
            places = (np.arange(size[axis]) + 0.5 - size[axis] / 2) * scale + side / 2 - 0.5
            assert places[0] >= -0.5 - 1e-9 and places[-1] <= side - 0.5 + 1e-9
            inner = (places >= 2 * max(scale, 1)) & (places <= side - 1 - 2 * max(scale, 1))
            found = np.moveaxis(fitted[..., axis], axis, 0)[inner]
            np.testing.assert_allclose(found, np.broadcast_to(places[inner][:, None], found.shape), atol=1)
