"""A pipeline that answers at once, and requests to a server before it."""

from __future__ import annotations

import base64
import http.client
import inspect
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from PIL import Image

from internvlu_jax.inference.chat import ChatOutput
from internvlu_jax.inference.outputs import PipelineOutput
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.inference.stream import TextStream
from internvlu_jax.serving.app import make_app
from internvlu_jax.serving.limits import Limits
from internvlu_jax.serving.metrics import Metrics
from internvlu_jax.serving.worker import Worker

STOP = 7
_LIMITS = Limits()


def drawn(prompt: str, seed: int) -> Image.Image:
    """A picture that only this prompt and seed have."""
    return Image.new("RGB", (8, 8), (seed % 256, len(prompt) % 256, sum(prompt.encode()) % 256))


def png(picture: Image.Image | None = None) -> bytes:
    """The file of a picture, by default of 4 x 6 grey pixels."""
    file = io.BytesIO()
    (picture or Image.new("RGB", (4, 6), (90, 90, 90))).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@dataclass
class StandIn:
    """Calls in the order of their coming, as (mode, prompts, seeds), and the settings of each, which the pipeline must
    know by these names. `free` holds every call while it is not set."""

    calls: list[tuple[str, list[str], list[int]]] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)
    steps: int = 3

    def __post_init__(self) -> None:
        self.free.set()
        self.processor = self

    @property
    def tokenizer(self) -> Any:
        return self

    stop_ids = (STOP,)

    def __call__(self, prompt, *, image, generation_mode, seed, callback=None, **settings) -> PipelineOutput:
        self._called(InternVLUPipeline.__call__, (generation_mode, prompt, seed), settings)
        assert self.free.wait(20)
        if "bad" in prompt:
            raise ValueError("bad is no prompt")
        if "broken" in prompt:
            raise RuntimeError("/home/someone/secret.py is broken")
        if generation_mode == "text":
            texts = [f"{p}! {s}" for p, s in zip(prompt, seed, strict=True)]
            return PipelineOutput(texts, [np.array([1, 2, STOP])] * len(prompt))
        for step in range(self.steps):
            callback(step + 1, self.steps, None)
            time.sleep(0.005)
        pictures = [drawn(p, s) for p, s in zip(prompt, seed, strict=True)]
        return PipelineOutput(["thought"] * len(prompt) if generation_mode == "text_image" else None, None, pictures)

    def stream_chat(self, messages, *, seed, **settings) -> TextStream:
        said = [part["text"] for m in messages for part in m["content"] if part["type"] == "text"]
        self._called(InternVLUPipeline.stream_chat, ("chat", said, [seed]), settings)

        def writing():
            for word in ("one ", "two ", "three"):
                assert self.free.wait(20)
                if "broken" in said:
                    raise RuntimeError("/home/someone/secret.py is broken")
                yield word
                time.sleep(0.005)
            return lambda: ChatOutput("one two three", np.array([1, 2, 3]), True, 11, 11, seed)

        return TextStream(writing())

    def _called(self, by: Callable, call: tuple[str, list[str], list[int]], settings: dict[str, Any]) -> None:
        inspect.signature(by).bind_partial(**settings)
        self.settings.append(settings)
        self.calls.append(call)


def events(body: str) -> list[str]:
    """The data of server-sent events."""
    assert body.endswith("\n\n")
    return [block.removeprefix("data: ") for block in body.removesuffix("\n\n").split("\n\n")]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """Of OpenAI's form, and in words that are for the client's eyes."""
        said = self.json["error"]
        assert set(said) == {"message", "type", "param", "code"}
        assert "\n" not in said["message"] and "/home" not in said["message"] and "Traceback" not in said["message"]
        return said


@dataclass
class Client:
    """Of a server on a port of this machine."""

    port: int
    token: str | None = None
    patience: float = 30

    def ask(self, path: str, given: Any = None, **headers: str) -> Reply:
        """POST of JSON or of given bytes, or GET without any."""
        kind = {
            "Content-Type": "application/json",
            **self._token(),
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        body = given if given is None or isinstance(given, bytes) else json.dumps(given).encode()
        return self.send("GET" if given is None else "POST", path, body, kind)

    def send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.patience)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def draw(self, prompt: str, **given: Any) -> Reply:
        return self.ask("/v1/images/generations", {"prompt": prompt, **given})

    def chat(self, *messages: str | dict, **given: Any) -> Reply:
        asked = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
        return self.ask("/v1/chat/completions", {"messages": asked, **given})

    def leaving(self, path: str, given: Any, token: str = "") -> socket.socket:
        """A request whose answer is not waited for; closing the socket is going away."""
        body = json.dumps(given).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(
            f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        return connection

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something holds, which must be soon."""
        late = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < late
            time.sleep(0.005)

    def _token(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}


@dataclass
class Served(Client):
    """With the stand-in behind the server, and its worker."""

    pipe: StandIn = field(default_factory=StandIn)
    worker: Worker | None = None


@contextmanager
def served(
    limits: Limits = _LIMITS, token: str | None = None, checked: Callable = lambda call: 5, local: str = "127.0.0.1"
) -> Iterator[Served]:
    """A server with a stand-in, in a thread, at 127.0.0.1 whatever `local` says."""
    pipe, metrics = StandIn(), Metrics()
    worker = Worker(pipe, limits.max_queue, limits.max_batch, metrics.called)
    app = make_app(worker, metrics, limits, checked, key=token, local=local)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield Served(server.servers[0].sockets[0].getsockname()[1], token, pipe=pipe, worker=worker)
    finally:
        pipe.free.set()
        server.should_exit = True
        thread.join()
        worker.close()


def together(asks: Sequence[Callable[[], Reply]]) -> list[Reply]:
    """All at once."""
    with ThreadPoolExecutor(len(asks)) as pool:
        return [future.result() for future in [pool.submit(ask) for ask in asks]]


@dataclass
class Started(Client):
    """A server of the shell command, with the model in the box, in a process of its own."""

    process: Any = None
    log: Path = Path()

    def memory(self) -> int:
        """MiB that the process has in memory."""
        (line,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(line) >> 10


@contextmanager
def started(folder: Path, *options: str, token: str | None = None) -> Iterator[Started]:
    """`internvlu-jax serve` with a log in `folder`, up to its first answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log"
    env = {**os.environ, **({} if token is None else {"INTERNVLU_API_KEY": token})}
    command = [sys.executable, "-m", "internvlu_jax.cli", "serve", "--port", str(port), *options]
    with log.open("w") as file, subprocess.Popen(command, env=env, stdout=file, stderr=file) as process:
        server = Started(port, token, 600, process, log)
        try:
            while True:
                assert process.poll() is None, log.read_text()
                try:
                    server.ask("/health")
                    break
                except OSError:
                    time.sleep(0.2)
            yield server
        finally:
            process.terminate()
