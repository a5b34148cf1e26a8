"""The endpoints with a pipeline that answers at once, through real sockets."""

import base64
import io
import json
import threading

import pytest
from PIL import Image

from internvlu_jax.cli import main
from internvlu_jax.serving.limits import Limits
from tests.helpers.serving import Served, data_url, drawn, events, png, served, together

SMALL = Limits(max_queue=8, max_batch=8, max_body=1, max_pixels=1, max_seconds=20)


@pytest.fixture(scope="module")
def server():
    with served(SMALL) as one:
        yield one


@pytest.fixture(autouse=True)
def idle(request):
    """Each test begins and ends with nothing waiting."""
    yield
    if "server" in request.fixturenames:
        server: Served = request.getfixturevalue("server")
        server.pipe.free.set()
        server.until(lambda: server.worker.waiting == 0)
        server.pipe.calls.clear()
        server.pipe.settings.clear()


def picture(entry: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))


def test_pictures_with_their_seeds(server):
    reply = server.draw("a cat", n=3, seed=5, size="64x32", steps=4)
    assert reply.status == 200 and reply.json["output_format"] == "png" and reply.json["size"] == "8x8"
    assert [entry["seed"] for entry in reply.json["data"]] == [5, 6, 7]
    for entry in reply.json["data"]:
        assert picture(entry).tobytes() == drawn("a cat", entry["seed"]).tobytes()
    entry = server.draw("a cat").json["data"][0]
    assert picture(entry).tobytes() == drawn("a cat", entry["seed"]).tobytes()
    assert server.draw("a cat", seed=2**32 - 1, n=2).json["data"][1]["seed"] == 0
    assert picture(server.draw("a cat", output_format="webp").json["data"][0]).format == "WEBP"
    reasoned = server.draw("a cat", reasoning=True, seed=1).json["data"][0]
    assert reasoned["revised_prompt"] == "thought" and server.pipe.calls[-1] == ("text_image", ["a cat"], [1])


def test_settings_reach_the_pipeline(server):
    server.draw("a cat", n=2, size="64x32", steps=4, guidance_scale=2.5, negative_prompt="a dog")
    server.draw("a cat", size="auto")
    written = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "stop": ["two", "three"]}
    server.chat({"role": "system", "content": "Be brief."}, "How many?", **written)
    server.chat("How many?", **written, stream=True)
    server.chat("How many?", top_p=0.9)
    drawn_so = {"width": 64, "height": 32, "num_inference_steps": 4, "guidance_scale": 2.5, "negative_prompt": "a dog"}
    sampled = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "max_new_tokens": 7}
    sampled["stop_strings"] = ("two", "three")
    drawings = [own for own, (mode, *_) in zip(server.pipe.settings, server.pipe.calls, strict=True) if mode == "image"]
    assert drawings[-1] == {} and drawings[:-1] == [drawn_so] * len(drawings[:-1])
    assert server.pipe.settings[len(drawings) :] == [{**sampled, "system_prompt": "Be brief."}, sampled, {}]


def form(*parts: tuple[str, bytes, bool]) -> tuple[bytes, str]:
    lines = []
    for name, value, is_file in parts:
        file = '; filename="../../a.png"\r\nContent-Type: image/png' if is_file else ""
        lines.append(b"--x\r\n" + f'Content-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value)
    return b"\r\n".join([*lines, b"--x--\r\n"]), "multipart/form-data; boundary=x"


def test_edits(server):
    body, kind = form(
        ("image[]", png(), True), ("image[]", png(), True), ("prompt", b"join", False), ("seed", b"9", False)
    )
    reply = server.ask("/v1/images/edits", body, Content_Type=kind)
    assert picture(reply.json["data"][0]).tobytes() == drawn("join", 9).tobytes()
    for parts, said in [
        ([("prompt", b"join", False)], "image is missing"),
        ([("image", b"no picture", True), ("prompt", b"a", False)], "not a picture"),
        ([("image", b"/etc/passwd", False), ("prompt", b"a", False)], "image is missing"),
        ([("image", png(), True), ("prompt", b"a", False), ("mask", b"m", False)], "'mask' is not supported"),
        ([("image[]", png(), True)] * 11, "Maximum number of files is 10"),
    ]:
        body, kind = form(*parts)
        reply = server.ask("/v1/images/edits", body, Content_Type=kind)
        assert reply.status == 400 and said in reply.error["message"]
    assert server.ask("/v1/images/edits", b"--x", Content_Type="multipart/form-data; boundary=y").status == 400


@pytest.mark.parametrize(("path", "status"), [("/v1/nothing", 404), ("/v1/images/generations", 405)])
def test_what_is_not_there_is_said_as_all_errors_are(server, path, status):
    reply = server.ask(path)
    assert reply.status == status and reply.error["message"].startswith("th")


def test_answers(server):
    reply = server.chat("How many?", seed=3).json
    assert reply["choices"][0]["message"]["content"] == "How many?! 3"
    assert reply["choices"][0]["finish_reason"] == "stop" and reply["object"] == "chat.completion"
    assert reply["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    parts = [{"type": "image_url", "image_url": {"url": data_url(png())}}, {"type": "text", "text": "What?"}]
    assert server.chat({"role": "user", "content": parts}, seed=1).json["choices"][0]["message"]["content"] == (
        "<image>\nWhat?! 1"
    )
    turns = ["a", {"role": "assistant", "content": "b"}, "c"]
    reply = server.chat(*turns, seed=3, temperature=0).json
    assert reply["choices"][0]["message"]["content"] == "one two three" and reply["usage"]["prompt_tokens"] == 11
    assert server.pipe.calls[-1] == ("chat", ["a", "b", "c"], [3])


def test_a_stream(server):
    reply = server.chat("a", stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(reply.body.decode())
    chunks = [json.loads(chunk) for chunk in chunks]
    assert done == "[DONE]" and len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    first, *pieces, last, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [piece["choices"][0]["delta"]["content"] for piece in pieces] == ["one ", "two ", "three"]
    assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 14
    assert server.chat("broken", stream=True).status == 500  # it failed before the first piece


def test_stops_are_no_part_of_an_answer(server):
    """Alone, after several turns and as a stream; the numbers of tokens are those that were written."""
    one = server.chat("How many?", seed=3, stop="many?!").json
    assert one["choices"][0]["message"]["content"] == "How " and one["choices"][0]["finish_reason"] == "stop"
    assert one["usage"]["completion_tokens"] == 3
    turns = server.chat("a", {"role": "assistant", "content": "b"}, "c", stop=[" three", "wo"]).json
    assert turns["choices"][0]["message"]["content"] == "one t" and turns["usage"]["completion_tokens"] == 3
    *chunks, _ = events(server.chat("a", stream=True, stop=["e two t", "x"]).body.decode())
    said = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert [choice["delta"].get("content") for choice in said] == ["", "on", None]
    assert said[-1]["finish_reason"] == "stop"


def test_stops_have_few_bytes(server):
    assert server.chat("a", stop=["犬" * 10 + "a" * 2] * 4).status == 200  # 3 bytes a character
    for stops, said in ((["犬" * 11] * 4, "has 132 bytes"), ("a" * 129, "has 129 bytes"), (["a"] * 5, "up to 4")):
        reply = server.chat("a", stop=stops)
        assert reply.status == 400 and said in reply.error["message"]


def test_those_that_wait_are_drawn_together(server):
    """Seven of one kind as four, two and one; another kind by itself; everyone gets what is its own."""
    server.pipe.free.clear()
    asks = [lambda n=n: server.draw("a" * n, seed=n, steps=4) for n in range(1, 8)]
    replies = {}
    first = threading.Thread(target=lambda: replies.update(first=server.draw("first", seed=0)))
    first.start()
    server.until(lambda: len(server.pipe.calls) == 1)
    waiting = threading.Thread(target=lambda: replies.update(all=together([*asks, lambda: server.chat("x", seed=2)])))
    waiting.start()
    server.until(lambda: server.worker.waiting == 8)
    server.pipe.free.set()
    first.join(), waiting.join()
    for n, reply in enumerate(replies["all"][:7], 1):
        assert picture(reply.json["data"][0]).tobytes() == drawn("a" * n, n).tobytes()
    assert replies["all"][7].json["choices"][0]["message"]["content"] == "x! 2"
    assert sorted(len(prompts) for mode, prompts, _ in server.pipe.calls[1:] if mode == "image") == [1, 2, 4]
    text = server.ask("/metrics").body.decode()
    assert 'internvlu_call_jobs_bucket{le="4.0"}' in text and "internvlu_jobs_waiting 0.0" in text
    assert 'internvlu_requests_total{endpoint="/v1/images/generations",status="200"}' in text


def test_one_that_fails_spoils_none_of_the_others(server):
    server.pipe.free.clear()
    replies = []
    prompts = ["ok", "bad", "broken", "fine"]
    asks = [lambda p=p: server.draw(p, seed=4) for p in prompts]
    thread = threading.Thread(target=lambda: replies.extend(together(asks)))
    thread.start()
    server.until(lambda: len(server.pipe.calls) + server.worker.waiting >= 4 or server.worker.waiting == 3)
    server.pipe.free.set()
    thread.join()
    assert [reply.status for reply in replies] == [200, 400, 500, 200]
    assert replies[1].error["message"] == "bad is no prompt"
    assert replies[2].error["message"] == "the server failed at this request; its log says why"
    assert picture(replies[3].json["data"][0]).tobytes() == drawn("fine", 4).tobytes()


def test_when_full_later(server):
    server.pipe.free.clear()
    sockets = [server.leaving("/v1/images/generations", {"prompt": "first"})]
    server.until(lambda: len(server.pipe.calls) == 1)
    sockets += [server.leaving("/v1/images/generations", {"prompt": "a", "n": 4}) for _ in range(2)]
    server.until(lambda: server.worker.waiting == 8)
    reply = server.draw("too many")
    assert reply.status == 429 and reply.error["code"] == "queue_full" and int(reply.headers["retry-after"]) >= 1
    assert server.ask("/health").status == 200
    for one in sockets[1:]:
        one.close()  # whoever goes away frees its places
    server.until(lambda: server.worker.waiting == 0)
    server.pipe.free.set()
    assert server.draw("now").status == 200
    assert "a" not in [prompts[0] for _, prompts, _ in server.pipe.calls]
    sockets[0].close()


@pytest.mark.parametrize("stream", [False, True])
def test_work_ends_when_nobody_waits_for_it(server, stream):
    """A drawing at its next step, a stream at its next piece: the next one need not wait for the rest."""
    server.pipe.steps = 3000 if not stream else 3
    server.pipe.free.clear()
    given = {"messages": [{"role": "user", "content": "a"}], "stream": True} if stream else {"prompt": "long"}
    one = server.leaving("/v1/chat/completions" if stream else "/v1/images/generations", given)
    server.until(lambda: len(server.pipe.calls) == 1)
    one.close()
    server.pipe.free.set()
    assert server.chat("next", seed=1).json["choices"][0]["message"]["content"] == "next! 1"
    server.pipe.steps = 3


@pytest.mark.parametrize("name", ["max_queue", "max_batch", "max_body", "max_pixels", "max_seconds"])
def test_limits_with_which_nothing_could_be_done(name, capsys):
    """Before a model is loaded."""
    for value in ("0", "-2"):
        assert main(["serve", f"--{name.replace('_', '-')}", value]) == 2
        assert f"{name} is {value}; expected" in capsys.readouterr().err
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"max_seconds is {value}"):
            Limits(max_seconds=value).check()


def test_time_is_limited():
    with served(Limits(max_seconds=0.2)) as server:
        server.pipe.free.clear()
        for reply in (server.draw("a cat"), server.chat("a", stream=True)):
            assert reply.status == 504 and "0.2 s" in reply.error["message"]
        assert server.worker.waiting == 0


def test_tokens():
    with served(token="right") as server:
        assert server.draw("a cat").status == 200
        for header in ("Bearer wrong", "Bearer", "right", "Basic right", "Bearer ü"):
            reply = server.send("POST", "/v1/images/generations", b"{}", {"Authorization": header.encode("latin-1")})
            assert reply.status == 401 and reply.error["code"] == "invalid_api_key"
        assert server.send("GET", "/metrics", None, {}).status == 401
        assert server.send("GET", "/health", None, {}).status == 200


JSON = "application/json"


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("images/generations", b"{", 400, "no valid JSON"),
        ("images/generations", b"[" * 100_000, 400, "no valid JSON"),
        ("images/generations", b"[]", 400, "a JSON list"),
        ("images/generations", b'{"prompt": "a", "n": NaN}', 400, "no valid JSON"),
        ("images/generations", b'{"prompt": "\\ud800"}', 400, "prompt is"),
        ("images/generations", b'{"prompt": " "}', 400, "prompt is missing"),
        ("images/generations", b'{"prompt": "a", "n": 11}', 400, "n is 11"),
        ("images/generations", b'{"prompt": "a", "n": true}', 400, "n is True"),
        ("images/generations", b'{"prompt": "a", "steps": 0}', 400, "steps is 0"),
        ("images/generations", b'{"prompt": "a", "size": "big"}', 400, "size is 'big'"),
        ("images/generations", b'{"prompt": "a", "response_format": "url"}', 400, "response_format is 'url'"),
        ("images/generations", b'{"prompt": "a", "image": "/etc/passwd"}', 400, "'image' is not supported"),
        ("images/generations", b'{"prompt": "a", "model": "x"}', 404, "there is no model 'x'"),
        ("chat/completions", b"{}", 400, "messages is missing"),
        ("chat/completions", b'{"messages": ["a"]}', 400, "messages[0] has no role"),
        ("chat/completions", b'{"messages": [{"role": "user"}]}', 400, "messages[0].content"),
        ("chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "tools": []}', 400, "'tools'"),
        ("chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "stop": [""]}', 400, "stop is"),
        ("chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "temperature": 3}', 400, "0 to 2"),
        ("nothing", b"{}", 404, "no such endpoint"),
        ("models", b"{}", 405, "another method"),
        ("images/generations", b" " * (2**20 + 1), 413, "over 1 MiB"),
        ("images/generations", b" " * (6 * 2**20), 413, "over 1 MiB"),
    ],
)
def test_what_is_wrong_is_said(server, path, body, status, said):
    reply = server.ask(f"/v1/{path}", body)
    assert reply.status == status and said in reply.error["message"]
    assert not server.pipe.calls


PICTURE = {"type": "image_url", "image_url": {"url": data_url(png())}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a" * 100_001, r"has 100001 characters; expected at most 100000"),
        ("\ud800", "half a character, a lone surrogate"),
    ],
)
def test_texts_that_are_too_long_or_none_are_named(server, text, said):
    reply = server.chat(text)
    assert reply.status == 400 and said in reply.error["message"] and reply.error["param"] == "messages[0].content[0]"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content", ["", " \n", [], [{"type": "text", "text": ""}]])
def test_an_empty_message_is_refused(server, content, stream):
    for before in ([], ["a", {"role": "assistant", "content": ""}], [{"role": "system", "content": ""}]):
        reply = server.chat(*before, {"role": "user", "content": content}, stream=stream)
        assert reply.status == 400 and reply.error["message"].startswith(f"messages[{len(before)}] is empty; expected")
    assert not server.pipe.calls
    assert server.chat({"role": "user", "content": [{"type": "text", "text": ""}, PICTURE]}).status == 200


@pytest.mark.parametrize(
    "url",
    ["/etc/passwd", "file:///etc/passwd", "http://localhost/a.png", "data:text/plain;base64,YQ==", None, 3,
     "data:image/png;base64,%%%", data_url(b"no picture"), data_url(png(Image.new("L", (1001, 1000))))],
)  # fmt: skip
def test_pictures_that_are_not_read(server, url):
    for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "image", "image": url}):
        reply = server.chat({"role": "user", "content": [part]})
        assert reply.status == 400 and "messages[0].content[0]" in reply.error["message"]


def test_other_sites_may_not_ask(server):
    """Neither a page of another site, nor one whose name leads here, nor a form that a page may send unasked."""
    assert server.ask("/v1/images/generations", {"prompt": "a"}, Origin="http://evil.example").status == 403
    assert server.ask("/v1/images/generations", {"prompt": "a"}, Host="evil.example").status == 400
    assert server.ask("/v1/images/generations", {"prompt": "a"}, Content_Type="text/plain").status == 415
    own = f"http://127.0.0.1:{server.port}"
    assert server.ask("/v1/images/generations", {"prompt": "a"}, Origin=own).status == 200


@pytest.mark.parametrize("local", ["127.0.0.1", "127.0.0.2", "::1", "::2"])
def test_the_names_that_are_answered_to(local):
    """Those of this machine, and the address that is listened at."""
    own = {"127.0.0.2": "127.0.0.2", "::2": "[::2]"}
    with served(local=local) as server:
        for name in ("localhost", "127.0.0.1", "[::1]", "127.0.0.2", "[::2]", "[::3]", "::1.example"):
            answered = name in ("localhost", "127.0.0.1", "[::1]") or name == own.get(local)
            for port in ("", ":8000"):
                assert server.ask("/v1/models", Host=name + port).status == (200 if answered else 400)


def test_models(server):
    assert server.ask("/v1/models").json["data"][0]["id"] == "internvl-u"
    assert server.ask("/v1/models/internvl-u").json["object"] == "model"
    assert server.ask("/v1/models/other").status == 404


def test_the_official_client(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["internvl-u"]
    out = client.images.generate(model="internvl-u", prompt="a cat", n=2, extra_body={"seed": 3})
    assert [picture(e.model_dump()).tobytes() for e in out.data] == [drawn("a cat", n).tobytes() for n in (3, 4)]
    edited = client.images.edit(model="internvl-u", image=("a.png", png()), prompt="b", extra_body={"seed": 1})
    assert picture(edited.data[0].model_dump()).tobytes() == drawn("b", 1).tobytes()
    parts = [{"type": "image_url", "image_url": {"url": data_url(png())}}, {"type": "text", "text": "c"}]
    messages = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(model="internvl-u", messages=messages, seed=1)
    assert answer.choices[0].message.content == "<image>\nc! 1"
    stream = client.chat.completions.create(model="internvl-u", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "one two three"
    with pytest.raises(openai.BadRequestError, match="size is 'x'"):
        client.images.generate(prompt="a", size="x")


@pytest.mark.parametrize("named", ["/etc/passwd", "http://127.0.0.1/a.png", "../a.png", "", 3])
def test_the_page_reads_nothing_that_a_client_names(server, named):
    """Gradio would take any path for an upload."""
    reply = server.ask("/gradio_api/queue/join", {"data": ["a", {"path": named, "meta": {}}], "fn_index": 2})
    assert reply.status == 403 and "not put into the page" in reply.error["message"]
