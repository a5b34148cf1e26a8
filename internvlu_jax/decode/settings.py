"""How a text is written: what ends it, and how each of its tokens is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from internvlu_jax.decode.model import Prompt
from internvlu_jax.decode.sampling import SMALLEST


@dataclass(frozen=True, kw_only=True, eq=False)
class TextSettings:
    """How texts are written. Tokens are chosen greedily, with `keys` at random, with `num_beams` > 1 by beam search.

    A new `buffer` or top-k compiles anew, and a top-p or penalty that was 1 or becomes it; other values do not.

    stop_ids: tokens of which the first ends a row. pad_id: what follows it.
    max_new_tokens: of each row at most. buffer: the largest `max_new_tokens` of the compiled program. The cache needs
        prompt length + buffer slots; it must have at least `buffer` and one.
    keys: [b], see `utils.seeds.numbered_keys`. temperature, top_p, top_k: as in `sampling.choose`.
    repetition_penalty: as in `sampling.penalised`, whatever way tokens are chosen; 1 is none.
    stop_table: int [states, tokens] of strings that end a text, too (`stop_strings.stop_table`); not with beams.
    """

    stop_ids: Sequence[int]
    pad_id: int
    max_new_tokens: int
    buffer: int
    keys: Key[Array, "b"] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    stop_table: np.ndarray | None = None

    def check(self, prompt: Prompt) -> None:
        """Raises ValueError if a setting has no meaning, or settings do not go together or with the prompt."""
        slots = prompt.cache.slots
        if not 1 <= self.max_new_tokens <= self.buffer:
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens}; expected 1 to {self.buffer}, the size of the buffer"
            )
        if slots <= self.buffer:
            raise ValueError(f"the cache has {slots} slots; expected room for a prompt and {self.buffer} new tokens")
        if not self.stop_ids:
            raise ValueError("stop_ids is empty; expected at least one token that ends a text")
        self._check_choice()
        self._check_beams()

    def _check_choice(self) -> None:
        if not self.temperature >= SMALLEST:
            raise ValueError(f"temperature is {self.temperature}; expected a number from {SMALLEST} on")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a number over 0 and at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; expected at least 1, or None")
        if not self.repetition_penalty >= SMALLEST:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; expected a number from {SMALLEST} on (1 is none)"
            )

    def _check_beams(self) -> None:
        beams = self.num_beams
        if beams < 1:
            raise ValueError(f"num_beams is {beams}; expected at least 1")
        if beams > 1 and self.keys is not None:
            raise ValueError(f"num_beams is {beams} and keys are given; beam search draws nothing. Use one of the two")
        if beams > 1 and self.stop_table is not None:
            raise ValueError(f"num_beams is {beams} and a stop_table is given; beams end with stop_ids alone")

    @property
    def static(self) -> dict[str, Any]:
        """What a program is compiled for, beside shapes, where there are no beams."""
        return {"buffer": self.buffer, "top_k": None if self.keys is None else self.top_k}

    def rules(self, prompt: Prompt) -> Rules:
        """What a program is told; numbers are of the host."""
        return Rules(
            prompt_lengths=prompt.lengths,
            stops=np.asarray(self.stop_ids, np.int32),
            pad_id=np.int32(self.pad_id),
            keys=self.keys,
            temperature=np.float32(self.temperature),
            top_p=None if self.top_p == 1 else np.float32(self.top_p),
            penalty=None if self.repetition_penalty == 1 else np.float32(self.repetition_penalty),
            stop_table=self.stop_table,
        )


class Rules(NamedTuple):
    """What stays the same while a text is written, arrays of the host or the device; None is none of it.

    prompt_lengths: int32 [b]. stops: int32 [n], ids that end a text. pad_id: int32, written after the end. keys: [b],
    of random choices. temperature, top_p, penalty: float32, as in `sampling`. stop_table: see `stop_strings`.
    """

    prompt_lengths: Any
    stops: Any
    pad_id: Any
    keys: Any
    temperature: Any
    top_p: Any
    penalty: Any
    stop_table: Any
