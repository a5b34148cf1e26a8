"""Strings that end a text: the automaton against a search of the whole text, and what is written with it."""

import numpy as np
import pytest

from internvlu_jax import InternVLUPipeline
from internvlu_jax.decode.stop_strings import _byte_steps, stop_table, token_steps
from internvlu_jax.processing.tokenizer import Tokenizer
from tests.conftest import GOLDENS

CHECKPOINT = GOLDENS / "base/checkpoint"


def test_the_automaton_finds_what_a_search_finds():
    """Texts of two letters and strings with many common beginnings and ends, 300 times."""
    rng = np.random.default_rng(0)

    def word(longest: int) -> bytes:
        return bytes(rng.integers(97, 99, rng.integers(1, longest + 1)).tolist())

    for _ in range(300):
        strings = [word(6) for _ in range(rng.integers(1, 4))]
        pieces = [b"", *(word(4) for _ in range(5))]
        table = token_steps(_byte_steps(strings), pieces)
        state, text = 0, b""
        for token in rng.integers(0, len(pieces), 12):
            state, text = table[state, token], text + pieces[token]
            assert (state == len(table) - 1) == any(string in text for string in strings), (strings, text)


def test_long_and_many_strings():
    strings = tuple(f"({n}) {'x' * n}." for n in range(60))
    tokenizer = Tokenizer.byte_level()
    table = stop_table(tokenizer, strings)
    state = 0
    for token in tokenizer.encode("(59) " + "x" * 59 + "."):
        assert state != len(table) - 1
        state = table[state, token]
    assert state == len(table) - 1 and stop_table(tokenizer, strings) is table


@pytest.fixture(scope="module")
def pipe():
    return InternVLUPipeline.from_pretrained(CHECKPOINT)


def test_pieces_are_what_decoding_writes(pipe):
    for tokenizer in (pipe.processor.tokenizer, Tokenizer.trained(["naïve 犬 red red circle"] * 9, 20, ["a phrase"])):
        pieces = tokenizer.pieces()
        rng = np.random.default_rng(1)
        for ids in (
            *rng.integers(0, len(pieces), (50, 12)).tolist(),
            tokenizer.encode("naïve 犬, a phrase <|im_end|>"),
        ):
            assert b"".join(pieces[i] for i in ids).decode(errors="replace") == tokenizer.decode(ids)


def test_a_text_ends_with_the_token_that_completes_a_string(pipe):
    prompts = ["Describe this", "How many people can you see? Look at each one of them, and count."]
    free = pipe(prompts, max_new_tokens=12)
    string = free.text[0][3:5]
    stopped = pipe(prompts, max_new_tokens=12, stop_strings=["never written", string])
    decode = pipe.processor.tokenizer.decode
    for whole, cut in zip(free.tokens, stopped.tokens, strict=True):
        ends = [n for n in range(1, len(whole) + 1) if string in decode(whole[:n])]
        np.testing.assert_array_equal(cut, whole[: ends[0] if ends else len(whole)])
    assert len(stopped.tokens[0]) < len(free.tokens[0])
    np.testing.assert_array_equal(pipe(prompts, max_new_tokens=12, stop_strings=string).tokens[0], stopped.tokens[0])
