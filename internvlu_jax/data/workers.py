"""Batches made by several processes: where records cost more time than their step, as drawn ones do on a GPU.

Worker w of n is a `Loader` of its own over the examples w, w + n, w + 2n, ... of each source, mixed by the weights as
all of them would be, and makes the steps w, w + n, ...: the order of the steps is fixed, whichever worker is the
quickest, and the state is that of all of them.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import pickle
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import jax

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import DataError
from internvlu_jax.data.loader import Loader, Rows
from internvlu_jax.data.plan import check_records
from internvlu_jax.data.prefetch import Prefetcher
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.utils.signals import children_spared

log = logging.getLogger("internvlu_jax.data")
_WAITING = 2  # steps that are received ahead, besides those that the workers hold


@dataclass(frozen=True)
class _Job:
    """All that a worker needs, as it can be sent to another process."""

    cfg: InternVLUConfig
    tokenizer: Tokenizer
    data: DataConfig
    seed: int
    accumulate: int
    rows: dict[int, list[int]]
    share: tuple[int, int]
    state: dict[str, Any]


class WorkerLoader(Prefetcher):
    """As `Loader`, made by `data.workers` processes. A context manager: leaving it ends them."""

    def __init__(
        self,
        cfg: InternVLUConfig,
        tokenizer: Tokenizer,
        data: DataConfig,
        *,
        seed: int,
        accumulate: int = 1,
        rows: Rows | None = None,
    ) -> None:
        """Raises DataError or ValueError, before any process is started, where a `Loader` does."""
        with Loader(cfg, tokenizer, data, seed=seed, accumulate=accumulate, rows=rows) as first:
            start = first.state()
        own = {n: list((rows or range)(n)) for n in {data.batch_size, data.packed_rows or data.batch_size}}
        states = [{**start, "position": w} for w in range(data.workers)]
        super().__init__(_WAITING, _state(0, states))
        self._mixed = len(data.sources) > 1
        self._check = partial(check_records, data, records=start["records"])
        self._job = partial(_Job, cfg, tokenizer, data, seed, accumulate, own)
        self._workers: list[tuple[Any, Connection]] = []

    def restore(self, state: dict[str, Any]) -> None:
        for worker in state["workers"]:
            self._check(worker)
        if "shared" not in state and len(state["workers"]) > 1 and self._mixed:
            log.warning(
                "the run was last saved by an earlier version, whose workers had some sources more often than their "
                "weights say and others less or never. From here on each has them by their weights: the examples come "
                "in another order than they would have"
            )
        super().restore(_state(state["next"], state["workers"]))

    def close(self) -> None:
        """Ends the processes."""
        super().close()
        atexit.unregister(self.close)
        for process, pipe in self._workers:
            pipe.close()
            process.kill()  # SIGTERM, which multiprocessing would send, is left to the run
            process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads half alive
        states = self._state["workers"]
        atexit.register(self.close)
        for w, state in enumerate(states):
            ours, theirs = context.Pipe(duplex=False)
            job = self._job(share=(w, len(states)), state=state)
            process = context.Process(target=_work, args=(job, theirs), daemon=True)
            with children_spared():  # which are the run's own
                process.start()
            theirs.close()  # so that the end of the worker is the end of the pipe
            self._workers.append((process, ours))

    def _work(self) -> None:
        """Takes the steps from the workers in turn."""
        number, states = self._state["next"], list(self._state["workers"])
        while (item := self._received(number)) is not None:
            batches, states[number] = item
            number = (number + 1) % len(states)
            self._put((batches, _state(number, list(states))))

    def _received(self, number: int) -> Any:
        """The next step of a worker and the state after it; None when the loader is closed.

        Raises DataError where the worker is gone, as of bad data: the run saves what it has done.
        """
        process, pipe = self._workers[number]
        try:
            while not pipe.poll(0.1):
                if self._stop.is_set():
                    return None
            item = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            process.join()
            raise DataError(
                f"data worker {number} ended with exit code {process.exitcode}; the same command goes on. Where -9 was "
                "for memory, lower data.prefetch or data.threads"
            ) from None
        if isinstance(item, BaseException):
            raise item
        return None if self._stop.is_set() else item


def _state(number: int, workers: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all workers; `number` makes the next step. What is shared out is said since it was the mixture once."""
    return {"next": number, "workers": workers, "shared": "sources"}


def _work(job: _Job, pipe: Connection) -> None:
    """What a worker does: sends (step, state after it) until nobody listens, or the error that ends it."""
    jax.config.update("jax_platforms", "cpu")  # accelerators are the run's own
    try:
        with Loader(
            job.cfg, job.tokenizer, job.data, seed=job.seed, accumulate=job.accumulate, rows=job.rows.__getitem__,
            share=job.share,
        ) as loader:  # fmt: skip
            loader.restore(job.state)
            for batches in loader:
                pipe.send_bytes(pickle.dumps((batches, loader.state()), protocol=5))
    except (BrokenPipeError, ConnectionResetError):
        pass
    except Exception as error:
        pipe.send_bytes(pickle.dumps(_sendable(error)))


def _sendable(error: Exception) -> Exception:
    """The error, or its message where it cannot go to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an error carries may refuse to be copied, each in its own way
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
