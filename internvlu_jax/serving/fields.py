"""The fields of a request, read one by one. What is not known is refused: without it the answer would be another."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from internvlu_jax.serving.errors import Refused

# Fields that say nothing of the answer.
_NO_MATTER = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})


def json_object(body: bytes) -> dict[str, Any]:
    """Raises Refused unless the body is a JSON object."""
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is no valid JSON; expected an object") from error
    if not isinstance(value, dict):
        raise Refused(400, f"the body is a JSON {type(value).__name__}; expected an object")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


class Fields:
    """Values by name, of which null counts as absent. Of a form all are texts, and are read as what is expected.

    Raises:
        Refused: there is a field that is neither known nor without matter.
    """

    def __init__(self, given: Mapping[str, Any], known: Collection[str]) -> None:
        self._given = {name: value for name, value in given.items() if value is not None}
        for name in self._given:
            if name not in known and name not in _NO_MATTER:
                said = name[:80]
                raise Refused(400, f"{said!r} is not supported; expected {', '.join(sorted(known))}", param=said)

    def get(self, name: str) -> Any:
        """As it was given, or None."""
        return self._given.get(name)

    def text(self, name: str, longest: int = 20_000) -> str | None:
        value = self.get(name)
        if value is not None and not (is_text(value) and len(value) <= longest):
            raise _wrong(name, value, f"a text of at most {longest} characters")
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = _number(self.get(name), int)
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
            raise _wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = _number(self.get(name), float)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _wrong(name, value, "a number")
        if not low <= value <= high:
            raise _wrong(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value in ("true", "false"):
            return value == "true"
        if value is not None and not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
        return bool(value)

    def one_of(self, name: str, choices: Collection[str], default: str) -> str:
        value = self.get(name)
        if value is not None and value not in choices:
            raise _wrong(name, value, " or ".join(map(repr, choices)))
        return default if value is None else value


def is_text(value: Any) -> bool:
    """A string without halves of characters, which JSON can hold and no tokenizer reads."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def _number(value: Any, kind: type) -> Any:
    """A text of a form as a number where it is one."""
    if not isinstance(value, str):
        return value
    try:
        return kind(value[:40])
    except ValueError:
        return value


def _wrong(name: str, value: Any, expected: str) -> Refused:
    said = repr(value)
    return Refused(400, f"{name} is {said if len(said) <= 60 else said[:60] + '...'}; expected {expected}", param=name)
