"""Where the head looks as it draws: how much of its attention each place of a picture gives to the prompt's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float32

from internvlu_jax.inference import drawing, programs
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.processing.rows import bucket


@dataclass(frozen=True)
class AttentionMaps:
    """tokens: the words, and parts of words, of the context, as text; special tokens by their names.

    shares: [s, l, n, y, x, t], what share of its attention the head's token at y, x gives to token t of the context, by
        the state s that was looked at, layer and attention head. What is missing to 1 goes to the picture itself.
    """

    tokens: tuple[str, ...]
    shares: Float32[np.ndarray, "s l n y x t"]


def attention_maps(
    pipe: InternVLUPipeline, prompt: str, latents: np.ndarray, timesteps: Sequence[int | float]
) -> AttentionMaps:
    """Of a picture that is drawn from words alone, at some moments.

    Args:
        latents: float [s, y, x, c], noisy latents at each moment, as `callback_on_step_end` gives them.
        timesteps: the noise level of each, in [0, 1000]: after a step, that of the next one.

    Raises:
        ValueError: the prompt cannot be used, or there is not one timestep for each of the latents.
    """
    if len(latents) != len(timesteps):
        raise ValueError(f"there are {len(timesteps)} timesteps for {len(latents)} latents; expected one each")
    (processed,) = pipe.processor.process(prompt, None, "image")
    grid = latents.shape[1], latents.shape[2]
    patch = pipe.config.generation_decoder.latent_multiple
    (picture,) = drawing.resized(pipe.encode_prompt(prompt).pictures, grid, patch)
    span = picture.cond.layout.span
    length = bucket(len(span))
    one = drawing.condition(pipe.on, pipe.model, pipe.params, [picture.cond], length)
    same = jax.tree.map(lambda row: np.repeat(np.asarray(row), len(latents), axis=0), one)
    rows = pipe.on.put((latents, np.asarray(timesteps, np.float32), same))
    made = pipe.on.run(programs.attention_maps, pipe.model, pipe.params, *rows)
    shares = np.asarray(pipe.on.get(made, len(latents)))[..., : len(span)]
    decode = pipe.processor.tokenizer.decode
    tokens = tuple(decode([token], skip_special_tokens=False) for token in processed.cond[span].tolist())
    drawn = grid[0] // patch, grid[1] // patch
    return AttentionMaps(tokens, shares.reshape(*shares.shape[:3], *drawn, len(span)))
