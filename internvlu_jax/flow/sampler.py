"""From noise to latents: the sampling loop, and how the branches of guidance are run together.

The loop knows only `velocity(x, timestep)`, and guidance only `velocity(x, timestep, condition)`, where a condition is
any tree of arrays. Branches whose conditions have the same shapes form a `Group` and run as one batch. Text-to-image is
one group (cond, uncond); editing is one group (cond, text_dropped), whose conditions hold the source pictures, and one
group (uncond), which has none and does not pay for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import struct
from jaxtyping import Array, Float

from internvlu_jax.flow import solver
from internvlu_jax.flow.guidance import Scales, Velocities, guide
from internvlu_jax.flow.solver import SolverState, Steps

Velocity = Callable[[Array, Array], Array]
"""(latents [b, ...], timestep []) -> velocity [b, ...]."""

ConditionedVelocity = Callable[[Array, Array, Any], Array]
"""(latents [b, ...], timestep [], tree of arrays that lead with b) -> velocity [b, ...]."""


@struct.dataclass
class Group:
    """Branches of guidance that run as one batch: r branches of b examples.

    branches: the fields of `Velocities` that these are, in the order of axis r.
    condition: a tree of arrays [b, r, ...], so that they are shared out over devices by example.
    """

    branches: tuple[str, ...] = struct.field(pytree_node=False)
    condition: Any


def sample(velocity: Velocity, noise: Float[Array, "b *n"], steps: Steps) -> Float[Array, "b *n"]:
    """Clean latents, float32, from noise: one `lax.scan` over the steps (`solver.steps`)."""

    def body(state: SolverState, at: Steps) -> tuple[SolverState, None]:
        return sample_step(velocity, state, at), None

    state, _ = jax.lax.scan(body, solver.start(noise), steps)
    return state.x


def sample_step(velocity: Velocity, state: SolverState, at: Steps) -> SolverState:
    """One step of `sample`, from `solver.start(noise)`; `at` holds one step's coefficients (`step_at`)."""
    return solver.step(state, velocity(state.x, at.timestep), at)


def step_at(steps: Steps, index: int) -> Steps:
    """The coefficients of one step."""
    return jax.tree.map(lambda c: c[index], steps)


def branch_velocities(
    velocity: ConditionedVelocity, x: Float[Array, "b y x c"], timestep: Float[Array, ""], group: Group
) -> dict[str, Array]:
    """Velocity of every branch of a group, by its name, from one call."""
    count = len(group.branches)
    rows = repeat(x, "b ... -> (b r) ...", r=count)
    condition = jax.tree.map(lambda leaf: rearrange(leaf, "b r ... -> (b r) ..."), group.condition)
    by_branch = rearrange(velocity(rows, timestep, condition), "(b r) y x c -> r b y x c", r=count)
    return dict(zip(group.branches, by_branch, strict=True))


def guided_velocity(
    velocity: ConditionedVelocity,
    x: Float[Array, "b y x c"],
    timestep: Float[Array, ""],
    groups: tuple[Group, ...],
    scales: Scales,
) -> Float[Array, "b y x c"]:
    """Guided velocity of the latents x; together the groups hold `cond`, `uncond` and, for editing, `text_dropped`."""
    branches: dict[str, Array] = {}
    for group in groups:
        branches |= branch_velocities(velocity, x, jnp.asarray(timestep, jnp.float32), group)
    return guide(Velocities(**branches), timestep, scales)
