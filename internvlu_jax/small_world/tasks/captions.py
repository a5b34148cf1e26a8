"""Specs as text: one grammar for prompts, captions and questions, in English and, for words, in Chinese."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from internvlu_jax.small_world.tasks.specs import Group, SceneSpec

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_T = TypeVar("_T")

_FRAMES = ("{}", "{}", "{}", "{}", "a picture of {}", "draw {}", "an image of {}", "{} please")
_RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}

_CHINESE = {
    **{"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "orange": "橙色"},
    **{"black": "黑色", "pink": "粉色", "cyan": "青色", "brown": "棕色", "gray": "灰色"},
    **{
        "white": "白色",
        "light blue": "浅蓝色",
        "light yellow": "浅黄色",
        "light green": "浅绿色",
        "light gray": "浅灰色",
    },
    **{"circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星星", "diamond": "菱形", "cross": "十字"},
    **{"heart": "爱心", "ring": "圆环", "small": "小", "large": "大"},
}
_CHINESE_NUMBERS = "零一两三四"


def pick(options: Sequence[_T], rng: np.random.Generator) -> _T:
    """One of them at random."""
    return options[int(rng.integers(len(options)))]


def article(text: str) -> str:
    """ "a star", "an orange star"."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def plural(kind: str) -> str:
    return kind + ("es" if kind.endswith("s") else "s")


def name(group: Group) -> str:
    """What the objects are called, without their number: "large red stars"."""
    kind = group.kind if group.count == 1 else plural(group.kind)
    return " ".join(word for word in (group.size, group.colour, kind) if word)


def phrase(group: Group) -> str:
    """ "a large red star", "three stars"."""
    return article(name(group)) if group.count == 1 else f"{NUMBERS[group.count]} {name(group)}"


def listing(phrases: Sequence[str]) -> str:
    """ "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def plain(spec: SceneSpec) -> str:
    """The one plain way to say it, as reasoning ends with it."""
    return _said(spec, spec.relation, "on a {} background")


def caption(spec: SceneSpec, rng: np.random.Generator) -> str:
    """One of the ways to say it."""
    relation = pick(_RELATIONS[spec.relation], rng) if spec.relation else None
    background = pick(("on a {} background", "on a {} background", "on {}"), rng)
    return frame(rng).format(_said(spec, relation, background, rng))


def frame(rng: np.random.Generator) -> str:
    """Words around what a picture shows: often none, sometimes those of a request."""
    return pick(_FRAMES, rng)


def _said(spec: SceneSpec, relation: str | None, background: str, rng: np.random.Generator | None = None) -> str:
    phrases = [phrase(group) for group in spec.groups]
    text = f"{phrases[0]} {relation} {phrases[1]}" if relation else listing(phrases) if phrases else ""
    if spec.word is not None:
        word = _word(spec, rng)
        text = f"{word} {spec.word_place or 'and'} {text}" if text else word
    return f"{text} {background.format(spec.background)}" if spec.background not in (None, "white") else text


def _word(spec: SceneSpec, rng: np.random.Generator | None) -> str:
    colour = f"{spec.word_colour} " if spec.word_colour else ""
    ways = [f'the word "{spec.word}"', f"the {colour}word {spec.word}", f"the {colour}text {spec.word}"]
    ways[0] += f" in {spec.word_colour}" if colour else ""
    return ways[0] if rng is None else pick(ways, rng)


def chinese(spec: SceneSpec, rng: np.random.Generator) -> str:
    """One of the ways to say it in Chinese; relations between objects are not said.

    Raises:
        ValueError: there is a relation.
    """
    if spec.relation is not None:
        raise ValueError(f"{spec} has a relation; expected none in Chinese")
    objects = "和".join(_chinese_group(group) for group in spec.groups)
    if spec.word is None:
        text = objects
    else:
        colour = _CHINESE[spec.word_colour] + "的" if spec.word_colour else ""
        word = pick((f"{colour}文字“{spec.word}”", f"{colour}单词{spec.word}"), rng)
        between = {"above": "，下面是", "below": "，上面是", None: "和"}[spec.word_place]
        text = word + (between + objects if objects else "")
    if spec.background not in (None, "white"):
        text += f"，{_CHINESE[spec.background or 'white']}背景"
    return pick(("{}", "画{}", "一张图片：{}"), rng).format(text)


def _chinese_group(group: Group) -> str:
    colour = _CHINESE[group.colour] + "的" if group.colour else ""
    return (
        f"{_CHINESE_NUMBERS[group.count]}个{colour}{_CHINESE[group.size] if group.size else ''}{_CHINESE[group.kind]}"
    )
