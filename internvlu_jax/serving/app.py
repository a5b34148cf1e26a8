"""The endpoints, as a FastAPI application."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import anyio
from fastapi import FastAPI
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Match, Route

from internvlu_jax.serving import answers
from internvlu_jax.serving.errors import Refused, refusal
from internvlu_jax.serving.fields import json_object
from internvlu_jax.serving.guard import Guard
from internvlu_jax.serving.jobs import Answer, Call
from internvlu_jax.serving.limits import Limits
from internvlu_jax.serving.metrics import Metrics
from internvlu_jax.serving.pictures import from_bytes
from internvlu_jax.serving.requests import (
    MOST_PICTURES,
    ChatRequest,
    DrawingRequest,
    chat_request,
    check_model,
    drawing_request,
)
from internvlu_jax.serving.waiting import Left, events, results
from internvlu_jax.serving.worker import Worker

Handler = Callable[[Request], Awaitable[Response]]
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_READERS = 2  # requests whose pictures are read or written at once
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_JSON, _FORM = "application/json", "multipart/form-data"


class Endpoints:
    """What answers requests.

    Args:
        checked: the number of tokens of a call's prompt; raises ValueError where the pipeline would refuse it.
    """

    def __init__(self, worker: Worker, limits: Limits, metrics: Metrics, checked: Callable[[Call], int]) -> None:
        self._worker, self._limits, self._metrics, self._checked = worker, limits, metrics, checked
        self._readers = anyio.CapacityLimiter(_READERS)

    def routes(self) -> list[BaseRoute]:
        """All of them."""
        known: list[BaseRoute] = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/images/generations", self._generate, methods=["POST"]),
            Route("/v1/images/edits", self._edit, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._count, methods=["GET"]),
        ]
        # Else the page, which takes all paths that no route has, would answer in words of its own.
        return [*known, Route("/v1/{path:path}", partial(_nowhere, known), methods=_METHODS)]

    async def _chat(self, request: Request) -> Response:
        given = json_object(await self._body(request, _JSON))

        def read() -> tuple[ChatRequest, int]:
            asked = chat_request(given, self._max_pixels)
            return asked, self._checked(asked.job) if isinstance(asked.job, Call) else 0

        asked, tokens = await self._aside(read)
        if asked.stream:
            return await self._streamed(request, asked)
        (answer,) = await results(request, self._worker, [asked.job], self._limits.max_seconds)
        return JSONResponse(answers.completion(answer, answer.read or tokens))

    async def _streamed(self, request: Request, asked: ChatRequest) -> Response:
        """What fails before the first piece is answered with a status, as without a stream."""
        heard = events(request, self._worker, asked.job, self._limits.max_seconds)
        first = await anext(heard)
        chunks = answers.Chunks(asked.usage)

        async def body() -> AsyncIterator[bytes]:
            yield chunks.first()
            try:
                piece = first
                while not isinstance(piece, Answer):
                    yield chunks.piece(piece)
                    piece = await anext(heard)
                yield chunks.last(piece)
            except Left:
                return
            except Refused as refused:
                yield answers.event(refused.body())
            finally:
                await heard.aclose()

        return StreamingResponse(body(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _generate(self, request: Request) -> Response:
        given = json_object(await self._body(request, _JSON))
        return await self._drawn(request, given, lambda: [])

    async def _edit(self, request: Request) -> Response:
        await self._body(request, _FORM)
        async with request.form(max_files=MOST_PICTURES, max_fields=40) as form:
            sent = [value for name in ("image", "image[]") for value in form.getlist(name)]
            files = [await value.read() for value in sent if isinstance(value, UploadFile)]
            given = {name: value for name, value in form.multi_items() if name not in ("image", "image[]")}
        if not files:
            raise Refused(400, "image is missing; expected at least one picture's file", param="image")
        return await self._drawn(
            request, given, lambda: [from_bytes(data, "image", self._max_pixels) for data in files]
        )

    async def _drawn(self, request: Request, given: Any, sources: Callable[[], list[Image.Image]]) -> Response:
        def read() -> DrawingRequest:
            asked = drawing_request(given, sources())
            self._checked(asked.calls[0])
            return asked

        asked = await self._aside(read)
        drawn = await results(request, self._worker, asked.calls, self._limits.max_seconds)
        return JSONResponse(await self._aside(lambda: answers.pictures(drawn, asked.kind)))

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [answers.model()]})

    async def _model(self, request: Request) -> Response:
        check_model(request.path_params["name"])
        return JSONResponse(answers.model())

    async def _health(self, request: Request) -> Response:
        alive = self._worker.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    async def _count(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=self._metrics.content_type)

    @property
    def _max_pixels(self) -> int:
        return self._limits.max_pixels * 1_000_000

    async def _body(self, request: Request, kind: str) -> bytes:
        """The body, of this kind: another would let pages of other sites ask."""
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given != kind:
            raise Refused(415, f"Content-Type is {given[:60]!r}; expected {kind}")
        self._worker.check_room()
        return await request.body() if kind == _JSON else b""

    async def _aside(self, work: Callable[[], Any]) -> Any:
        """In a thread, for pictures take their time."""
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._readers)
        except ValueError as error:
            raise refusal(error) from error


def make_app(
    worker: Worker,
    metrics: Metrics,
    limits: Limits,
    checked: Callable[[Call], int],
    *,
    key: str | None = None,
    local: str | None = "127.0.0.1",
    uploads: str = os.devnull,
) -> FastAPI:
    """The application.

    Args:
        key: that clients need; None: none.
        uploads: the folder of what is put into the page.
        local: the address by which only this machine reaches it; then that and this machine's names alone are
            answered to. None: others reach it.
    """
    guard: list[Any] = [Middleware(Guard, key=key, max_body=limits.max_body << 20, metrics=metrics, uploads=uploads)]
    if local is not None:
        names = [*_LOCAL, f"[{local}]" if ":" in local else local]
        guard.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False))
    metrics.watch(lambda: worker.waiting)
    return FastAPI(
        routes=Endpoints(worker, limits, metrics, checked).routes(),
        middleware=guard,
        exception_handlers={Refused: _refused, Left: _left, HTTPException: _http},
        openapi_url=None,
    )


async def _nowhere(known: Sequence[BaseRoute], request: Request) -> Response:
    """A path that is none of the known routes', or a method that is none of its route's."""
    raise HTTPException(405 if any(route.matches(request.scope)[0] is Match.PARTIAL for route in known) else 404)


async def _refused(request: Request, error: Refused) -> Response:
    return JSONResponse(error.body(), error.status, headers=error.headers())


async def _left(request: Request, error: Left) -> Response:
    """Nobody reads it."""
    return Response(status_code=499)


async def _http(request: Request, error: HTTPException) -> Response:
    """Of Starlette's own: a path or method that is not there, a form that is broken or holds too much."""
    said = {404: "there is no such endpoint", 405: "this endpoint has another method"}
    message = said.get(error.status_code, f"the request is broken: {error.detail}")
    return JSONResponse(Refused(error.status_code, message).body(), error.status_code, headers=error.headers)
