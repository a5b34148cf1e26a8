"""Batches for a run, made ahead in the background; resumes exactly where the last one was taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from typing import Any

import numpy as np

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.data.batch import Batch
from internvlu_jax.data.collate import Collator
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import DataError, ExampleBuilder
from internvlu_jax.data.plan import Plan, Planned
from internvlu_jax.data.prefetch import Prefetcher
from internvlu_jax.data.sources import Source, open_source
from internvlu_jax.data.tally import Tally
from internvlu_jax.processing.tokenizer import Tokenizer

Rows = Callable[[int], Sequence[int]]
"""From the rows of a micro-batch to those of them that this process has to fill."""


def check_named(data: DataConfig) -> None:
    """Raises DataError where no source is named."""
    if not data.sources:
        raise DataError("data.sources is empty; expected one source of records at least, such as t2i.jsonl")


class Loader(Prefetcher):
    """Iterator over steps of `accumulate` micro-batches, without end. A context manager: leaving it ends its threads.

    Micro-batches of a step come in an order of their shapes, and `Batch.index` numbers all their rows.
    """

    def __init__(
        self,
        cfg: InternVLUConfig,
        tokenizer: Tokenizer,
        data: DataConfig,
        *,
        seed: int,
        accumulate: int = 1,
        rows: Rows | None = None,
        sources: Sequence[Source] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """`rows`: None fills all. `sources`: records to use in place of those that `data.sources` names. `share`: which
        of how many loaders side by side this one is (`workers`).

        Raises:
            DataError, ValueError: there is no data, or it does not fit the model.
        """
        check_named(data)
        opened = (
            [open_source(path, data.allow_outside) for path, _ in data.sources] if sources is None else list(sources)
        )
        self._accumulate = accumulate
        self._rows: Rows = range if rows is None else rows
        self._plan = Plan(ExampleBuilder(cfg, tokenizer, data), opened, data, seed, share)
        self._unreadable = Tally(data.max_broken, [len(source) for source in opened], [w for _, w in data.sources])
        self._pool = ThreadPoolExecutor(data.threads)
        self._collator = Collator(cfg, tokenizer, data, self._pool, self._unreadable.bad)
        super().__init__(data.prefetch, self._plan.state())

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._plan.restore(state)

    def close(self) -> None:
        """Ends the threads."""
        super().close()
        self._pool.shutdown()

    def _work(self) -> None:
        while not self._stop.is_set():
            self._put((self._step(), self._plan.state()))

    def _step(self) -> tuple[Batch, ...]:
        planned = sorted((next(self._plan) for _ in range(self._accumulate)), key=lambda p: repr(astuple(p.kind)))
        first = np.cumsum([0, *(len(p.rows) for p in planned)])
        return tuple(self._batch(p, int(start)) for p, start in zip(planned, first, strict=False))

    def _batch(self, planned: Planned, first: int) -> Batch:
        own = np.asarray(self._rows(len(planned.rows)), np.int32)
        rows = [planned.rows[r] for r in own.tolist()]
        self._unreadable.read += sum(map(len, rows))
        batch = self._collator.batch(planned.kind, rows, own + first)
        self._unreadable.settle()
        return batch
