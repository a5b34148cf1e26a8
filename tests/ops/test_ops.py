import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.ops.norms import layer_norm, rms_norm
from internvlu_jax.ops.patches import interpolate_positions, patchify, pixel_shuffle, unpatchify
from internvlu_jax.ops.rope import apply_half, apply_interleaved, rotary_table
from tests.helpers.measures import assert_close


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_rms_norm_casts_before_it_multiplies():
    x, scale = 3 * random(0, 2, 3, 16), random(1, 16)
    wide = np.asarray(x, np.float64)
    normalised = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-2)
    assert_close(rms_norm(x, scale, 1e-2), normalised * np.asarray(scale, np.float64), 1e-6)
    low = rms_norm(x, scale.astype(jnp.bfloat16), 1e-2)
    want = jnp.asarray(normalised, jnp.float32).astype(jnp.bfloat16) * scale.astype(jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    assert_close(low.astype(jnp.float32), want.astype(jnp.float32), 1e-3)


def test_layer_norm_equals_its_formula_far_from_zero():
    x = 100 + random(0, 2, 3, 16)
    scale, bias = random(1, 16), random(2, 16)
    wide = np.asarray(x, np.float64)
    plain = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-2)
    assert_close(layer_norm(x, eps=1e-2), plain, 1e-5)
    assert_close(layer_norm(x, scale, bias, 1e-2), plain * np.asarray(scale) + np.asarray(bias), 1e-5)
    assert layer_norm(x.astype(jnp.bfloat16), scale, bias).dtype == jnp.bfloat16


def test_rotary_turns_pairs_as_complex_numbers():
    x = random(0, 2, 3, 2, 8)
    positions = jnp.array([[0, 1, 2], [5, 900, 7]])
    table = rotary_table(positions, 8, 1e4)
    angles = np.asarray(positions, np.float64)[..., None] * 1e4 ** -(np.arange(0, 8, 2) / 8)
    turn = np.exp(1j * angles)[:, :, None]
    wide = np.asarray(x, np.float64)
    half = (wide[..., :4] + 1j * wide[..., 4:]) * turn
    pairs = (wide[..., ::2] + 1j * wide[..., 1::2]) * turn
    assert_close(apply_half(x, table), np.concatenate([half.real, half.imag], axis=-1), 1e-5)
    assert_close(apply_interleaved(x, table), np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape), 1e-5)
    for turned in (apply_half, apply_interleaved):
        low = turned(x.astype(jnp.bfloat16), table)
        assert low.dtype == jnp.bfloat16


def test_one_rotary_table_serves_all_rows():
    x, table = random(0, 2, 3, 2, 8), rotary_table(jnp.arange(3)[None], 8, 1e4)
    both = [jnp.broadcast_to(part, (2, *part.shape[1:])) for part in table]
    np.testing.assert_array_equal(apply_interleaved(x, table), apply_interleaved(x, (both[0], both[1])))


def test_patches_are_channel_major_and_come_back():
    x = random(0, 2, 4, 6, 3)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 6, 12)
    row, column, channel, p, q = 1, 2, 1, 0, 1
    assert tokens[1, row * 3 + column, channel * 4 + p * 2 + q] == x[1, row * 2 + p, column * 2 + q, channel]
    np.testing.assert_array_equal(unpatchify(tokens, (2, 3), 2), x)
    with pytest.raises(ValueError, match="picture of 4x6 does not divide into 4x4"):
        patchify(x, 4)


def test_pixel_shuffle_orders_neighbours_by_row_then_column():
    x = random(0, 1, 4, 6, 5)
    out = pixel_shuffle(x, 2)
    assert out.shape == (1, 2, 3, 20)
    for r, s in np.ndindex(2, 2):
        channels = slice((2 * r + s) * 5, (2 * r + s + 1) * 5)
        np.testing.assert_array_equal(out[0, 1, 2, channels], x[0, 2 + r, 4 + s])


def test_interpolated_positions_keep_constants_and_inner_slopes():
    own = random(0, 16, 3)
    np.testing.assert_array_equal(interpolate_positions(own, (4, 4)), own)
    assert_close(interpolate_positions(jnp.full((16, 3), 2.5), (3, 7)), np.full((21, 3), 2.5), 1e-6)
    rows, columns = np.mgrid[:8, :8]
    plane = jnp.asarray(np.stack([rows, columns], -1).reshape(64, 2), jnp.float32)
    larger = np.asarray(interpolate_positions(plane, (16, 8))).reshape(16, 8, 2)
    # This kernel does not reproduce a plane exactly between the samples, but by symmetry it does so on average.
    assert_close(larger[4:12, 0, 0].mean(), 3.5, 1e-6)
    assert_close(larger[4:12, :, 1], np.broadcast_to(np.arange(8.0), (8, 8)), 1e-6)
    with pytest.raises(ValueError, match="not that of a square grid"):
        interpolate_positions(own[:15], (4, 4))
