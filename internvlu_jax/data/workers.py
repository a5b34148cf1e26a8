"""Batches made by several processes: where records cost more time than their step, as drawn ones do on a GPU.

Worker w of n is a `Loader` of its own over the positions w, w + n, w + 2n, ... of the data, and makes the steps w,
w + n, ...: the order of the steps is fixed, whichever worker is the quickest, and the state is that of all of them.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import threading
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import jax

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.data.batch import Batch
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.loader import Loader, Rows
from internvlu_jax.processing.tokenizer import Tokenizer


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
    state: dict[str, Any] | None


class WorkerLoader:
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
        shares = [(w, data.workers) for w in range(data.workers)]
        self._jobs = [_Job(cfg, tokenizer, data, seed, accumulate, own, share, None) for share in shares]
        self._state: dict[str, Any] = {"next": 0, "workers": [{**start, "position": w} for w, _ in shares]}
        self._ready: queue.Queue[Any] = queue.Queue(2)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._workers: list[tuple[Any, Connection]] = []

    def __iter__(self) -> WorkerLoader:
        return self

    def __next__(self) -> tuple[Batch, ...]:
        if self._stop.is_set():
            raise RuntimeError("the loader is closed")
        if self._thread is None:
            self._start()
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # for whoever asks again
            raise item
        batches, state = item
        number, states = self._state["next"], list(self._state["workers"])
        states[number] = state
        self._state = {"next": (number + 1) % len(states), "workers": states}
        return batches

    def state(self) -> dict[str, Any]:
        """Where the last step that was taken leaves the data; JSON, the same on every host."""
        return self._state

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; before the first step is taken."""
        if self._thread is not None:
            raise RuntimeError("restore comes before the first step is taken")
        self._state = state

    def __enter__(self) -> WorkerLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for process, pipe in self._workers:
            pipe.close()  # which the worker sees when it next sends
            process.terminate()
            process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads half alive
        for job, state in zip(self._jobs, self._state["workers"], strict=True):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(replace(job, state=state), theirs), daemon=True)
            process.start()
            theirs.close()  # so that the end of the worker is the end of the pipe
            self._workers.append((process, ours))
        self._thread = threading.Thread(target=self._receive, args=(self._state["next"],), daemon=True)
        self._thread.start()

    def _receive(self, number: int) -> None:
        """Takes the steps from the workers in turn."""
        while not self._stop.is_set():
            process, pipe = self._workers[number]
            try:
                while not pipe.poll(0.1):
                    if self._stop.is_set():
                        return
                item = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                process.join()
                item = RuntimeError(f"data worker {number} ended with exit code {process.exitcode}")
            self._put(item)
            if isinstance(item, BaseException):
                return
            number = (number + 1) % len(self._workers)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue


def _work(job: _Job, pipe: Connection) -> None:
    """What a worker does: sends (step, state after it) until nobody listens, or the error that ends it."""
    jax.config.update("jax_platforms", "cpu")  # accelerators are the run's own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends its workers itself
    try:
        with Loader(
            job.cfg, job.tokenizer, job.data, seed=job.seed, accumulate=job.accumulate, rows=job.rows.__getitem__,
            share=job.share,
        ) as loader:  # fmt: skip
            if job.state is not None:
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
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
