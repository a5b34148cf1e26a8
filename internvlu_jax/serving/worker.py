"""The one thread that owns the pipeline, and the queue before it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from internvlu_jax.serving.errors import Refused, refusal
from internvlu_jax.serving.jobs import Call, Event, Job
from internvlu_jax.serving.running import Abandoned, Report, run

# Seconds without a newcomer after which those that wait are taken, and the most that newcomers can put this off.
_QUIET, _LONGEST = 0.02, 0.3

_PIXELS = 256_000_000  # of all pictures that wait: 768 MB

Runner = Callable[[Any, Sequence[Job], Report], Sequence[Any]]


@dataclass(eq=False)
class Ticket:
    """A job's place. report: hears what is under way, in the worker's thread. gone: nobody waits for it any more."""

    job: Job
    report: Report
    future: Future[Any] = field(default_factory=Future)
    gone: bool = False


class Worker:
    """Does jobs in the order of their coming; those that wait and are of one kind go together.

    They go in numbers that are powers of two, so that few programs are compiled: seven are four, two and one.

    Args:
        pipe: nobody else may call it.
        finished: told after every call: how many jobs it was of, and its seconds.
    """

    def __init__(
        self,
        pipe: Any,
        max_queue: int,
        max_batch: int,
        finished: Callable[[int, float], None] = lambda jobs, seconds: None,
        runner: Runner = run,
    ) -> None:
        self._pipe, self._runner, self._finished = pipe, runner, finished
        self._max_queue, self._max_batch = max_queue, max_batch
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._arrived = 0
        self._closed = False
        self._each = 1.0  # seconds that a job takes, about
        self._thread = threading.Thread(target=self._work, name="pipeline", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether jobs are being done."""
        return self._thread.is_alive() and not self._closed

    def check_room(self, more: Sequence[Job] = ()) -> None:
        """Raises Refused, with the seconds after which to come again, if these, or any at all, cannot wait too."""
        if self._closed:
            raise Refused(503, "the server is being stopped")
        pixels = sum(_pixels(ticket.job) for ticket in self._waiting) if more else 0
        full = pixels + sum(map(_pixels, more)) > _PIXELS and self._waiting
        if full or len(self._waiting) + max(len(more), 1) > self._max_queue:
            wait = max(1, math.ceil(self._each * len(self._waiting)))
            raise Refused(
                429, f"the queue is full ({len(self._waiting)} of {self._max_queue} places); try again in {wait} s",
                code="queue_full", retry_after=wait,
            )  # fmt: skip

    def submit(self, jobs: Sequence[Job], report: Report = lambda event: None) -> list[Ticket]:
        """Places for all jobs, or for none.

        Raises:
            Refused: see `check_room`.
        """
        tickets = [Ticket(job, report) for job in jobs]
        with self._changed:
            self.check_room(jobs)
            self._waiting.extend(tickets)
            self._arrived += 1
            self._changed.notify_all()
        return tickets

    def leave(self, tickets: Sequence[Ticket]) -> None:
        """Frees places: what waits is dropped, what is under way ends once all that it is for have left."""
        with self._changed:
            for ticket in tickets:
                ticket.gone = True
                ticket.future.cancel()
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.gone)

    def close(self) -> None:
        """Drops what waits, and ends the thread after what it is doing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.leave(list(self._waiting))
        self._thread.join()

    def _work(self) -> None:
        while not self._closed:
            batch = self._next()
            if batch:
                before = time.monotonic()
                self._do(batch)
                seconds = time.monotonic() - before
                self._each += 0.2 * (seconds / len(batch) - self._each)
                self._finished(len(batch), seconds)

    def _next(self) -> list[Ticket]:
        """Those that go together with the one that has waited longest; none if that has left, or at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            latest = time.monotonic() + _LONGEST
            seen = -1
            while seen != self._arrived and len(self._waiting) < self._max_batch and time.monotonic() < latest:
                seen = self._arrived
                self._changed.wait(_QUIET)
            if not self._waiting or self._closed:
                return []
            kind = self._waiting[0].job.kind
            fitting = [self._waiting[0]] if kind is None else [t for t in self._waiting if t.job.kind == kind]
            count = min(len(fitting), self._max_batch)
            taken = fitting[: 1 << (count.bit_length() - 1)]
            self._waiting = deque(ticket for ticket in self._waiting if ticket not in taken)
            return [ticket for ticket in taken if ticket.future.set_running_or_notify_cancel()]

    def _do(self, batch: Sequence[Ticket]) -> None:
        def report(event: Event) -> None:
            if all(ticket.gone for ticket in batch):
                raise Abandoned
            for ticket in batch:
                ticket.report(event)

        try:
            results = self._runner(self._pipe, [ticket.job for ticket in batch], report)
        except Abandoned as error:
            for ticket in batch:
                ticket.future.set_exception(error)
        except Exception as error:  # whatever it is, the thread lives on, and those whom it concerns are told
            if len(batch) == 1:
                batch[0].future.set_exception(refusal(error))
            else:  # one may have spoilt it for all
                for ticket in batch:
                    self._do([ticket])
        else:
            for ticket, result in zip(batch, results, strict=True):
                ticket.future.set_result(result)


def _pixels(job: Job) -> int:
    """Of the pictures that a job brings."""
    if isinstance(job, Call):
        return sum(picture.width * picture.height for picture in job.pictures)
    parts = (part for message in job.messages for part in message["content"])
    return sum(part["image"].width * part["image"].height for part in parts if part["type"] == "image")
