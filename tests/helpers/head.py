"""The recorded generation head, and the recorded inputs of its transformer, in the shapes that ours takes."""

import functools
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from converters.engine import convert
from converters.head import head_rules
from converters.tensors import open_part
from internvlu_jax.config import Compute, HeadConfig
from internvlu_jax.config_files import read_config
from internvlu_jax.models.head import GenerationHead
from internvlu_jax.models.mmdit import MMDiT
from internvlu_jax.ops.msrope import msrope_table
from internvlu_jax.processing.positions import msrope_positions
from tests.helpers.measures import channels_last


@functools.cache
def load_head(checkpoint: Path) -> tuple[HeadConfig, dict]:
    """Config and parameters of the recorded head, through the converter."""
    cfg = read_config(checkpoint).generation_decoder
    head = GenerationHead(cfg)
    template = jax.eval_shape(lambda: head.init(jax.random.key(0), method="build"))["params"]
    params, extras = convert(head_rules(cfg), open_part(checkpoint / "generation_decoder"), template)
    assert not extras
    return cfg, jax.tree.map(jnp.asarray, params)


@functools.cache
def load_mmdit(checkpoint: Path, compute: Compute = Compute()) -> SimpleNamespace:
    """The transformer alone: cfg, apply(...) and embed(context), both jitted, params."""
    cfg, params = load_head(checkpoint)
    module = MMDiT(cfg.decoder_config, compute)
    return SimpleNamespace(
        cfg=cfg.decoder_config,
        params=params["mmdit"],
        module=module,
        apply=jax.jit(module.apply),
        embed=jax.jit(lambda variables, x: module.apply(variables, x, method="embed_context")),
    )


def runs_of(mask) -> list[tuple[bool, int]]:
    """[0 0 1 1 1] -> [(False, 2), (True, 3)]."""
    return [(bool(value), len(list(group))) for value, group in groupby(np.asarray(mask).tolist())]


def token_grids(grids) -> list[tuple[int, int]]:
    """Rows of (1, y, x) in latent pixels -> sides in tokens of 2x2."""
    return [(int(y) // 2, int(x) // 2) for _, y, x in grids]


def row_positions(case, row: int, cfg, padded: bool = True):
    """Positions of one recorded row, from its grids and its context."""
    length = int(case["context_mask"][row].sum())
    positions = msrope_positions(
        token_grids(case["grid_gen"][row : row + 1])[0],
        runs_of(case["context_image_mask"][row, :length]),
        condition_grids=token_grids(case.get(f"grid_cond.{row}", ())),
        visual_grids=[(int(y), int(x)) for _, y, x in case[f"vlm_grid.{row}"]],
        latent_scale=cfg.video_position_scale_factor,
        visual_scale=cfg.vlm_cond_position_scale_factor,
    )
    missing = case["context_mask"].shape[1] - length if padded else 0
    return np.pad(positions, ((0, missing), (0, 0)))


def row_inputs(case, rows: list[int], mmdit, step: int = 0) -> dict:
    """Arguments of the transformer for some rows of a recorded case; the rows have the same grids."""
    conditions = tuple(
        jnp.stack([channels_last(case["cond_latents"])[row] for row in rows])
        for _ in case.get(f"grid_cond.{rows[0]}", ())
    )
    positions = np.stack([row_positions(case, row, mmdit.cfg) for row in rows])
    return {
        "latents": jnp.asarray(channels_last(case[f"dit{step}_input"])[rows]),
        "timestep": jnp.asarray(case[f"dit{step}_timestep"][rows]),
        "context": mmdit.embed({"params": mmdit.params}, jnp.asarray(case["context"][rows])),
        "context_lengths": jnp.asarray(case["context_mask"][rows].sum(1), jnp.int32),
        "rope": msrope_table(positions, mmdit.cfg.axes_dims_rope),
        "conditions": conditions,
    }


def grouped_rows(case) -> list[list[int]]:
    """Rows with conditions, and rows without: what can run in one batch."""
    rows = range(len(case["context"]))
    with_condition = [row for row in rows if len(case.get(f"grid_cond.{row}", ()))]
    return [group for group in (with_condition, [row for row in rows if row not in with_condition]) if group]


def random_inputs(mmdit, batch: int = 3, grid=(2, 3), conditions=((2, 2), (1, 3)), context: int = 7, seed: int = 0):
    """Random arguments of the transformer with several condition pictures of different sizes (grids in tokens)."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    cfg = mmdit.cfg
    positions = msrope_positions(grid, [(False, context)], condition_grids=conditions)
    return {
        "latents": normal(batch, 2 * grid[0], 2 * grid[1], cfg.out_channels),
        "timestep": jnp.asarray(rng.uniform(0, 1000, batch), jnp.float32),
        "context": normal(batch, context, cfg.hidden_size),
        "context_lengths": jnp.asarray(rng.integers(1, context + 1, batch), jnp.int32),
        "rope": msrope_table(positions[None], cfg.axes_dims_rope),
        "conditions": tuple(normal(batch, 2 * y, 2 * x, cfg.out_channels) for y, x in conditions),
    }
