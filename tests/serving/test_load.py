"""200 requests at once, good and bad, before the model in the box; and how many pictures a second it gives away."""

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from internvlu_jax import InternVLUPipeline
from tests.helpers.serving import data_url, png, started

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow

STEPS = 8
COLOURS, SHAPES = ("red", "blue", "green", "yellow", "purple"), ("circle", "square", "triangle", "star")
PROMPTS = [f"a {size} {colour} {shape}" for size in ("large", "small") for colour in COLOURS for shape in SHAPES][:32]


@pytest.fixture(scope="module")
def pipe():
    return InternVLUPipeline.from_pretrained()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with started(tmp_path_factory.mktemp("server"), token="right") as one:
        yield one


def pixels(entry: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))).astype(int)


def patiently(ask):
    """Comes again when it is told to."""
    while (reply := ask()).status == 429:
        time.sleep(min(int(reply.headers["retry-after"]), 5))
    return reply


def question(picture: bytes, text: str) -> dict:
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}}, {"type": "text", "text": text}]
    return {"role": "user", "content": parts}


def storm(server, source: bytes) -> tuple[list, list, list[bytes]]:
    """100 drawings and 30 questions that are good, 55 that are not, 15 that nobody waits for; all bodies of answers."""
    big = b'{"prompt": "' + b"a" * (50 << 20) + b'"}'
    wrong = {"Content-Type": "application/json", "Authorization": "Bearer wrong"}

    def leave(n: int):
        one = server.leaving("/v1/images/generations", {"prompt": PROMPTS[n], "steps": STEPS}, "right")
        time.sleep(0.1 * n)
        one.close()

    draws = [lambda n=n: patiently(lambda: server.draw(PROMPTS[n % 32], seed=n, steps=STEPS)) for n in range(100)]
    asks = [lambda: patiently(lambda: server.chat(question(source, "How many circles are there?")))] * 30
    bad = [lambda: server.ask("/v1/images/generations", b'{"prompt": ')] * 20
    bad += [lambda: patiently(lambda: server.ask("/v1/images/generations", big))] * 15
    bad += [lambda: server.send("POST", "/v1/images/generations", b'{"prompt": "a"}', wrong)] * 20
    leavers = [lambda n=n: leave(n) for n in range(15)]
    mixed = [*draws, *asks, *bad, *leavers]
    order = np.random.default_rng(0).permutation(len(mixed))
    with ThreadPoolExecutor(len(mixed)) as pool:
        futures = {n: pool.submit(mixed[n]) for n in order}
        replies = [futures[n].result() for n in range(len(mixed))]
    statuses = [reply.status for reply in replies[130:185]]
    assert statuses == [400] * 20 + [413] * 15 + [401] * 20
    return replies[:100], replies[100:130], [reply.body for reply in replies[:185]]


def test_200_at_once(server, pipe):
    source = png(pipe("two red circles left of a blue square", generation_mode="image", seed=3).images[0])
    for _ in range(3):  # until batches of every size are compiled
        storm(server, source)
    before, memory = time.monotonic(), server.memory()
    drawn, answered, bodies = storm(server, source)
    seconds = time.monotonic() - before
    server.until(lambda: b"jobs_waiting 0.0" in server.ask("/metrics").body)
    time.sleep(2)
    print(f"\n200 requests in {seconds:.0f} s; memory {memory} MiB before, {server.memory()} MiB after")
    assert server.memory() < memory * 1.05 + 50
    for n, reply in enumerate(drawn):
        alone = pipe(PROMPTS[n % 32], generation_mode="image", seed=n, num_inference_steps=STEPS).images[0]
        (entry,) = reply.json["data"]
        assert entry["seed"] == n and np.abs(pixels(entry) - np.asarray(alone)).max() <= 1, (
            n
        )  # another batch's rounding
    (alone,) = pipe("How many circles are there?", image=Image.open(io.BytesIO(source))).text
    assert {reply.json["choices"][0]["message"]["content"] for reply in answered} == {alone}
    assert not [body for body in bodies if b"/work" in body or b"/tmp" in body or b".py" in body or b"Trace" in body]
    assert "Traceback" not in server.log.read_text()


def test_throughput(server, pipe):
    """Of 32 prompts that come at once, against one call with them; the best of three, taken in turn."""
    seeds = list(range(32))

    def call() -> None:
        pipe(PROMPTS, generation_mode="image", seed=seeds)

    def ask() -> None:
        with ThreadPoolExecutor(32) as pool:
            replies = list(pool.map(lambda n: server.draw(PROMPTS[n], seed=n), seeds))
        assert [reply.status for reply in replies] == [200] * 32

    def timed(work) -> float:
        before = time.monotonic()
        work()
        return time.monotonic() - before

    call(), ask()
    pairs = [(timed(call), timed(ask)) for _ in range(3)]
    alone, served = (min(times) for times in zip(*pairs, strict=True))
    print(f"\n32 pictures: one call {alone:.1f} s, through the server {served:.1f} s: {alone / served:.2f}")
    assert alone / served >= 0.8
