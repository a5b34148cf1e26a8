"""Micro-batches, as the training step takes them: numpy arrays on the host, all of one shape per kind of micro-batch.

Every array leads with b, the rows of the micro-batch, so that a batch is sharded by its first axis. Token rows are
padded on the right. Pictures are 8-bit; the model normalises them.

Axes: b rows, s tokens of a row, t context tokens, k tiles of a row, Y X rows and columns of a picture, y x those of its
latents, c channels, e context width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Leaf = Any
"""An array: of numpy on the host, of JAX within the step, or what a tree function puts in its place; or None."""


class TextBatch(NamedTuple):
    """Rows for the language model.

    ids: int32 [b, s].
    positions: int32 [b, s], of each token in its sample; packed samples each start at 0.
    segments: int32 [b, s], 1, 2, ... for the samples packed into a row and 0 for padding; None where a row is one.
    tiles: uint8 [b, k, p, q, 3], for the vision encoder; rows with fewer end in blank ones. None without pictures.
    visual_index: int32 [b, s], which visual token of the row's own tiles a position shows, -1 where it shows none.
    targets: int32 [b, s], the token that follows each position. weights: float32 [b, s], how much predicting it counts,
        0 in prompts and padding. Both None where nothing is to be predicted.
    """

    ids: Leaf
    positions: Leaf
    segments: Leaf = None
    tiles: Leaf = None
    visual_index: Leaf = None
    targets: Leaf = None
    weights: Leaf = None


class ImageBatch(NamedTuple):
    """What the head is trained to draw; row n is conditioned by row n of the text, or by `context`.

    target: uint8 [b, Y, X, 3], pixels, or float32 [b, y, x, c], normalised latents.
    context_lengths: int32 [b], tokens that condition each row.
    positions: float32 [b, n, 3], of the head's tokens (`Layout.positions`).
    weight: float32 [b], 1, or 0 for a row whose pictures could not be read.
    sources: as the target, of each source picture; all rows have all of them.
    context_index: int32 [b, t], which tokens of the text row condition the head; past `context_lengths` anything.
    context: float [b, t, e], hidden states in place of the text, where they were computed beforehand.
    """

    target: Leaf
    context_lengths: Leaf
    positions: Leaf
    weight: Leaf
    sources: tuple[Leaf, ...] = ()
    context_index: Leaf = None
    context: Leaf = None


class Batch(NamedTuple):
    """One micro-batch.

    index: int32 [b], numbers its rows within the whole step, over all devices, and keys random numbers.

    A batch of packed understanding samples has no picture; one whose conditions were computed beforehand has no text.
    """

    index: Leaf  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a batch
    text: TextBatch | None = None
    picture: ImageBatch | None = None
