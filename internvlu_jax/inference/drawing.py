"""From contexts and noise to latents: which branches of guidance run together, and the loop over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from internvlu_jax.flow import solver
from internvlu_jax.flow.guidance import Scales
from internvlu_jax.flow.sampler import Group, step_at
from internvlu_jax.inference.programs import Inference, Params
from internvlu_jax.inference.prompts import Runs
from internvlu_jax.ops.msrope import msrope_positions
from internvlu_jax.processing.batch import bucket

# Branches of different lengths run as one batch if padding the shorter ones costs at most this share of their tokens.
_PADDING_SHARE = 0.02


@dataclass(frozen=True)
class Context:
    """What one row of the language model tells the head: tokens [t, d], embedded and not padded, and their runs."""

    tokens: np.ndarray
    runs: Runs


@dataclass(frozen=True)
class Picture:
    """What one picture is drawn from. `partial` is None without source pictures.

    sources: normalised latents [y, x, c] of each source picture.
    """

    full: Context
    partial: Context | None
    dropped: Context
    sources: tuple[np.ndarray, ...] = ()


def noise(seed: int, count: int, shape: tuple[int, int, int]) -> jax.Array:
    """Standard normal [count, y, x, c], keyed by picture: number i is the same however many there are."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(count))
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def groups(inference: Inference, pictures: Sequence[Picture], grid: tuple[int, int]) -> tuple[Group, ...]:
    """The branches of pictures whose sources have the same sizes, gathered into as few batches as pays.

    Args:
        grid: rows and columns of the latents to be drawn.
    """
    full, dropped = [p.full for p in pictures], [p.dropped for p in pictures]
    partial = [p.partial for p in pictures if p.partial is not None]
    if not partial:
        return _batches(inference, {"full": full, "dropped": dropped}, grid)
    sources = tuple(np.stack(same) for same in zip(*(p.sources for p in pictures), strict=True))
    with_sources = _batches(inference, {"full": full, "partial": partial}, grid, sources)
    return with_sources + _batches(inference, {"dropped": dropped}, grid)


def _batches(
    inference: Inference,
    branches: dict[str, list[Context]],
    grid: tuple[int, int],
    sources: tuple[np.ndarray, ...] = (),
) -> tuple[Group, ...]:
    """One batch for all branches where the padding that it takes costs little, else one for each."""
    lengths = [_padded(contexts) for contexts in branches.values()]
    picture_tokens = math.prod(grid) + sum(math.prod(s.shape[1:3]) for s in sources)
    picture_tokens //= inference.cfg.generation_decoder.decoder_config.patch_size**2
    padding = sum(max(lengths) - length for length in lengths)
    if padding <= _PADDING_SHARE * len(branches) * picture_tokens:
        return (_group(inference, tuple(branches), list(branches.values()), grid, sources),)
    return tuple(_group(inference, (name,), [rows], grid, sources) for name, rows in branches.items())


def _padded(contexts: Sequence[Context]) -> int:
    return bucket(max(len(c.tokens) for c in contexts))


def _group(
    inference: Inference,
    branches: tuple[str, ...],
    rows: Sequence[Sequence[Context]],
    grid: tuple[int, int],
    sources: tuple[np.ndarray, ...] = (),
) -> Group:
    """One batch; `rows[r][b]` is the context of branch r for picture b."""
    length = max(_padded(contexts) for contexts in rows)
    by_picture = list(zip(*rows, strict=True))
    tokens = [[np.pad(c.tokens, ((0, length - len(c.tokens)), (0, 0))) for c in row] for row in by_picture]
    lengths = [[len(c.tokens) for c in row] for row in by_picture]
    positions = [[_positions(inference, grid, c.runs, sources, length) for c in row] for row in by_picture]
    rope = inference.rope(np.array(positions, np.float32))
    return Group(branches, np.array(tokens), np.array(lengths, np.int32), rope, sources)


def _positions(
    inference: Inference, grid: tuple[int, int], runs: Runs, sources: tuple[np.ndarray, ...], length: int
) -> np.ndarray:
    dit = inference.cfg.generation_decoder.decoder_config
    side = inference.cfg.vlm.tokens_per_side
    return msrope_positions(
        (grid[0] // dit.patch_size, grid[1] // dit.patch_size),
        runs,
        condition_grids=[(s.shape[1] // dit.patch_size, s.shape[2] // dit.patch_size) for s in sources],
        visual_grids=[(side, side)] * sum(visual for visual, _ in runs),
        latent_scale=dit.video_position_scale_factor,
        visual_scale=dit.vlm_cond_position_scale_factor,
        context_length=length,
    )


def draw(
    inference: Inference,
    head: Params,
    pictures: Sequence[Picture],
    start: np.ndarray | jax.Array,
    plan: solver.Schedule,
    scales: Scales,
    report: Callable[[jax.Array], None] | None = None,
) -> np.ndarray:
    """Draws pictures whose sources have the same sizes: latents [b, y, x, c] from noise `start`.

    With `report` the steps run one by one, and it gets the latents after each.
    """
    batch = groups(inference, pictures, (start.shape[1], start.shape[2]))
    steps = solver.steps(plan)
    start = jnp.asarray(start, jnp.float32)
    if report is None:
        return np.asarray(inference.draw(head, start, steps, batch, scales))
    state = solver.start(start)
    for i in range(len(plan.timesteps)):
        state = inference.draw_step(head, state, step_at(steps, i), batch, scales)
        report(state.x)
    return np.asarray(state.x)
