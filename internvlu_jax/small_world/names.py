"""Worlds as sources of a training run, by name: "world:small", "world:small/general/picture?split=seen&seed=1&side=64".

After the world comes nothing (all tasks of `WEIGHTS`), a domain (all of its tasks alike), one task, or one kind of
it, as general/picture/position.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from internvlu_jax.small_world.source import WorldSource
from internvlu_jax.small_world.tasks.domains import DOMAINS

_NUMBERS = ("seed", "side", "length")


def open_world(name: str) -> WorldSource:
    """The source of that name.

    Raises:
        ValueError: there is no such world, task or option; says what there is.
    """
    parts = urlsplit(name)
    world, _, task = parts.path.partition("/")
    options: dict[str, str | int] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in (*_NUMBERS, "split"):
            raise ValueError(f"{name}: there is no option {key!r}; expected split, {', '.join(_NUMBERS)}")
        if key in _NUMBERS and not value.isdecimal():
            raise ValueError(f"{name}: {key} is {value!r}; expected a whole number")
        options[key] = int(value) if key in _NUMBERS else value
    try:
        return WorldSource(world, _weights(task), **options)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _weights(task: str) -> Mapping[str, float] | None:
    if not task:
        return None
    return {f"{task}/{name}": 1.0 for name in DOMAINS[task]} if task in DOMAINS else {task: 1.0}
