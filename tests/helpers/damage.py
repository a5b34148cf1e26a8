"""Damage to files as accidents do it: bytes that are cut, doubled, turned or foreign; other values in JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

_ODD_TEXT = [
    b"\0",
    b'"',
    b"{",
    b"]",
    b",",
    b"\n",
    b"\xff",
    b"null",
    b"-1",
    b"1e999",
    b"9" * 400,
    b"NaN",
    b"\\ud800",
    b"<image>",
]
_ODD_VALUES: list[Any] = [
    None, True, -1, 0, 1.5, 1e308, float("nan"), 10**400, "", "x", "\ud800", "\0", "../..", "http://a/b", "a" * 5000,
    [], {}, [[]], [None], {"": {}}, [1] * 50,
]  # fmt: skip
_INSTEAD = [
    b"", b"\0" * 100, b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{\0}\0", b"\x1f\x8b\x08\0", b"<html>", b"5", b"[]",
    b"{}", b'"', b"version https://git-lfs.github.com/spec/v1", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\n\n", b"null",
]  # fmt: skip


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The file after one to three accidents; text of JSON is changed as JSON half of the time."""
    for _ in range(int(rng.integers(1, 4))):
        is_json = data[:1] in (b"{", b"[") and rng.random() < 0.5
        data = (_other_json if is_json else _other_bytes)(data, rng)
    return data


def _other_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    kind = rng.integers(8)
    at = int(rng.integers(len(data) + 1)) if rng.random() < 0.6 else int(rng.integers(min(len(data), 64) + 1))
    length = int(2 ** rng.uniform(0, 8))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[:at] + data[at : at + length] * 2 + data[at + length :]
    if kind == 3:
        return data[:at] + rng.bytes(length) + data[at + length :]
    if kind == 4:
        return data[:at] + _ODD_TEXT[rng.integers(len(_ODD_TEXT))] + data[at:]
    if kind == 5 and rng.random() < 0.3:
        return _INSTEAD[rng.integers(len(_INSTEAD))]
    changed = bytearray(data)
    for place in rng.integers(0, max(len(changed), 1), int(rng.integers(1, 5))):
        if place < len(changed):
            changed[place] = int(rng.choice([changed[place] ^ (1 << int(rng.integers(8))), 0, 255, 127, 128]))
    return bytes(changed)


def _other_json(data: bytes, rng: np.random.Generator) -> bytes:
    """One value of it is another, is gone, or is there twice."""
    start = data.split(b"\n")
    which = int(rng.integers(len(start)))
    try:
        whole, value = True, json.loads(data)
    except (ValueError, RecursionError):
        try:
            whole, value = False, json.loads(start[which])
        except (ValueError, RecursionError):
            return data
    places = list(_places(value))
    if not places:
        return data
    holder, key = places[int(rng.integers(len(places)))]
    kind = rng.integers(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = _ODD_VALUES[int(rng.integers(len(_ODD_VALUES)))]
    sys.set_int_max_str_digits(0)
    text = json.dumps(value).encode()
    sys.set_int_max_str_digits(4300)
    return text if whole else b"\n".join([*start[:which], text, *start[which + 1 :]])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
