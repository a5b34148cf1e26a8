"""Which examples form which batch: a deterministic walk over the mixed sources, the same on every host.

The example at position p is a function of the configuration, the seed and p alone: grain shuffles and repeats each
source and mixes them by weight, and a generator seeded by (seed, p) decides whether the prompt is dropped. Examples
wait in a queue for each kind (`examples.Kind`); a queue that is full becomes a batch. Understanding samples are packed
first fit, in order, into the rows of one batch; a sample that fits in none of them closes it.

The state is the next position and the positions that wait: restoring drafts these again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np

from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import PACKED, Draft, Drafter, Kind
from internvlu_jax.data.records import BrokenRecord
from internvlu_jax.data.sources import Source

log = logging.getLogger("internvlu_jax.data")
_ENOUGH = 20  # records after which the share of broken ones says something


class DataError(ValueError):
    """Too much of the data cannot be used, or none of it."""


@dataclass(frozen=True)
class Planned:
    """A batch to be: its kind and, row by row, its drafts."""

    kind: Kind
    rows: Sequence[Sequence[Draft]]


@dataclass
class Tally:
    """Records read and broken so far; complains, and gives up when too many are broken."""

    share: float
    total: int
    read: int = 0
    broken: int = 0
    seen: set[str] = field(default_factory=set)

    def bad(self, error: BrokenRecord) -> None:
        """Counts one of the records that were read as broken.

        Raises DataError once the share is exceeded, or when a whole pass held nothing that can be used.
        """
        self.broken += 1
        if error.where not in self.seen:
            self.seen.add(error.where)
            log.warning("skipped %s", error)
        whole_pass = self.broken == self.read and self.read >= self.total
        if whole_pass or (self.read >= _ENOUGH and self.broken > self.share * self.read):
            raise DataError(
                f"{self.broken} of the {self.read} records read so far cannot be used, and data.max_broken is "
                f"{self.share:g}; the last one is {error}"
            )


class Plan:
    """Iterator over `Planned`, without end.

    Raises:
        DataError: on the way, see `Tally.bad`.
    """

    def __init__(self, drafter: Drafter, sources: Sequence[Source], data: DataConfig, seed: int) -> None:
        self._drafter, self._sources, self._data, self._seed = drafter, sources, data, seed
        self._order = _order([len(source) for source in sources], data, seed)
        self._packed_rows = data.packed_rows or data.batch_size
        self._position = 0
        self._tally = Tally(data.max_broken, sum(len(source) for source in sources))
        self._queues: dict[Kind, list[tuple[int, Draft]]] = {}

    def __iter__(self) -> Plan:
        return self

    def __next__(self) -> Planned:
        while True:
            position = self._position
            self._position += 1
            draft = self._draft(position)
            ready = None if draft is None else self._add(position, draft)
            if ready is not None:
                return ready

    def state(self) -> dict[str, Any]:
        """What `restore` needs; JSON."""
        waiting = sorted(position for queue in self._queues.values() for position, _ in queue)
        return {
            "position": self._position, "waiting": waiting, "read": self._tally.read, "broken": self._tally.broken
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self._position, self._queues = state["position"], {}
        for position in state["waiting"]:
            draft = self._draft(position)
            if draft is not None:
                self._queues.setdefault(draft.kind, []).append((position, draft))
        self._tally.read, self._tally.broken = state["read"], state["broken"]

    def _draft(self, position: int) -> Draft | None:
        """The example at a position; None if its record is broken."""
        source, index = self._order[position]
        self._tally.read += 1
        try:
            record = self._sources[source][index]
            drop = self._drafter.choose_drop(record, np.random.default_rng((self._seed, position)))
            return self._drafter.draft(record, drop)
        except BrokenRecord as error:
            self._tally.bad(error)
            return None

    def _add(self, position: int, draft: Draft) -> Planned | None:
        """Puts an example into its queue; the batch that this completes, if it does."""
        queue = self._queues.setdefault(draft.kind, [])
        if draft.kind != PACKED:
            queue.append((position, draft))
            if len(queue) < self._data.batch_size:
                return None
            return Planned(draft.kind, [[d] for _, d in self._queues.pop(draft.kind)])
        rows = self._pack([d for _, d in queue])
        if _fits(rows, draft, self._data):
            queue.append((position, draft))
            return None
        self._queues[PACKED] = [(position, draft)]
        return Planned(PACKED, rows)

    def _pack(self, drafts: Sequence[Draft]) -> list[list[Draft]]:
        """First fit, in order."""
        rows: list[list[Draft]] = [[] for _ in range(self._packed_rows)]
        for draft in drafts:
            _fits(rows, draft, self._data, add=True)
        return rows


def _fits(rows: list[list[Draft]], draft: Draft, data: DataConfig, add: bool = False) -> bool:
    """Whether a row has room; with `add` the first that has takes it."""
    for row in rows:
        tokens, tiles = sum(len(d.ids) for d in row), sum(d.tiles for d in row)
        if tokens + len(draft.ids) <= data.pack_length and tiles + draft.tiles <= data.pack_tiles:
            if add:
                row.append(draft)
            return True
    return False


def _order(sizes: Sequence[int], data: DataConfig, seed: int) -> Any:
    """position -> (source, record), by grain."""
    datasets = []
    for number, size in enumerate(sizes):
        numbered = grain.MapDataset.range(size).map(lambda index, n=number: (n, int(index)))
        if data.shuffle:
            numbered = numbered.shuffle(seed=seed + number)
        datasets.append(numbered.repeat())
    return grain.MapDataset.mix(datasets, [weight for _, weight in data.sources])
