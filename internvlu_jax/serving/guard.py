"""Before any endpoint: who may ask, from which page, how large a request may be, and what the page reads."""

from __future__ import annotations

import hmac
import json
import os
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from internvlu_jax.serving.errors import Refused, unexpected
from internvlu_jax.serving.metrics import Metrics

ENDPOINTS = (
    "/v1/chat/completions", "/v1/images/generations", "/v1/images/edits", "/v1/models", "/health", "/metrics",
)  # fmt: skip
_OPEN = ("/health",)
_PAGE, _UPLOAD = "/gradio_api/", "/gradio_api/upload"
_HELD = 8  # bodies of the largest size that are held at once, all requests together
# A client hears an answer only once it has sent all; so much of a body that is too large is read and dropped.
_DROPPED = 4


class _Left(Exception):
    """The client is gone before it has sent all."""


class Guard:
    """ASGI middleware of the endpoints, and of what the page's own say; its files pass by.

    Args:
        key: clients send it as a bearer token; None lets everybody in.
        max_body: bytes.
        uploads: a folder; the page reads no file from elsewhere.
    """

    def __init__(self, app: ASGIApp, key: str | None, max_body: int, metrics: Metrics, uploads: str) -> None:
        self._app, self._key, self._max_body, self._metrics = app, key, max_body, metrics
        self._held, self._uploads = 0, os.path.realpath(uploads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        of_page = scope.get("method") == "POST" and path.startswith(_PAGE) and not path.startswith(_UPLOAD)
        if scope["type"] != "http" or not (path.startswith("/v1/") or path in ENDPOINTS or of_page):
            return await self._app(scope, receive, send)
        began, answered = time.monotonic(), 0
        endpoint = path if path in ENDPOINTS else "other"

        async def noting(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
            await send(message)

        reserved = 0
        try:
            if not of_page:  # the page has a login of its own
                self._check(Headers(scope=scope), path)
            body, reserved = await self._body(scope, receive)
            if of_page and _names_elsewhere(body, self._uploads):
                raise Refused(403, "a file is named that was not put into the page; expected an upload")
            await self._app(scope, _replayed(body, receive), noting)
        except _Left:
            return
        except Exception as error:  # whatever it is, the client is told one sentence and no more
            refused = error if isinstance(error, Refused) else unexpected(error)
            if not answered:
                response = JSONResponse(refused.body(), refused.status, headers=refused.headers())
                await response(scope, receive, noting)
        finally:
            self._held -= reserved
            self._metrics.answered(endpoint, answered or 499, time.monotonic() - began)

    def _check(self, headers: Headers, path: str) -> None:
        """Raises Refused for a wrong token, and for a page of another site."""
        if self._key is not None and path not in _OPEN:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._key.encode()):
                raise Refused(401, "the token is wrong or missing; expected Authorization: Bearer TOKEN",
                              code="invalid_api_key")  # fmt: skip
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            raise Refused(403, "a page of another site may not ask here")

    async def _body(self, scope: Scope, receive: Receive) -> tuple[bytes, int]:
        """The whole body, and how many bytes are counted as held for it."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return b"", 0
        parts, size, over = [], 0, None
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Left
                chunk = message.get("body", b"")
                size += len(chunk)
                if over is None and size > self._max_body:
                    over = Refused(413, f"the body is over {self._max_body >> 20} MiB; send smaller pictures")
                if over is None and self._held + len(chunk) > _HELD * self._max_body:
                    over = Refused(429, "too much is being sent at once; try again in 2 s", code="busy", retry_after=2)
                if over is None:
                    self._held += len(chunk)
                    parts.append(chunk)
                elif parts:
                    self._held -= sum(map(len, parts))
                    parts.clear()
                if not message.get("more_body") or size > _DROPPED * self._max_body:
                    break
        except BaseException:
            self._held -= sum(map(len, parts))
            raise
        if over is not None:
            raise over
        return b"".join(parts), size


def _names_elsewhere(body: bytes, uploads: str) -> bool:
    """Whether JSON has a "path" that is not in the folder of uploads: Gradio would read any file, and fetch any URL.

    What is no JSON it refuses itself.
    """
    try:
        rest = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            named = value.get("path")
            if named is not None and not os.path.realpath(str(named)).startswith(uploads + os.sep):
                return True
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
    return False


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body, and after it what comes: that the client is gone."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
