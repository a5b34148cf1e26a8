"""Text as it is written: pieces that are whole characters, and what a call gives at the end."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

from internvlu_jax.processing.tokenizer import Tokenizer

T = TypeVar("T")

Writing = Generator[str, None, Callable[[], T]]
"""Yields pieces of text, and gives what makes the result once all are out."""


class TextStream(Generic[T]):
    """An iterator of pieces of text. Together they are the text of the result.

        for piece in stream:
            print(piece, end="", flush=True)
        out = stream.result()

    Nothing is computed before the first piece is asked for. Whoever stops asking leaves at most a block of tokens to be
    finished; `close` says so at once.
    """

    def __init__(self, writing: Writing[T]) -> None:
        self._writing = writing
        self._finish: Callable[[], T] | None = None
        self._results: list[T] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._writing)
        except StopIteration as end:
            self._finish = self._finish or end.value
            raise StopIteration from None

    def result(self) -> T:
        """What the call gives: waits for the text, and for the picture where one follows. The same every time.

        Raises:
            ValueError: the stream was closed, or ended with an error.
        """
        if not self._results:
            for _ in self:
                pass
            if self._finish is None:
                raise ValueError("the stream was closed before its text was written; expected a call of its own")
            self._results.append(self._finish())
        return self._results[0]

    def close(self) -> None:
        """Ends the writing."""
        self._writing.close()


def pieces(blocks: Generator[np.ndarray, None, T], tokenizer: Tokenizer) -> Generator[str, None, T]:
    """The text of blocks of token ids, special tokens left out. Together the pieces are `tokenizer.decode` of all.

    A character whose bytes are not all there waits for them. What never becomes one is U+FFFD.
    """
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    known = _bytes(tokenizer)
    while True:
        try:
            block = next(blocks)
        except StopIteration as end:
            rest = characters.decode(b"", final=True)
            if rest:
                yield rest
            return end.value
        text = characters.decode(b"".join(known[i] if i < len(known) else b"" for i in block.tolist()))
        if text:
            yield text


def before_stop(text: str, stops: Sequence[str]) -> str:
    """What stands before the first stop string; the pipeline leaves it, and the rest of its last token, at the end."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def pieces_before_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pieces of a text as far as `before_stop`. An end that may be the beginning of a stop waits for what follows.

    All of `pieces` is asked for.
    """
    held, stopped = "", False
    for piece in pieces:
        if stopped:
            continue
        held += piece
        before = before_stop(held, stops)
        stopped = before != held
        told = before if stopped else before[: len(before) - _begun(before, stops)]
        held = held[len(told) :]
        if told:
            yield told
    if held and not stopped:
        yield held


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters of a stop a text ends with, at most."""
    most = min(max(map(len, stops), default=0), len(text))
    return next((n for n in range(most, 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0)


@lru_cache(maxsize=2)
def _bytes(tokenizer: Tokenizer) -> list[bytes]:
    return tokenizer.pieces()
