"""The compiled functions of inference: what the pipeline calls, the benchmark times, and `experiments.flops` counts.

Each is a method of `InternVLU`, or a few of them, jitted with the model as a static argument, so that two pipelines of
the same configuration share programs. Lengths that vary with the prompt come in as buckets (`processing.rows`).
Writing text is `decode`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from internvlu_jax.flow import sampler
from internvlu_jax.flow.guidance import Scales
from internvlu_jax.flow.sampler import Group
from internvlu_jax.flow.solver import SolverState, Steps
from internvlu_jax.models.internvlu import InternVLU, Params

visual_tokens = jax.jit(InternVLU.visual_tokens, static_argnums=0)
encode = jax.jit(InternVLU.encode, static_argnums=0)
decode = jax.jit(InternVLU.decode, static_argnums=0)
embed = jax.jit(InternVLU.embed, static_argnums=0)
context = jax.jit(InternVLU.context, static_argnums=0)
condition = jax.jit(InternVLU.condition, static_argnums=0)
attention_maps = jax.jit(InternVLU.attention_maps, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def contexts(
    model: InternVLU,
    params: Params,
    ids: Int[Array, "b s"],
    index: Int[Array, "b t"],
    visual: Float[Array, "k d"] | None = None,
    visual_index: Int[Array, "b s"] | None = None,
) -> Float[Array, "b t e"]:
    """Prompts to the hidden states that condition the head: no output layer, no cache."""
    read = model.read(params, model.embed(params, ids, visual, visual_index), capture=True)
    assert read.captured is not None
    return model.context(read.captured, index)


@jax.jit
def side_by_side(conditions: Sequence[Any], rows: Sequence[Int[Array, "b"]]) -> Any:
    """Conditions of r branches as one tree that leads with [b, r]; picture n takes row `rows[r][n]` of branch r's."""
    chosen = [jax.tree.map(lambda a, i=index: a[i], c) for c, index in zip(conditions, rows, strict=True)]
    return jax.tree.map(lambda *branches: jnp.stack(branches, axis=1), *chosen)


@partial(jax.jit, static_argnums=0)
def draw(
    model: InternVLU,
    params: Params,
    noise: Float[Array, "b y x c"],
    steps: Steps,
    groups: tuple[Group, ...],
    scales: Scales,
) -> Float[Array, "b y x c"]:
    """Noise to latents: all steps in one program."""
    return sampler.sample(_guided(model, params, groups, scales), noise, steps)


@partial(jax.jit, static_argnums=0)
def draw_step(
    model: InternVLU, params: Params, state: SolverState, at: Steps, groups: tuple[Group, ...], scales: Scales
) -> SolverState:
    """One step of `draw`, for a caller that wants to look in between."""
    return sampler.sample_step(_guided(model, params, groups, scales), state, at)


def _guided(model: InternVLU, params: Params, groups: tuple[Group, ...], scales: Scales) -> sampler.Velocity:
    velocity = partial(model.velocity, params)
    return lambda x, timestep: sampler.guided_velocity(velocity, x, timestep, groups, scales)
