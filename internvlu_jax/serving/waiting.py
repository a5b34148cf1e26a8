"""From the event loop to the worker's thread and back: waiting for jobs, as long as the client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request

from internvlu_jax.serving.errors import Refused
from internvlu_jax.serving.jobs import Event, Job
from internvlu_jax.serving.worker import Worker


class Left(Exception):
    """The client is gone."""


async def results(request: Request, worker: Worker, jobs: Sequence[Job], seconds: float) -> list[Any]:
    """What comes of jobs. Their places are free afterwards, however this ends.

    Raises:
        Refused: a job's, the queue's, or that the time is over.
        Left: the client is gone.
    """
    tickets = worker.submit(jobs)
    work: asyncio.Future[list[Any]] = asyncio.gather(*(asyncio.wrap_future(ticket.future) for ticket in tickets))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((work, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise Left if gone.done() else _late(seconds)
    finally:
        gone.cancel()
        worker.leave(tickets)
        if not work.done():
            work.cancel()


async def events(request: Request, worker: Worker, job: Job, seconds: float) -> AsyncGenerator[Any, None]:
    """What is reported of a job as it is done, and last its result. Errors are those of `results`."""
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[Any] = asyncio.Queue()
    until = loop.time() + seconds

    def report(event: Event) -> None:
        loop.call_soon_threadsafe(heard.put_nowait, event)

    tickets = worker.submit([job], report)
    work = asyncio.ensure_future(asyncio.wrap_future(tickets[0].future))
    gone = asyncio.ensure_future(_gone(request))
    try:
        while not (work.done() and heard.empty()):
            next_one = asyncio.ensure_future(heard.get())
            done, _ = await asyncio.wait(
                (next_one, gone, *(() if work.done() else (work,))),
                timeout=max(until - loop.time(), 0),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if next_one in done:
                yield next_one.result()
                continue
            next_one.cancel()
            if gone in done:
                raise Left
            if not done:
                raise _late(seconds)
        yield work.result()
    finally:
        gone.cancel()
        worker.leave(tickets)
        if not work.done():
            work.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _late(seconds: float) -> Refused:
    return Refused(504, f"this was not done within {seconds:g} s; try again later", code="timeout")
