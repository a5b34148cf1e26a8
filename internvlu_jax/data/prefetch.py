"""Steps made ahead by a thread, and taken one by one: what every loader is, wherever it makes them."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from typing import Any, TypeVar

from internvlu_jax.data.batch import Batch

_Ahead = TypeVar("_Ahead", bound="Prefetcher")  # beartype checks no typing.Self of methods alone


class Prefetcher(ABC):
    """Iterator over the steps that `_work` puts, without end. A context manager: leaving it ends the thread.

    Args:
        prefetch: steps that may wait.
        state: of the data before the first step.
    """

    def __init__(self, prefetch: int, state: dict[str, Any]) -> None:
        self._state = state
        self._ready: queue.Queue[Any] = queue.Queue(prefetch)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self: _Ahead) -> _Ahead:
        return self

    def __next__(self) -> tuple[Batch, ...]:
        if self._stop.is_set():
            raise RuntimeError("the loader is closed")
        if self._thread is None:
            self._start()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # for whoever asks again
            raise item
        batches, self._state = item
        return batches

    def state(self) -> dict[str, Any]:
        """Where the last step that was taken leaves the data; JSON, the same on every host."""
        return self._state

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; before the first step is taken. Raises DataError if the data are others."""
        if self._thread is not None:
            raise RuntimeError("restore comes before the first step is taken")
        self._state = state

    def __enter__(self: _Ahead) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:  # noqa: B027 -- most have nothing to do here
        """Before the thread begins."""

    @abstractmethod
    def _work(self) -> None:
        """In the thread: puts (step, state after it) until `_stop` is set."""

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # it belongs to the thread that asks for batches
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
