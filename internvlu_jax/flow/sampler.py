"""From noise to latents: the sampling loop, and how the branches of guidance are run through the head.

The loop knows only `velocity(x, timestep)`. `guided_velocity` makes one from the head: branches whose tokens have the
same shapes form a `Group` and run as one batch. Text-to-image is one group (full, dropped); editing is one group
(full, partial), which has the source pictures' latents, and one group (dropped), which has none and does not pay for
them.
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


Leaf = Any
"""An array, or what a tree function puts in its place."""


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


@struct.dataclass
class Group:
    """Branches of guidance that run as one batch: r branches of b examples. Arrays lead with b, so they shard by it.

    branches: the fields of `Velocities` that these are, in the order of axis r.
    context: float [b, r, t, d], embedded by the head, right padded.
    context_lengths: int [b, r], real tokens of each.
    rope: (cos, sin), each float32 [b, r, s, h/2].
    conditions: float32 [b, y, x, c] each, latents of source pictures, the same for all branches of the group.
    condition_mask: bool [b, k], which pictures an example has; None if every example has all.
    """

    branches: tuple[str, ...] = struct.field(pytree_node=False)
    context: Leaf
    context_lengths: Leaf
    rope: tuple[Leaf, Leaf]
    conditions: tuple[Leaf, ...] = ()
    condition_mask: Leaf | None = None


def branch_velocities(
    head_apply: Callable[..., Any],
    params: Any,
    x: Float[Array, "b y x c"],
    timestep: Float[Array, ""],
    group: Group,
) -> dict[str, Array]:
    """Velocity of every branch of a group, by its name, from one call of the head.

    head_apply: `apply` of `MMDiT` or `GenerationHead`; params: its parameters.
    """
    count = len(group.branches)

    def copies(array: Array) -> Array:
        return repeat(array, "b ... -> (b r) ...", r=count)

    def rows(array: Array) -> Array:
        return rearrange(array, "b r ... -> (b r) ...")

    mask = None if group.condition_mask is None else copies(group.condition_mask)
    velocity = head_apply(
        {"params": params},
        copies(x),
        jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), (x.shape[0] * count,)),
        rows(group.context),
        rows(group.context_lengths),
        (rows(group.rope[0]), rows(group.rope[1])),
        tuple(copies(condition) for condition in group.conditions),
        mask,
    )
    by_branch = rearrange(velocity, "(b r) y x c -> r b y x c", r=count)
    return dict(zip(group.branches, by_branch, strict=True))


def guided_velocity(
    head_apply: Callable[..., Any],
    params: Any,
    x: Float[Array, "b y x c"],
    timestep: Float[Array, ""],
    groups: tuple[Group, ...],
    scales: Scales,
) -> Float[Array, "b y x c"]:
    """Guided velocity of the latents x; together the groups hold `full`, `dropped` and, for editing, `partial`."""
    found: dict[str, Array] = {}
    for group in groups:
        found |= branch_velocities(head_apply, params, x, timestep, group)
    return guide(Velocities(**found), timestep, scales)
