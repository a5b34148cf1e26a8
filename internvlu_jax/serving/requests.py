"""Bodies of OpenAI's requests to jobs. Nothing here waits for the pipeline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from internvlu_jax.serving.errors import Refused
from internvlu_jax.serving.fields import Fields, is_text
from internvlu_jax.serving.jobs import MODEL, Call, Conversation, Job, Settings
from internvlu_jax.serving.pictures import from_data_url
from internvlu_jax.utils.seeds import LARGEST_SEED, any_seed

MOST_PICTURES = 10  # of one request, drawn or sent
_MOST_STEPS = 200
_MOST_TOKENS = 4096
_TEXT = 100_000  # characters of a message
_STOPS, _STOP_BYTES = 4, 128  # and bytes of all: each is a row of a table as wide as the vocabulary

_CHAT = {
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "stop", "seed", "n",
}  # fmt: skip
_DRAWING = {
    "model", "prompt", "n", "size", "response_format", "output_format", "seed", "steps", "guidance_scale",
    "negative_prompt", "reasoning",
}  # fmt: skip
_EXPECTED_PART = '{"type": "text", ...} or, of the user, {"type": "image_url", "image_url": {"url": "data:..."}}'


@dataclass(frozen=True)
class ChatRequest:
    """job: answers it. usage: whether a stream ends with the numbers of tokens."""

    job: Job
    stream: bool
    usage: bool


@dataclass(frozen=True)
class DrawingRequest:
    """calls: one for each picture. kind: of the files."""

    calls: tuple[Call, ...]
    kind: str


def chat_request(given: Mapping[str, Any], max_pixels: int) -> ChatRequest:
    """Of /v1/chat/completions. Greedy unless a temperature over 0 is given.

    Raises:
        Refused: a field cannot be used; says which.
    """
    fields = Fields(given, _CHAT)
    check_model(fields.get("model"))
    fields.whole("n", 1, 1)
    temperature = fields.number("temperature", 0, 2)
    top_p = fields.number("top_p", 1e-6, 1)
    limit = fields.whole("max_completion_tokens", 1, _MOST_TOKENS) or fields.whole("max_tokens", 1, _MOST_TOKENS)
    settings: dict[str, Any] = {}
    if temperature:
        settings |= {"do_sample": True, "temperature": temperature, "top_p": 1.0 if top_p is None else top_p}
    if limit is not None:
        settings["max_new_tokens"] = limit
    if stop := _stops(fields.get("stop")):
        settings["stop_strings"] = stop
    seed = fields.whole("seed", 0, LARGEST_SEED)
    stream, options = fields.flag("stream"), fields.get("stream_options")
    messages = _messages(fields.get("messages"), max_pixels)
    job = _chat_job(messages, any_seed() if seed is None else seed, settings, stream)
    return ChatRequest(job, stream, isinstance(options, dict) and options.get("include_usage") is True)


def drawing_request(given: Mapping[str, Any], sources: Sequence[Image.Image]) -> DrawingRequest:
    """Of /v1/images/generations, and with sources of /v1/images/edits.

    Picture number i has seed + i. Not of OpenAI's are seed, steps, guidance_scale, negative_prompt, and reasoning, with
    which the model thinks in words first.

    Raises:
        Refused: a field cannot be used; says which.
    """
    fields = Fields(given, _DRAWING)
    check_model(fields.get("model"))
    fields.one_of("response_format", ("b64_json",), "b64_json")
    prompt = fields.text("prompt")
    if not prompt or not prompt.strip():
        raise Refused(400, "prompt is missing; expected a text", param="prompt")
    count = fields.whole("n", 1, MOST_PICTURES) or 1
    seed = fields.whole("seed", 0, LARGEST_SEED)
    first = any_seed() if seed is None else seed
    settings = {
        "num_inference_steps": fields.whole("steps", 1, _MOST_STEPS),
        "guidance_scale": fields.number("guidance_scale", 0, 100),
        "negative_prompt": fields.text("negative_prompt"),
        **_size(fields.get("size")),
    }
    kept = frozen({name: value for name, value in settings.items() if value is not None})
    mode = "text_image" if fields.flag("reasoning") else "image"
    calls = [
        Call(mode, prompt, tuple(sources), (first + n) % (LARGEST_SEED + 1), kept) for n in range(count)
    ]  # fmt: skip
    return DrawingRequest(tuple(calls), fields.one_of("output_format", ("png", "jpeg", "webp"), "png"))


def frozen(settings: Mapping[str, Any]) -> Settings:
    """Settings in an order of their own, so that equal ones are equal."""
    return tuple(sorted(settings.items()))


def check_model(name: Any) -> None:
    """Raises Refused if another model is asked for."""
    if name is not None and name != MODEL:
        said = name[:60] if isinstance(name, str) else type(name).__name__
        raise Refused(404, f"there is no model {said!r}; expected {MODEL!r}", param="model", code="model_not_found")


def _chat_job(messages: list[dict[str, Any]], seed: int, settings: dict[str, Any], stream: bool) -> Job:
    """One question that is not streamed can be answered together with others."""
    system = [m for m in messages[:1] if m["role"] == "system"]
    asked = messages[len(system) :]
    if stream or len(asked) != 1 or asked[0]["role"] != "user":
        return Conversation(tuple(messages), seed, frozen(settings))
    said = "".join(part["text"] for part in system[0]["content"]).strip() if system else ""
    if said:
        settings = settings | {"system_prompt": said}
    parts = asked[0]["content"]
    pictures = tuple(part["image"] for part in parts if part["type"] == "image")
    text = "".join("<image>\n" if part["type"] == "image" else part["text"] for part in parts)
    return Call("text", text, pictures, seed, frozen(settings))


def _messages(given: Any, max_pixels: int) -> list[dict[str, Any]]:
    """As the pipeline takes them: every content a list of parts, every picture a PIL one."""
    if not isinstance(given, list) or not given:
        raise Refused(400, "messages is missing or no list; expected at least one message", param="messages")
    messages = []
    pictures = 0
    for n, message in enumerate(given):
        name = f"messages[{n}]"
        if not isinstance(message, dict) or message.get("role") not in ("system", "developer", "user", "assistant"):
            raise Refused(400, f"{name} has no role; expected system, user or assistant", param=name)
        role = "system" if message["role"] == "developer" else message["role"]
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise Refused(400, f"{name}.content is no text and no list of parts", param=name)
        own = [_part(part, f"{name}.content[{k}]", role, max_pixels) for k, part in enumerate(parts)]
        pictures += sum(part["type"] == "image" for part in own)
        if pictures > MOST_PICTURES:
            raise Refused(400, f"there are over {MOST_PICTURES} pictures in messages; send fewer", param=name)
        if role == "user" and not any(part["type"] == "image" or part["text"].strip() for part in own):
            raise Refused(400, f"{name} is empty; expected a text or a picture", param=name)
        messages.append({"role": role, "content": own})
    return messages


def _part(part: Any, name: str, role: str, max_pixels: int) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(text := part.get("text"), str):
        return {"type": "text", "text": _text(text, name)}
    if kind == "image_url" and role == "user":
        named = part.get("image_url")
        url = named.get("url") if isinstance(named, dict) else named
        return {"type": "image", "image": from_data_url(url, name, max_pixels)}
    raise Refused(400, f"{name} is no part that can be read; expected {_EXPECTED_PART}", param=name)


def _text(text: str, name: str) -> str:
    if len(text) > _TEXT:
        raise Refused(400, f"{name} has {len(text)} characters; expected at most {_TEXT}", param=name)
    if not is_text(text):
        raise Refused(400, f"{name} has half a character, a lone surrogate; expected text in Unicode", param=name)
    return text


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if not (isinstance(stops, list) and len(stops) <= _STOPS and all(is_text(s) and s for s in stops)):
        raise Refused(400, f"stop is no text and no list of up to {_STOPS}, none of them empty", param="stop")
    size = sum(len(stop.encode()) for stop in stops)
    if size > _STOP_BYTES:
        raise Refused(400, f"stop has {size} bytes of UTF-8; expected at most {_STOP_BYTES} in all", param="stop")
    return tuple(stops)


def _size(given: Any) -> dict[str, int]:
    """WIDTHxHEIGHT; "auto" leaves it to the pipeline."""
    if given is None or given == "auto":
        return {}
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", given, re.ASCII) if isinstance(given, str) else None
    if not match:
        raise Refused(
            400, f"size is {str(given)[:40]!r}; expected 'auto' or such as '512x512', width first", param="size"
        )
    return {"width": int(match[1]), "height": int(match[2])}
