"""From contexts and noise to latents: which branches of guidance run together, and the loop over steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from internvlu_jax.flow import solver
from internvlu_jax.flow.guidance import Scales
from internvlu_jax.flow.sampler import Group, step_at
from internvlu_jax.inference import programs
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.parallel.placement import Placement
from internvlu_jax.processing.layout import Layout
from internvlu_jax.processing.rows import bucket

# Branches of different lengths run as one batch if padding the shorter ones costs at most this share of their tokens.
_PADDING_SHARE = 0.02


@dataclass(frozen=True, eq=False)  # told apart as objects: one branch may serve many pictures
class Branch:
    """What one branch of guidance knows: hidden states [t, e] of the language model, not padded, and their layout.

    kept: where it serves many calls, the last condition made of it, by the length that the context was padded to; else
        None.
    """

    context: np.ndarray
    layout: Layout
    kept: dict[int, Any] | None = None


@dataclass(frozen=True)
class PictureInputs:
    """What one picture is drawn from. `text_dropped` is None without source pictures.

    sources: normalised latents [y, x, c] of each source picture; empty where the head gets none.
    """

    cond: Branch
    text_dropped: Branch | None
    uncond: Branch
    sources: tuple[np.ndarray, ...] = ()

    @property
    def kind(self) -> Hashable:
        """Equal for pictures that are drawn together: they have the same branches, and sources of equal sizes."""
        return self.text_dropped is not None, *(source.shape[:2] for source in self.sources)


class Then(NamedTuple):
    """What is to follow a step: latents [b, y, x, c] in place of those that it gave, if any; and whether to stop."""

    latents: np.ndarray | None = None
    stop: bool = False


Report = Callable[[int, int, np.ndarray], Then]
"""(number of the step from 0, its time in [0, 1000], latents after it)."""
OnStep = Callable[[np.ndarray], None]
"""(latents after a step)."""


def resized(pictures: Sequence[PictureInputs], grid: tuple[int, int], patch: int) -> list[PictureInputs]:
    """The same to be drawn at other rows and columns of latents, of which the head has `patch` a token each way.

    Branches that serve several pictures still do.
    """
    drawn = (grid[0] // patch, grid[1] // patch)
    moved: dict[Branch, Branch] = {}

    def move(branch: Branch) -> Branch:
        if branch.layout.pictures[0] == drawn:
            return branch
        if branch not in moved:
            own = replace(branch.layout, pictures=(drawn, *branch.layout.pictures[1:]))
            moved[branch] = Branch(branch.context, own, {})
        return moved[branch]

    return [
        replace(
            p, cond=move(p.cond), uncond=move(p.uncond), text_dropped=p.text_dropped and move(p.text_dropped)
        )
        for p in pictures
    ]  # fmt: skip


def groups(
    on: Placement, model: InternVLU, params: Params, pictures: Sequence[PictureInputs], grid: tuple[int, int]
) -> tuple[Group, ...]:
    """The branches of pictures whose sources have the same sizes, gathered into as few batches as pays.

    Args:
        params: of the head, under its key, where `on` placed them; the batches are put there too.
        grid: rows and columns of the latents to be drawn.
    """
    cond, uncond = [p.cond for p in pictures], [p.uncond for p in pictures]
    text_dropped = [p.text_dropped for p in pictures if p.text_dropped is not None]
    if not text_dropped:
        return _batches(on, model, params, {"cond": cond, "uncond": uncond}, grid)
    sources = tuple(np.stack(same) for same in zip(*(p.sources for p in pictures), strict=True))
    with_sources = _batches(on, model, params, {"cond": cond, "text_dropped": text_dropped}, grid, sources)
    return with_sources + _batches(on, model, params, {"uncond": uncond}, grid)


def _batches(
    on: Placement,
    model: InternVLU,
    params: Params,
    branches: dict[str, list[Branch]],
    grid: tuple[int, int],
    sources: tuple[np.ndarray, ...] = (),
) -> tuple[Group, ...]:
    """One batch for all branches where the padding that it takes costs little, else one for each."""
    lengths = [_padded(rows) for rows in branches.values()]
    latents = math.prod(grid) + sum(math.prod(s.shape[1:3]) for s in sources)
    picture_tokens = latents // model.cfg.generation_decoder.latent_multiple**2
    padding = sum(max(lengths) - length for length in lengths)
    if padding <= _PADDING_SHARE * len(branches) * picture_tokens:
        return (_group(on, model, params, branches, sources),)
    return tuple(_group(on, model, params, {name: rows}, sources) for name, rows in branches.items())


def _padded(branches: Sequence[Branch]) -> int:
    return bucket(max(len(branch.context) for branch in branches))


def _group(
    on: Placement,
    model: InternVLU,
    params: Params,
    branches: dict[str, list[Branch]],
    sources: tuple[np.ndarray, ...],
) -> Group:
    """One batch; entry n of each branch is for picture n."""
    length = max(map(_padded, branches.values()))
    conditions, rows = [], []
    for members in branches.values():
        unique = list(dict.fromkeys(members))
        place = {branch: n for n, branch in enumerate(unique)}
        rows.append(np.array([place[branch] for branch in members], np.int32))
        own = tuple(source[[members.index(branch) for branch in unique]] for source in sources)
        conditions.append(condition(on, model, params, unique, length, own))
    return Group(tuple(branches), on.put(programs.side_by_side(conditions, rows)))


def condition(
    on: Placement,
    model: InternVLU,
    params: Params,
    branches: Sequence[Branch],
    length: int,
    sources: tuple[np.ndarray, ...] = (),
) -> Any:
    """`InternVLU.condition` of branches, one row each, with contexts padded to `length`; what is kept is not repeated.

    sources: latents [b, y, x, c], a row for each branch.
    """
    first = branches[0].kept if len(branches) == 1 else None
    if first is not None and length in first:
        return first[length]
    contexts = [np.pad(b.context, ((0, length - len(b.context)), (0, 0))) for b in branches]
    lengths = np.array([len(b.context) for b in branches], np.int32)
    positions = np.stack([b.layout.positions(length) for b in branches])
    rows = on.put((np.stack(contexts), lengths, positions, sources))
    made = on.get(on.run(programs.condition, model, params, *rows), len(branches))
    if first is not None:
        first.clear()  # one length is enough to spare a call like the last one the work, and holds little memory
        first[length] = made
    return made


def draw(
    on: Placement,
    model: InternVLU,
    params: Params,
    pictures: Sequence[PictureInputs],
    start: np.ndarray,
    schedule: solver.Schedule,
    scales: Scales,
    report: Report | None = None,
) -> np.ndarray:
    """Draws pictures whose sources have the same sizes: latents [b, y, x, c] from noise `start`.

    With `report` the steps run one by one, and it says what follows each.

    Raises ValueError if a picture is not finite, which would come out black.
    """
    count = len(pictures)
    batch = groups(on, model, params, pictures, (start.shape[1], start.shape[2]))
    steps, scales = _numbers(solver.steps(schedule)), _numbers(scales)
    if report is None:
        drawn = on.run(programs.draw, model, params, on.put(start), steps, batch, scales)
        return _finite(on.get(drawn, count))
    state = on.put(solver.start(jnp.asarray(start)))
    for i, timestep in enumerate(schedule.timesteps.tolist()):
        state = on.run(programs.draw_step, model, params, state, step_at(steps, i), batch, scales)
        then = report(i, timestep, np.asarray(on.get(state.x, count)))
        if then.latents is not None:
            state = solver.SolverState(on.put(then.latents), state.clean)
        if then.stop:
            break
    return _finite(on.get(state.x, count))


def _finite(latents: Any) -> np.ndarray:
    drawn = np.asarray(latents)
    bad = int((~np.isfinite(drawn).all(axis=(1, 2, 3))).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(drawn)} pictures are not finite: they overflowed, or the checkpoint's weights are damaged. "
            "Take less guidance, or dtype='float32'"
        )
    return drawn


def counted(
    callback: Callable[[int, int, Any], None] | None, total: int, advance: Callable[[], None] | None
) -> OnStep | None:
    """Counts the steps of a call, drawing after drawing, for those that hear of them; None if nobody does."""
    if callback is None and advance is None:
        return None
    numbers = itertools.count(1)

    def on_step(latents: np.ndarray) -> None:
        number = next(numbers)
        if callback is not None:
            callback(number, total, latents)
        if advance is not None:
            advance()

    return on_step


def reporter(on_step: OnStep | None, on_step_end: Report | None) -> Report | None:
    """What happens after each step; None if nothing does, so that the whole loop can be one program."""
    if on_step is None and on_step_end is None:
        return None

    def report(step: int, timestep: int, latents: np.ndarray) -> Then:
        if on_step is not None:
            on_step(latents)
        return Then() if on_step_end is None else on_step_end(step, timestep, latents)

    return report


def _numbers(tree: Any) -> Any:
    """Of the host and of one dtype, so that equal calls are equal programs on every process."""
    return jax.tree.map(lambda value: np.asarray(value, np.float32), tree)
