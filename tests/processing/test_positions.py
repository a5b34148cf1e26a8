"""Positions and tables of the generation head's rotary embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.config_files import read_config
from internvlu_jax.ops.msrope import msrope_table
from internvlu_jax.processing.positions import msrope_positions
from tests.helpers.head import row_positions
from tests.helpers.measures import assert_close

LAYOUTS = ["t2i", "odd", "edit", "two_references", "interpolated", "real_vit_grid"]


def recorded_positions(layout):
    """The layout as our function takes it: the first run is all the latents."""
    grids = [(y, x) for _, y, x in layout["latent_grids"]]
    scales = layout["scales"]
    assert len({scale for group in scales[1:] for scale in group}) <= 1
    assert layout["runs"][0] == [1, sum(y * x for y, x in grids)]
    return msrope_positions(
        grids[0],
        [(bool(is_visual), length) for is_visual, length in layout["runs"][1:]],
        condition_grids=grids[1:],
        visual_grids=[(y, x) for _, y, x in layout["vit_grids"]],
        latent_scale=scales[0][0],
        visual_scale=scales[1][0] if len(scales) > 1 else 1.0,
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_recorded_layout(golden, name):
    want = golden.component("msrope")
    positions = recorded_positions(golden.component_json("msrope")[name])
    np.testing.assert_array_equal(positions, want[f"{name}_positions"])
    axes = read_config(golden.checkpoint).generation_decoder.decoder_config.axes_dims_rope
    cos, sin = jax.jit(lambda p: msrope_table(p, axes))(jnp.asarray(positions))
    assert_close(cos, want[f"{name}_cos"], 1e-6, "cos")
    assert_close(sin, want[f"{name}_sin"], 1e-6, "sin")


@pytest.mark.parametrize("name", ["t2i", "t2i_batch", "t2i_odd_size", "edit", "edit_resized", "edit_batch"])
def test_recorded_pipeline_case(golden, name):
    case = golden.case(name)
    cfg = read_config(golden.checkpoint).generation_decoder.decoder_config
    rows = [row_positions(case, row, cfg, padded=False) for row in range(len(case["context"]))]
    np.testing.assert_array_equal(np.concatenate(rows), case["rope_positions"])


def test_grids_are_centred():
    positions = msrope_positions((3, 4), [])
    np.testing.assert_array_equal(np.unique(positions[:, 1]), [-2, -1, 0])
    np.testing.assert_array_equal(np.unique(positions[:, 2]), [-2, -1, 0, 1])
    np.testing.assert_array_equal(positions[0], [0, -2, -2])
    np.testing.assert_array_equal(positions[1], [0, -2, -1])


def test_one_token_grids_with_interpolation():
    positions = msrope_positions((1, 1), [(True, 1), (False, 1)], visual_grids=[(1, 1)], visual_scale=0.25)
    np.testing.assert_array_equal(positions, [[0, -1, -1], [1, -1, -1], [2, 2, 2]])


def test_condition_pictures_are_numbered_in_order():
    sizes = [(2, 2), (1, 3), (4, 2)]
    positions = msrope_positions((2, 2), [], condition_grids=sizes)
    np.testing.assert_array_equal(positions[:, 0], np.repeat(range(4), [4, 4, 3, 8]))
    alone = [msrope_positions(size, [])[:, 1:] for size in [(2, 2), *sizes]]
    np.testing.assert_array_equal(positions[:, 1:], np.concatenate(alone))


def test_text_starts_after_the_frames_when_these_are_the_largest_coordinate():
    positions = msrope_positions((2, 2), [(False, 2)], condition_grids=[(2, 2)] * 5)
    np.testing.assert_array_equal(positions[-2:], [[6, 6, 6], [7, 7, 7]])


def test_adjacent_visual_runs_are_separate_blocks():
    positions = msrope_positions((2, 2), [(False, 1), (True, 4), (True, 4), (False, 1)], visual_grids=[(2, 2), (2, 2)])
    np.testing.assert_array_equal(positions[4:, 0], [1, 2, 2, 2, 2, 3, 3, 3, 3, 4])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit visual grids"):
        msrope_positions((2, 2), [(True, 4)], visual_grids=[(2, 3)])
    with pytest.raises(ValueError, match="do not fit visual grids"):
        msrope_positions((2, 2), [(False, 4)], visual_grids=[(2, 2)])


def test_a_table_depends_on_differences_only():
    """Rotary property: turned queries and keys give the same products when all positions move together."""
    from internvlu_jax.ops.rope import apply_interleaved

    axes, rng = (4, 6, 6), np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 9, 2, 16)), jnp.float32) for _ in range(2))
    positions = rng.uniform(-5, 5, (1, 9, 3)).astype(np.float32)

    def products(moved):
        table = msrope_table(jnp.asarray(moved), axes)
        return jnp.einsum("bsnh,btnh->bnst", apply_interleaved(q, table), apply_interleaved(k, table))

    assert_close(products(positions + np.float32([3, -2, 7])), products(positions), 1e-5)
