"""Ending a text where it holds a string, whatever tokens the string is written with.

An automaton after Aho and Corasick (1975) reads the bytes of a text and knows how much of a string its end is. Here its
steps are those of whole tokens, in one table, so that the loop that writes looks one number up for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from internvlu_jax.processing.tokenizer import Tokenizer

_STATES = 16  # the table has a multiple of so many rows, so that few programs are compiled


@lru_cache(maxsize=2)  # a table of the released vocabulary has 0.3 MB for every byte of its strings
def stop_table(tokenizer: Tokenizer, strings: tuple[str, ...]) -> Int[np.ndarray, "s w"]:
    """The state of a text after a token, by its state before. A text begins in state 0 and ends in the last.

    Tokens that decoding leaves out change nothing. Raises ValueError where there are more than 32,000 characters.
    """
    steps = _byte_steps([string.encode() for string in strings])
    return token_steps(steps, tokenizer.pieces())


def token_steps(steps: Int[np.ndarray, "s 256"], pieces: Sequence[bytes]) -> Int[np.ndarray, "s w"]:
    """Steps of tokens from steps of bytes: all tokens' first bytes, all second ones, ..."""
    order = np.argsort([-len(piece) for piece in pieces], kind="stable")
    lengths = np.array([len(pieces[i]) for i in order])
    after = np.repeat(np.arange(len(steps), dtype=np.int16)[:, None], len(pieces), axis=1)
    for place in range(lengths.max(initial=0)):
        count = int((lengths > place).sum())
        byte = np.array([pieces[i][place] for i in order[:count]])
        after[:, :count] = steps[after[:, :count], byte]
    table = np.empty_like(after)
    table[:, order] = after
    return table


def _byte_steps(strings: Sequence[bytes]) -> Int[np.ndarray, "s 256"]:
    """Of the state of a text after each byte. States are the beginnings of the strings; the last one is the end."""
    begun = sorted({string[:n] for string in strings for n in range(len(string) + 1)}, key=len)
    count = len(begun) + 1
    states = -(-count // _STATES) * _STATES
    if states > np.iinfo(np.int16).max:
        raise ValueError(f"stop_strings have {count} beginnings; expected at most 32000. Take shorter ones")
    number = {beginning: n for n, beginning in enumerate(begun)}
    steps = np.full((states, 256), states - 1, np.int16)
    fallback = [0] * len(begun)
    for beginning, n in number.items():  # shorter ones first
        if any(beginning.endswith(string) for string in strings):
            continue  # found: the step into it is redirected below, and nothing leads out of the end
        # What does not go on with this beginning goes on with the longest shorter one that the text ends with.
        steps[n] = steps[fallback[n]] if beginning else 0
        for byte in range(256):
            longer = number.get(beginning + bytes([byte]))
            if longer is not None:
                fallback[longer] = int(steps[n, byte]) if beginning else 0
                steps[n, byte] = longer
    ends = [n for beginning, n in number.items() if any(beginning.endswith(string) for string in strings)]
    steps[np.isin(steps, ends)] = states - 1
    return steps
