"""Resizing: the naive one within a level, near Pillow's."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from internvlu_jax.processing.resize import axis_weights, precision, resize_bicubic, resize_plan
from tests.helpers.pictures import noise


def photo(height, width):
    """Smooth colour with some sharp edges, like an ordinary picture."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [127 + 120 * np.sin(7 * x + 3 * y), 255 * x / x.max(), 127 + 120 * np.cos(9 * y * x + 1)]
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    ImageDraw.Draw(image).rectangle((width // 4, height // 4, width // 2, height // 2), fill=(250, 20, 40))
    return image


def keys_kernel(x, a=-0.5):
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def naive_axis(values, out):
    """One pass of the resize in float64 for one row, written from the definition of the kernel."""
    scale = len(values) / out
    width = max(scale, 1.0)
    result = []
    for i in range(out):
        centre = (i + 0.5) * scale
        low, high = max(int(centre - 2 * width + 0.5), 0), min(int(centre + 2 * width + 0.5), len(values))
        weights = [keys_kernel((j + 0.5 - centre) / width) for j in range(low, high)]
        result.append(sum(w * v for w, v in zip(weights, values[low:high], strict=True)) / sum(weights))
    return np.array(result)


@pytest.mark.parametrize("size, out", [(100, 37), (37, 100), (448, 56), (5, 64), (200, 199), (1, 30), (900, 3)])
def test_resize_is_the_naive_one_within_a_level(size, out):
    row = noise(1, size)[0, :, 0]
    got = resize_bicubic(np.repeat(row[None, :, None], 3, axis=-1), 1, out)[0, :, 0].astype(float)
    want = np.clip(naive_axis(row.astype(float), out), 0, 255)
    # Rounding to a level is half a level away at most; 16-bit weights add a little for wide windows.
    assert np.abs(got - want).max() <= 0.75


@pytest.mark.parametrize("shape", [(300, 400), (97, 61), (40, 30), (448, 800)])
def test_resize_is_near_pillow(shape):
    image = photo(*shape)
    got = resize_bicubic(np.asarray(image), 112, 112).astype(int)
    want = np.asarray(image.resize((112, 112), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(got - want).max() <= 2


def test_resize_to_the_same_size_changes_nothing():
    picture = noise(33, 70)
    np.testing.assert_array_equal(resize_bicubic(picture, 33, 70), picture)


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_resize_keeps_a_flat_picture_flat(value):
    flat = np.full((50, 300, 3), value, np.uint8)
    np.testing.assert_array_equal(resize_bicubic(flat, 64, 64), np.full((64, 64, 3), value))


def test_resize_goes_columns_first_and_rounds_between():
    picture = noise(60, 80)
    step = resize_bicubic(resize_bicubic(picture, 60, 24), 24, 24)
    np.testing.assert_array_equal(resize_bicubic(picture, 24, 24), step)
    assert not np.array_equal(resize_bicubic(resize_bicubic(picture, 24, 80), 24, 24), step)


def test_resize_turns_with_the_channels():
    picture = noise(30, 50)
    np.testing.assert_array_equal(
        resize_bicubic(picture, 20, 20)[..., ::-1], resize_bicubic(picture[..., ::-1], 20, 20)
    )


def test_weights_sum_to_one_and_fit_16_bits():
    for size, out in ((4000, 448), (7, 448), (448, 447), (3, 2)):
        weights, first, count = axis_weights(size, out)
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-14)
        assert (count > 0).all() and (first >= 0).all() and (first + count <= size).all()
        p = precision(weights.max())
        assert 2**14 <= round(weights.max() * 2**p) < 2**15


def test_resize_of_a_large_photo_is_cheap():
    # Counted, not timed, so that a busy machine does not matter: the bands hold about a twelfth of the full matrix.
    blocks, _ = resize_plan(4000, 448)
    assert sum(block.weights.size for block in blocks) < 4000 * 448 / 10
    assert resize_bicubic(noise(3000, 4000), 448, 448).shape == (448, 448, 3)
