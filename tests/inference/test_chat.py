"""Conversations are fresh prompts, token for token, of which only what is new is read."""

import numpy as np
import pytest
from PIL import Image

from internvlu_jax import InternVLUPipeline
from internvlu_jax.decode.model import LanguageModel, grown
from internvlu_jax.inference import chat, programs, writing
from internvlu_jax.inference.chat import ChatCache
from internvlu_jax.inference.options import Options
from internvlu_jax.processing.chat import UNDERSTANDING_SYSTEM
from internvlu_jax.processing.rows import Row
from tests.conftest import GOLDENS


@pytest.fixture(scope="module")
def pipe():
    return InternVLUPipeline.from_pretrained(GOLDENS / "base/checkpoint")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8))


def user(text: str, *pictures) -> dict:
    images = [{"type": "image", "image": p} for p in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}] if images else text}


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.fixture
def counted(pipe, monkeypatch):
    """Of every call the tokens that are embedded, padding left out, and the tiles that are looked at."""
    counts = {"tokens": [], "tiles": []}
    embed, see, pack = programs.embed, programs.visual_tokens, writing.pack

    def packed(rows, tokenizer):
        counts["tokens"].append(sum(len(row.ids) for row in rows))
        return pack(rows, tokenizer)

    monkeypatch.setattr(writing, "pack", packed)
    monkeypatch.setattr(programs, "visual_tokens", lambda *g: counts["tiles"].append(len(g[2])) or see(*g))
    monkeypatch.setattr(programs, "embed", embed)
    return counts


FIRST = [user("what is this", picture(0))]
THEN = [*FIRST, said("A  cat.\n"), user("And this one?", picture(1), picture(0))]
LAST = [*THEN, said("Two, I think"), user("why")]


def by_hand(pipe) -> np.ndarray:
    """The tokens of `LAST` as one text."""
    shown = "<img>" + "<IMG_CONTEXT>" * pipe.config.vlm.tokens_per_tile + "</img>"
    text = (
        f"<|im_start|>system\n{UNDERSTANDING_SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{shown}\nwhat is this.<|im_end|>\n<|im_start|>assistant\nA  cat.\n<|im_end|>\n"
        f"<|im_start|>user\n{shown}\n{shown}\nAnd this one?<|im_end|>\n<|im_start|>assistant\nTwo, I think<|im_end|>\n"
        "<|im_start|>user\nWhy.<|im_end|>\n<|im_start|>assistant\n"
    )
    return np.array(pipe.processor.tokenizer.encode(text), np.int32)


def written(pipe, ids: np.ndarray, pictures, **options) -> np.ndarray:
    """What follows a fresh prompt, by the loop that writes it in one program."""
    tiles = np.concatenate([pipe.processor.process("a", p)[0].tiles for p in pictures])
    given = Options(
        mode="text", do_sample=options.pop("do_sample", False), seed=options.pop("seed", 0),
        **{"max_new_tokens": 9, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0,
           "max_tiles": 1, "stop_strings": (), **chat._NOT_OF_TEXT, **options},
    )  # fmt: skip
    return pipe._write([Row(ids)], pipe._visual_tokens(tiles), given).tokens[0]


def test_a_conversation_is_its_text(pipe):
    np.testing.assert_array_equal(pipe._asked(LAST, 1).ids, by_hand(pipe))
    asked = pipe._asked([{"role": "system", "content": "Be short"}, user("a")], 1)
    text = "<|im_start|>system\nBe short<|im_end|>\n<|im_start|>user\nA.<|im_end|>\n<|im_start|>assistant\n"
    assert asked.ids.tolist() == pipe.processor.tokenizer.encode(text)


def test_the_first_turn_is_the_call(pipe):
    out = pipe.chat(FIRST, max_new_tokens=9)
    call = pipe("what is this", picture(0), max_new_tokens=9)
    np.testing.assert_array_equal(out.tokens, call.tokens[0])
    assert out.text == call.text[0] and out.read == out.prompt_tokens


SAMPLED = {"do_sample": True, "seed": 5, "temperature": 1.5}


@pytest.mark.parametrize("options", [{}, pytest.param(SAMPLED, marks=pytest.mark.slow)])
def test_turns_equal_a_fresh_prompt_and_read_what_is_new(pipe, counted, options):
    cache, options = ChatCache(), {"max_new_tokens": 9, **options}
    outs = [pipe.chat(messages, cache=cache, **options) for messages in (FIRST, THEN, LAST)]
    np.testing.assert_array_equal(
        outs[-1].tokens, written(pipe, by_hand(pipe), [picture(n) for n in (0, 1, 0)], **options)
    )
    lengths = [len(pipe._asked(messages, 1).ids) for messages in (FIRST, THEN, LAST)]
    # What was written is not what the messages say, so from the start of the answers on all is new.
    new = [lengths[0], lengths[1] - lengths[0], lengths[2] - lengths[1]]
    assert [out.prompt_tokens for out in outs] == lengths
    assert [out.read for out in outs] == new == counted["tokens"][:3]
    assert counted["tiles"][:2] == [1, 2] and len(counted["tiles"]) == 3  # the third is the fresh prompt's


def test_an_answer_as_it_was_given_is_not_read_again(pipe):
    """Made known by a text that a tokenizer cuts as it was written; the last token was never read."""
    cache = ChatCache()
    first = pipe.chat(FIRST, cache=cache, max_new_tokens=3)
    ids = pipe.processor.tokenizer.encode(first.text)
    messages = [*FIRST, said(first.text), user("why")]
    second = pipe.chat(messages, cache=cache, max_new_tokens=3)
    common = int(np.argmin(np.append(np.array(ids[:2]) == first.tokens[:2], False)))
    assert second.read == second.prompt_tokens - first.prompt_tokens - common
    fresh = pipe.chat(messages, cache=ChatCache(), max_new_tokens=3)
    assert fresh.read == fresh.prompt_tokens
    np.testing.assert_array_equal(second.tokens, fresh.tokens)


def test_what_is_another_conversation_is_read(pipe):
    """Another picture of the same size has the same ids; the same messages again need one token; a longer text needs a
    larger cache."""
    cache = ChatCache()
    pipe.chat(FIRST, cache=cache, max_new_tokens=2)
    again = pipe.chat(FIRST, cache=cache, max_new_tokens=2)
    assert again.read == 1
    other = [user("what is this", picture(7))]
    out = pipe.chat(other, cache=cache, max_new_tokens=2)
    before = int(np.flatnonzero(pipe._asked(other, 1).ids == pipe.processor.tokenizer.img_context)[0])
    assert out.read == out.prompt_tokens - before
    np.testing.assert_array_equal(out.tokens, pipe.chat(other, cache=ChatCache(), max_new_tokens=2).tokens)
    long = [*other, said("no"), user("word " * 600)]
    grown = pipe.chat(long, cache=cache, max_new_tokens=2)
    assert grown.prompt_tokens > 512 and grown.read < grown.prompt_tokens
    np.testing.assert_array_equal(grown.tokens, pipe.chat(long, cache=ChatCache(), max_new_tokens=2).tokens)


@pytest.mark.parametrize("times, left", [(2, 2), (4, 1)])
def test_a_long_conversation_leaves_no_large_cache_to_short_ones(pipe, times, left):
    """Every token would look at all its slots. What is twice as large as need be goes on."""
    asked = pipe._asked(FIRST, 1)
    fresh, _ = pipe._read_new(asked, None, asked.marks, room=32)
    slots = fresh.cache.slots
    large = pipe.on.run(grown, LanguageModel(pipe.model), pipe.params, fresh.cache, capacity=times * slots)
    prompt, read = pipe._read_new(asked, large, asked.marks, room=32)
    assert prompt.cache.slots == left * slots
    assert read == (1 if left == times else len(asked.ids))


def test_special_tokens_that_were_written_are_read_again(pipe, monkeypatch):
    """Written with the language model's table; in a prompt they have their own. So what follows them is not kept."""
    ref, cache, real = pipe.processor.tokenizer.id_of("<ref>"), ChatCache(), pipe._blocks

    def with_special(prompt, options):
        generated, tokens = yield from real(prompt, options)
        return generated, np.where(np.arange(len(tokens)) == 4, ref, tokens)

    first = pipe.chat(FIRST, cache=cache, max_new_tokens=9)
    _, marks = cache.take()
    np.testing.assert_array_equal(marks[first.prompt_tokens :], first.tokens[:8])
    monkeypatch.setattr(pipe, "_blocks", with_special)
    pipe.chat(FIRST, cache=cache, max_new_tokens=9)
    _, marks = cache.take()
    np.testing.assert_array_equal(marks[first.prompt_tokens :], first.tokens[:4])


def test_the_pipeline_keeps_the_last_conversation(pipe):
    pipe._conversation.clear()
    pipe.chat(FIRST, max_new_tokens=2)
    assert pipe.chat(THEN, max_new_tokens=2).read < len(pipe._asked(THEN, 1).ids)
    stream = pipe.stream_chat(LAST, max_new_tokens=30)
    next(stream)
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.result()
    whole = len(pipe._asked(LAST, 1).ids)
    assert pipe.chat(LAST, max_new_tokens=2).read == whole  # nothing was left
    assert pipe.chat(LAST, max_new_tokens=2).read == 1
    pipe.unload_lora_weights()  # as after any change of the weights
    assert pipe.chat(LAST, max_new_tokens=2).read == whole


def test_how_an_answer_ends(pipe):
    out = pipe.chat(FIRST, max_new_tokens=6)
    assert not out.ended and len(out.tokens) == 6
    until = pipe.chat(FIRST, max_new_tokens=30, stop_strings=out.text[1:3])
    assert until.ended and out.text[1:3] in until.text and len(until.tokens) < 30
    sampled = [pipe.chat(FIRST, max_new_tokens=6, do_sample=True, seed=s).tokens.tolist() for s in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
