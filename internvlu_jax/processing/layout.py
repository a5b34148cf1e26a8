"""Which tokens of a prompt condition the head, and where all of the head's tokens are: the same in every mode.

A prompt is a row of token ids. From the user's turn on its hidden states are the *context* of the picture (released
code: the second `<|im_start|>`). Serving, reasoning, editing and training all ask `layout`, which works on the host in
numpy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.processing.positions import Grid, Runs, msrope_positions
from internvlu_jax.processing.tokenizer import Tokenizer


@dataclass(frozen=True)
class Layout:
    """What one row of the language model is to the head, for one picture.

    span: int32 [t], the places in the row whose hidden states are the context, in order.
    runs: its stretches of text and of visual tokens.
    pictures: rows and columns, in tokens of the head, of the noisy latents and then of the sources.
    tile: rows and columns of a tile's visual tokens.
    latent_scale, visual_scale: see `msrope_positions`.
    numbered: whether tokens are numbered through, in place of having places in pictures.
    """

    span: Int32[np.ndarray, "t"]
    runs: Runs
    pictures: tuple[Grid, ...]
    tile: Grid
    latent_scale: float
    visual_scale: float
    numbered: bool = False

    def positions(self, context_length: int) -> Float32[np.ndarray, "n 3"]:
        """Positions of the head's tokens: noisy latents, source latents, context.

        The context is padded on the right to `context_length`; padding has positions 0 and is never attended to.

        Raises:
            ValueError: the context is longer.
        """
        missing = context_length - len(self.span)
        if missing < 0:
            raise ValueError(f"a context of {len(self.span)} tokens does not fit the padded length {context_length}")
        real = self._numbers() if self.numbered else self._places()
        return np.pad(real, ((0, missing), (0, 0)))

    def _places(self) -> Float32[np.ndarray, "n 3"]:
        drawn, *sources = self.pictures
        return msrope_positions(
            drawn,
            self.runs,
            condition_grids=sources,
            visual_grids=[self.tile] * sum(is_visual for is_visual, _ in self.runs),
            latent_scale=self.latent_scale,
            visual_scale=self.visual_scale,
        )

    def _numbers(self) -> Float32[np.ndarray, "n 3"]:
        """Of all tokens in their order, from 0, the same on every axis."""
        count = sum(rows * columns for rows, columns in self.pictures) + len(self.span)
        return np.repeat(np.arange(count, dtype=np.float32)[:, None], 3, axis=1)


def layout(
    cfg: InternVLUConfig,
    tokenizer: Tokenizer,
    ids: np.ndarray,
    sources: Sequence[Grid],
    grid: Grid,
    written: int = 0,
) -> Layout:
    """The layout of one row.

    Args:
        ids: int [s], the tokens of the prompt and, after reasoning, of what was written; the last one is `<img>`.
        sources: rows and columns of each source picture's latents; not used where the head gets no source latents.
        grid: rows and columns of the latents to be drawn.
        written: how many of the last tokens the model wrote. None of them stands for a picture.

    Raises:
        ValueError: the row has no user's turn.
    """
    head = cfg.generation_decoder
    start = _user_turn(ids, tokenizer)
    visual = ids == tokenizer.img_context
    visual[len(ids) - written :] = False
    span = np.arange(start, len(ids), dtype=np.int32)
    if head.sources == "latents":
        span = span[~_of_pictures(ids, visual, tokenizer)[start:]]
    span = span[: head.context_length(len(span))]
    runs = context_runs(visual[span], cfg.vlm.tokens_per_tile)
    patch = head.latent_multiple
    grids = (grid, *(sources if takes_latents(cfg) else ()))
    side = cfg.vlm.tokens_per_side
    latent_scale, visual_scale = head.position_scales
    return Layout(
        span,
        runs,
        pictures=tuple((rows // patch, columns // patch) for rows, columns in grids),
        tile=(side, side),
        latent_scale=latent_scale,
        visual_scale=visual_scale,
        numbered=head.positions == "sequence",
    )


def takes_latents(cfg: InternVLUConfig) -> bool:
    """Whether the head sees the latents of source pictures, in training and when it draws."""
    return cfg.generation_decoder.sources != "context"


def _user_turn(ids: np.ndarray, tokenizer: Tokenizer) -> int:
    turns = np.flatnonzero(ids == tokenizer.im_start)
    if len(turns) < 2:
        raise ValueError(f"the prompt has {len(turns)} turns; expected a system turn and a user turn")
    return int(turns[1])


def _of_pictures(ids: np.ndarray, visual: Bool[np.ndarray, "s"], tokenizer: Tokenizer) -> Bool[np.ndarray, "s"]:
    """Visual tokens, and the two tokens around those of each picture. A final `<img>` is not one of them."""
    first = (ids == tokenizer.img_start) & np.append(visual[1:], False)
    last = (ids == tokenizer.img_end) & np.append(False, visual[:-1])
    return visual | first | last


def context_runs(is_visual: Bool[np.ndarray, "t"], tokens_per_tile: int) -> Runs:
    """The stretches of a context, one for every tile.

    Parity: visual tokens of a tile that the context's length cuts through are numbered like text.
    """
    runs: Runs = []
    for start, stop, visual in _stretches(is_visual):
        whole = (stop - start) // tokens_per_tile if visual else 0
        runs += [(True, tokens_per_tile)] * whole
        rest = stop - start - whole * tokens_per_tile
        if rest and runs and not runs[-1][0]:
            runs[-1] = (False, runs[-1][1] + rest)
        elif rest:
            runs.append((False, rest))
    return runs


def _stretches(flags: np.ndarray) -> list[tuple[int, int, bool]]:
    """(start, stop, value) of every stretch of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(flags)) + 1), len(flags)]
    return [(int(a), int(b), bool(flags[a])) for a, b in itertools.pairwise(edges) if b > a]
