"""Text as it is written is the text of the call, in whole characters."""

import gc
import io

import jax
import numpy as np
import pytest

from internvlu_jax import InternVLUPipeline, PipelineOutput
from internvlu_jax.cli import _written, main
from internvlu_jax.inference import programs
from internvlu_jax.inference.stream import TextStream, before_stop, pieces, pieces_before_stop
from internvlu_jax.processing.tokenizer import Tokenizer
from tests.conftest import GOLDENS


@pytest.fixture(scope="module")
def pipe():
    return InternVLUPipeline.from_pretrained(GOLDENS / "base/checkpoint")


def streamed(tokenizer, blocks) -> tuple[list[str], str]:
    got = []

    def given():
        yield from (np.array(block, np.int32) for block in blocks)
        return "the end"

    def kept():
        return (yield from pieces(given(), tokenizer))

    writing = kept()
    while True:
        try:
            got.append(next(writing))
        except StopIteration as end:
            return got, end.value


@pytest.mark.parametrize("recorded", [False, True])
def test_pieces_are_the_decoded_text(recorded):
    """Any ids, special and unknown ones and broken characters among them, cut anywhere; nothing comes in halves."""
    files = GOLDENS / "base/checkpoint/processor"
    tokenizer = Tokenizer.from_directory(files) if recorded else Tokenizer.byte_level(["two words", "书生·万象"])
    rng = np.random.default_rng(0)
    for count in range(1, 40):
        ids = rng.integers(0, tokenizer.vocab_size + 3, count)
        cuts = np.sort(rng.integers(0, count + 1, 4))
        got, end = streamed(tokenizer, np.split(ids, cuts))
        assert "".join(got) == tokenizer.decode(ids) and end == "the end" and "" not in got


def test_no_half_a_character():
    tokenizer = Tokenizer.byte_level()
    text = "aé犬🐕‍🦺z"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    got, _ = streamed(tokenizer, [[i] for i in ids])
    assert got == list(text)
    got, _ = streamed(tokenizer, [ids[:2]])  # ends within é
    assert got == ["a", "�"]


def test_text_streams(pipe):
    options = {"max_new_tokens": 30, "do_sample": True, "seed": 4, "temperature": 2.0, "repetition_penalty": 1.2}
    call = pipe("Say hello", **options)
    stream = pipe.stream("Say hello", **options)
    got = list(stream)
    assert len(got) > 2 and "".join(got) == call.text[0]
    out = stream.result()
    assert out is stream.result() and out.text == call.text and out.seed == 4 and out.images is None
    np.testing.assert_array_equal(out.tokens[0], call.tokens[0])
    params = {**pipe.params, "vlm": jax.tree.map(lambda x: x * np.nan, pipe.params["vlm"])}
    damaged = InternVLUPipeline(pipe.config, params, pipe.processor, pipe.model.compute)
    for write in (damaged, lambda *given, **own: list(damaged.stream(*given, **own))):
        with pytest.raises(ValueError, match=r"the scores of the next token are not finite.* weights are damaged"):
            write("Say hello", **options)


@pytest.mark.slow
def test_a_string_ends_a_stream(pipe):
    text = pipe("Say hello", max_new_tokens=8).text[0]
    stream = pipe.stream("Say hello", max_new_tokens=60, stop_strings=text[2:4])
    assert "".join(stream) == pipe("Say hello", max_new_tokens=60, stop_strings=text[2:4]).text[0]
    assert len(stream.result().tokens[0]) < 60


@pytest.mark.slow
def test_reasoning_streams_before_its_picture(pipe, monkeypatch):
    options = {"generation_mode": "text_image", "height": 32, "width": 48, "num_inference_steps": 2, "seed": 3}
    call = pipe("a cat", max_new_tokens=9, **options)
    drawn = []
    real = programs.draw
    monkeypatch.setattr(programs, "draw", lambda *given: drawn.append(1) or real(*given))
    stream = pipe.stream("a cat", max_new_tokens=9, return_dict=False, **options)
    assert "".join(stream) == call.text[0] and not drawn
    images, texts = stream.result()
    assert drawn and texts == call.text
    difference = np.abs(np.asarray(images[0]).astype(int) - np.asarray(call.images[0]))
    assert difference.max() <= 1 and (difference > 0).mean() < 5e-3


def test_nothing_is_computed_before_the_first_piece(pipe, monkeypatch):
    monkeypatch.setattr("internvlu_jax.inference.writing.prefill", None)
    stream = pipe.stream("Say hello")
    with pytest.raises(TypeError):
        next(stream)
    with pytest.raises(ValueError, match="closed before its text was written"):
        stream.result()


@pytest.mark.parametrize("options", [{}, {"generation_mode": "text_image", "num_inference_steps": 1}])
def test_an_ended_stream_does_not_hold_its_cache(pipe, options):
    """Of 77 kB; on a CPU tokens and contexts of the host are views of arrays."""

    def used() -> int:
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    def ended():
        stream = pipe.stream("Say hello", max_new_tokens=4, **options)
        list(stream)
        return stream

    ended().result()  # keeps the states of the dropped prompt
    before, stream = used(), ended()
    assert used() < before + 50_000
    del stream


def test_what_fails_at_the_end_can_be_asked_for_again():
    tries = []

    def finish():
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError
        return 7

    def writing():
        yield "a"
        return finish

    stream = TextStream(writing())
    with pytest.raises(MemoryError):
        stream.result()
    assert (stream.result(), stream.result(), list(stream)) == (7, 7, [])


class Terminal(io.StringIO):
    """Keeps what is written to it, write by write."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def isatty(self):
        return True

    def write(self, text):
        self.shown.append(text)
        return len(text)


class Spoken:
    """A pipeline that says the same in a call and in a stream."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompt, **options):
        self.asked.append(("call", prompt))
        return PipelineOutput(text=["ab"])

    def stream(self, prompt, **options):
        self.asked.append(("stream", prompt))

        def writing():
            yield from "ab"
            return lambda: PipelineOutput(text=["ab"])

        return TextStream(writing())


@pytest.mark.parametrize(
    ("terminal", "num_beams", "way", "shown"),
    [(True, 1, "stream", ["a", "b", "\n"]), (True, 2, "call", ["ab", "\n"]), (False, 1, "call", ["ab", "\n"])],
)
def test_the_shell_streams_where_it_can(monkeypatch, terminal, num_beams, way, shown):
    pipe, out = Spoken(), Terminal()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", out)
        assert _written(pipe, "hello", generation_mode="text", num_beams=num_beams).text == ["ab"]
    assert pipe.asked == [(way, "hello")] and [text for text in out.shown if text] == shown


@pytest.mark.slow
def test_the_shell_streams_to_a_terminal(tmp_path, monkeypatch, capsys):
    """What it writes in one piece elsewhere."""
    monkeypatch.chdir(tmp_path)
    command = ["text-image", "a cat", "--max-new-tokens", "9", "--steps", "1", "--height", "32", "--width", "48"]
    command += ["--out", "a.png", "--seed", "3", "--checkpoint", str(GOLDENS / "base/checkpoint")]
    assert main(command) == 0
    terminal = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", terminal)
        assert main(command) == 0
    assert len(terminal.shown) > 4 and "".join(terminal.shown) == capsys.readouterr().out


@pytest.mark.parametrize("stops", [(), ("b",), ("ab", "ba"), ("aab", "ca"), ("abcab", "cc"), ("aaaa",)])
def test_pieces_end_before_the_first_stop(stops):
    """Of texts whose last piece, as that of the pipeline, is the first by which they hold a stop."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        given = []
        for size in rng.integers(1, 4, 8):
            given.append("".join(rng.choice(list("abc"), size)))
            if any(stop in "".join(given) for stop in stops):
                break
        text, told = "".join(given), list(pieces_before_stop(iter(given), stops))
        starts = [n for n in range(len(text)) if any(text[n:].startswith(stop) for stop in stops)]
        assert "".join(told) == before_stop(text, stops) == text[: min(starts, default=len(text))]
        assert all(told)


def test_only_what_may_begin_a_stop_waits():
    heard = []

    def given():
        for piece in ("one", " t", "hr", "ee t", "wo"):
            yield piece
            heard.append("|")

    for piece in pieces_before_stop(given(), (" two", "x")):
        heard.append(piece)
    assert "".join(heard) == "one|| thr|ee||"
