"""Results in OpenAI's forms."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from internvlu_jax.serving.jobs import MODEL, Answer, Drawn
from internvlu_jax.serving.pictures import encoded


def completion(answer: Answer, read: int) -> dict[str, Any]:
    """A chat completion. read: tokens of the prompt."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return {
        **_head("chat.completion"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}],
        "usage": usage(answer, read),
        "seed": answer.seed,
    }


def usage(answer: Answer, read: int) -> dict[str, int]:
    """Numbers of tokens."""
    return {"prompt_tokens": read, "completion_tokens": answer.written, "total_tokens": read + answer.written}


class Chunks:
    """A completion in pieces, as server-sent events."""

    def __init__(self, with_usage: bool) -> None:
        self._head, self._with_usage = _head("chat.completion.chunk"), with_usage

    def first(self) -> bytes:
        return self._choice({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        return self._choice({"content": text})

    def last(self, answer: Answer) -> bytes:
        """The reason of the end, the usage where it was asked for, and the mark of the end."""
        chunks = self._choice({}, _reason(answer))
        if self._with_usage:
            chunks += event({**self._head, "choices": [], "usage": usage(answer, answer.read or 0)})
        return chunks + b"data: [DONE]\n\n"

    def _choice(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        return event({**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def pictures(drawn: Sequence[Drawn], kind: str) -> dict[str, Any]:
    """Drawn pictures with their seeds; what was reasoned is `revised_prompt`."""
    data = [
        {"b64_json": encoded(one.picture, kind), "seed": one.seed}
        | ({} if one.text is None else {"revised_prompt": one.text})
        for one in drawn
    ]
    width, height = drawn[0].picture.size
    return {"created": int(time.time()), "data": data, "output_format": kind, "size": f"{width}x{height}"}


def model() -> dict[str, Any]:
    """The one that is served."""
    return {"id": MODEL, "object": "model", "created": 0, "owned_by": "internvlu-jax"}


def _head(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": MODEL}


def _reason(answer: Answer) -> str:
    return "stop" if answer.ended else "length"
