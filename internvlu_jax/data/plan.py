"""Which examples form which batch: a deterministic walk over the mixed sources, the same on every host.

The example at position p is a function of the configuration, the seed and p alone: grain shuffles and repeats each
source and mixes them by weight, and a generator seeded by (seed, p) decides whether the prompt is dropped. Examples
wait in a queue for each kind (`examples.Kind`); a queue that is full becomes a batch. Understanding samples are packed
first fit, in order, into the rows of one batch; a sample that fits in none of them closes it.

The state is the next position and the positions that wait: restoring drafts these again. It has the fingerprints of the
sources besides, because among other records a position is another example, and nobody would notice.

Of several plans side by side (`share`) each takes every n-th position, and every n-th example of each source: sources
are shared out before they are mixed. Every n-th example of the mixture would be of the same few sources for ever, since
the mixture repeats with the period of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grain
import numpy as np

from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import PACKED, DataError, Draft, ExampleBuilder, Kind
from internvlu_jax.data.packing import Packer
from internvlu_jax.data.records import BrokenRecord
from internvlu_jax.data.sources import Source, fingerprint
from internvlu_jax.data.tally import Tally

_SEEDS = 2**32  # of grain


@dataclass(frozen=True)
class Planned:
    """A batch to be: its kind, which now says whether packed samples need tiles, and the drafts of each row."""

    kind: Kind
    rows: Sequence[Sequence[Draft]]


class Plan:
    """Iterator over `Planned`, without end.

    Args:
        share: (which, of how many) plans that share out the records of every source this one is.

    Raises:
        ValueError: the seed is not one.
        DataError: on the way, see `Tally.bad`.
    """

    def __init__(
        self,
        builder: ExampleBuilder,
        sources: Sequence[Source],
        data: DataConfig,
        seed: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if not 0 <= seed < _SEEDS:
            raise ValueError(f"seed is {seed}; expected a whole number from 0 to {_SEEDS - 1}")
        self._builder, self._sources, self._data, self._seed = builder, sources, data, seed
        self._order = _order([len(source) for source in sources], data, seed, share)
        self._position, self._stride = share
        self._tally = Tally(data.max_broken, [len(source) for source in sources], [w for _, w in data.sources])
        self._records = [fingerprint(source) for source in sources]
        self._queues: dict[Kind, list[tuple[int, Draft]]] = {}
        self._packer = self._new_packer()

    def __iter__(self) -> Plan:
        return self

    def __next__(self) -> Planned:
        while True:
            position = self._position
            self._position += self._stride
            draft = self._draft(position)
            ready = None if draft is None else self._add(position, draft)
            if ready is not None:
                return ready

    def state(self) -> dict[str, Any]:
        """What `restore` needs; JSON."""
        waiting = sorted(position for queue in self._queues.values() for position, _ in queue)
        return {
            "position": self._position, "waiting": waiting, "records": self._records,
            "read": self._tally.read, "broken": list(self._tally.broken),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken. Raises DataError if it was taken of other records."""
        check_records(self._data, state, self._records)
        self._position, self._queues, self._packer = state["position"], {}, self._new_packer()
        for position in state["waiting"]:
            draft = self._draft(position)
            if draft is not None:
                self._add(position, draft)
        broken = state["broken"]  # a number in runs of before
        self._tally.restore(state["read"], broken if isinstance(broken, list) else [])

    def _new_packer(self) -> Packer:
        data = self._data
        return Packer(data.packed_rows or data.batch_size, data.pack_length, data.pack_tiles)

    def _draft(self, position: int) -> Draft | None:
        """The example at a position; None if its record is broken."""
        source, index = self._order[position // self._stride]
        self._tally.read += 1
        read = partial(self._sources[source].__getitem__, index)
        try:
            record = read()
            branch = self._builder.choose_branch(record, np.random.default_rng((self._seed, position)))
            return self._builder.draft(record, branch, read)
        except BrokenRecord as error:
            self._tally.bad(error)
            return None
        finally:
            self._tally.settle()

    def _add(self, position: int, draft: Draft) -> Planned | None:
        """Puts an example into its queue; the batch that this completes, if it does."""
        if draft.kind == PACKED:
            return self._add_packed(position, draft)
        queue = self._queues.setdefault(draft.kind, [])
        queue.append((position, draft))
        if len(queue) < self._data.batch_size:
            return None
        return Planned(draft.kind, [[d] for _, d in self._queues.pop(draft.kind)])

    def _add_packed(self, position: int, draft: Draft) -> Planned | None:
        if self._packer.add(draft):
            self._queues.setdefault(PACKED, []).append((position, draft))
            return None
        rows, self._packer = self._packer.rows, self._new_packer()
        self._packer.add(draft)
        self._queues[PACKED] = [(position, draft)]
        pictures = any(d.tiles for row in rows for d in row)
        return Planned(replace(PACKED, tiles=self._data.pack_tiles if pictures else 0), rows)


def check_records(data: DataConfig, state: dict[str, Any], records: list[list[int | str]]) -> None:
    """Raises DataError if sources are not those that a state was taken of; one of before has no fingerprints."""
    for (name, _), (count, digest), (now, new) in zip(
        data.sources, state.get("records", records), records, strict=False
    ):
        if count == now and digest == new:
            continue
        how = f"had {count} records and has {now} now" if count != now else f"had {count} other records"
        raise DataError(
            f"{name}: when the run last saved it {how}. Put back what was there, or begin another run from this one "
            "with --start"
        )


def _order(sizes: Sequence[int], data: DataConfig, seed: int, share: tuple[int, int]) -> Any:
    """n -> (source, record) of the n-th example of one of the plans that share the records, by grain."""
    which, count = share
    datasets = []
    for number, size in enumerate(sizes):
        numbered = grain.MapDataset.range(size).map(lambda index, n=number: (n, int(index)))
        if data.shuffle:
            numbered = numbered.shuffle(seed=(seed + number) % _SEEDS)
        datasets.append(numbered.repeat()[which::count])
    return grain.MapDataset.mix(datasets, [weight for _, weight in data.sources])
