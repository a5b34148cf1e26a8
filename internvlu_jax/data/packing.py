"""Understanding samples packed into the rows of one batch."""

from __future__ import annotations

from internvlu_jax.data.examples import Draft


class Packer:
    """Rows that are filled first fit, in the order of the samples, so that the same samples always give the same rows.

    rows: of the batch. tokens, tiles: that one row holds.
    """

    def __init__(self, rows: int, tokens: int, tiles: int) -> None:
        self.rows: list[list[Draft]] = [[] for _ in range(rows)]
        self._room = [(tokens, tiles)] * rows

    def add(self, draft: Draft) -> bool:
        """Puts a sample into the first row that has room; False if none has."""
        for n, (tokens, tiles) in enumerate(self._room):
            if len(draft.ids) <= tokens and draft.tiles <= tiles:
                self.rows[n].append(draft)
                self._room[n] = tokens - len(draft.ids), tiles - draft.tiles
                return True
        return False
