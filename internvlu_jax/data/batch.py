"""Micro-batches, as the training step takes them: numpy arrays on the host, all of one shape per kind of micro-batch.

Every array leads with b, the rows of the micro-batch, so that a batch is sharded by its first axis. Token rows are
padded on the right. Pictures are 8-bit and are normalised on the device.

Axes: b rows, s tokens of a row, t context tokens, k tiles of a row, Y X rows and columns of a picture, y x those of its
latents, c channels, e context width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8


class Text(NamedTuple):
    """Rows for the language model.

    positions: of each token in its sample; packed samples each start at 0.
    segments: 1, 2, ... for the samples packed into a row and 0 for padding; None where a row is one sample.
    tiles: pixels for the vision encoder; rows with fewer end in blank ones. None where no row has a picture.
    visual_index: which visual token of the row's own tiles a position shows, -1 where it shows none.
    targets: the token that follows each position; weights: how much predicting it counts, 0 in prompts and padding.
        Both None where nothing is to be predicted.
    """

    ids: Int32[np.ndarray, "b s"]
    positions: Int32[np.ndarray, "b s"]
    segments: Int32[np.ndarray, "b s"] | None = None
    tiles: UInt8[np.ndarray, "b k p q 3"] | None = None
    visual_index: Int32[np.ndarray, "b s"] | None = None
    targets: Int32[np.ndarray, "b s"] | None = None
    weights: Float32[np.ndarray, "b s"] | None = None


class Picture(NamedTuple):
    """What the head is trained to draw; row n is conditioned by row n of the text, or by `context`.

    target: 8-bit pixels [b, Y, X, 3], or normalised latents [b, y, x, c], float32.
    sources: of each source picture the same; all rows have all of them.
    context_index: which tokens of the text row condition the head; past `context_lengths` anything.
    context: hidden states [b, t, e] in place of the text, where they were computed beforehand.
    positions: of the head's tokens, see `ops.msrope`: noisy latents, sources, context.
    weight: 1, or 0 for a row whose pictures could not be read.
    """

    target: np.ndarray
    context_lengths: Int32[np.ndarray, "b"]
    positions: Float32[np.ndarray, "b n 3"]
    weight: Float32[np.ndarray, "b"]
    sources: tuple[np.ndarray, ...] = ()
    context_index: Int32[np.ndarray, "b t"] | None = None
    context: np.ndarray | None = None


class Batch(NamedTuple):
    """One micro-batch. `index` numbers its rows within the whole step, over all devices, and keys random numbers.

    A batch of packed understanding samples has no picture; one whose conditions were computed beforehand has no text.
    """

    index: Int32[np.ndarray, "b"]
    text: Text | None = None
    picture: Picture | None = None
