"""Prompts and edits of plain scenes, read by a second grammar, agree with their scenes."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from internvlu_jax.small_world import Scene
from internvlu_jax.small_world.scenes.scene import COLOURS as RGB
from internvlu_jax.small_world.tasks.edits import EDITS
from tests.helpers.world import examples
from tests.helpers.world_grammar import (
    ANY_BACKGROUND,
    ANY_COLOUR,
    COLOURS,
    beyond,
    fits,
    fulfils,
    meant,
    phrase,
    understood,
)

CHINESE = {
    **dict(zip(("红色", "绿色", "蓝色", "黄色", "紫色", "橙色", "黑色", "粉色"), COLOURS, strict=True)),
    **{"圆形": "circle", "正方形": "square", "三角形": "triangle", "星星": "star"},
    **{"浅蓝色": "light blue", "浅黄色": "light yellow"},
}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_prompts_agree_with_their_pictures(split):
    for example in [*examples("general/picture", split), *examples("text/picture", split)]:
        if example.topic != "chinese":
            assert fulfils(example.image, understood(example.prompt)), example


def test_descriptions_name_everything():
    for example in examples("general/description"):
        meaning, scene = understood(example.answer), example.source
        assert fulfils(scene, meaning), example
        assert all(colour for _, _, colour, _ in meaning["groups"])


def test_chinese_prompts_agree_with_their_pictures():
    number = dict(zip("一两三四", range(1, 5), strict=True))
    seen = 0
    for example in examples("text/picture"):
        if example.topic == "chinese":
            seen += 1
            scene, text = example.image, example.prompt
            coloured = re.search(r"(\w\w)的(?:文字|单词)", text.removeprefix("画").removeprefix("一张图片："))
            assert re.search(r"(?:文字“|单词)([A-Z0-9]+)", text)[1] == scene.word.text
            assert coloured is None or CHINESE[coloured[1]] == scene.word.colour
            objects = re.findall(r"([一两三四])个(\w+?色)的(\w+?)(?=，|$)", text)
            assert [(number[n], CHINESE[c], CHINESE[k]) for n, c, k in objects] == [
                (1, item.colour, item.kind) for item in scene.items
            ]
            assert ("下面是" in text, "上面是" in text) == tuple(
                any(beyond(scene.word, item, place) for item in scene.items) for place in ("above", "below")
            )
            back = re.search(r"，(\w+)背景$", text)
            assert scene.background == (CHINESE[back[1]] if back else "white")
    assert seen > 80


# Edits


def edited(text: str, scene: Scene, after: Scene) -> Scene:
    """The scene after an instruction; what that leaves open is taken from the picture that was drawn."""
    if found := re.match(rf"(?:change the background to|make the background|use a) ({ANY_BACKGROUND})", text):
        return replace(scene, background=found[1])
    if found := re.match(r"(?:change (?:the word|\w+) to|replace \w+ with|把\w+改成)\s?([A-Z0-9]+)$", text):
        return replace(scene, word=replace(scene.word, text=found[1]))
    if found := re.match(r"(?:remove|take away|delete) the (.+)", text):
        gone = meant(found[1], scene)
        return replace(scene, items=tuple(item for item in scene.items if item != gone))
    if found := re.match(r"(?:add|put|also draw) (an? (?:(?!place).)+?)(?: in the (.+) corner)?$", text):
        new = [item for item in after.items if item not in scene.items]
        _, size, colour, kind = phrase(found[1])
        assert len(new) == 1 and fits(new[0], size, colour, kind)
        assert not found[2] or is_at(new[0], found[2])
        return replace(scene, items=(*scene.items, new[0]))
    old, new = changed(text, scene, after)
    return replace(scene, items=tuple(new if item == old else item for item in scene.items))


def changed(text: str, scene: Scene, after: Scene):
    """An object before and after an instruction that is about it."""
    if found := re.match(r"move the (.+) to the (.+?)( corner)?$", text):
        old = meant(found[1], scene)
        (new,) = (item for item in after.items if item not in scene.items)
        assert is_at(new, found[2])
        assert new.x == old.x or {"left", "right"} & set(found[2].split())
        assert new.y == old.y or {"top", "bottom"} & set(found[2].split())
        return old, replace(old, x=new.x, y=new.y)
    for pattern in (
        r"turn the (.+) into an? (.+)",
        r"replace the (.+) with an? (.+)",
        r"put (.+) in the place of the (.+)",
    ):
        if found := re.match(pattern, text):
            name, new = (found[2], found[1].split(" ", 1)[1]) if text.startswith("put") else (found[1], found[2])
            _, _, colour, kind = phrase(f"one {new}")
            old = meant(name, scene)
            return old, replace(old, kind=kind, colour=colour or old.colour)
    if found := re.match(r"(?:make the|the) (.+?) (?:should be )?(smaller|larger)", text):
        old = meant(found[1], scene)
        return old, replace(old, size={"smaller": "small", "larger": "large"}[found[2]])
    found = re.match(rf"(?:make|paint|turn|change the colour of) the (.+?) (?:to )?({ANY_COLOUR})$", text)
    assert found, text
    old = meant(found[1], scene)
    return old, replace(old, colour=found[2])


def is_at(item, where: str) -> bool:
    """Near that edge, or in that corner."""
    left, top, right, bottom = item.box
    ends = {"left": left, "top": top, "right": 1 - right, "bottom": 1 - bottom}
    return all(ends[side] < 0.16 for side in where.split())


def pixel_box(box, side: int) -> tuple[slice, slice]:
    left, top, right, bottom = (edge * side for edge in box)
    return slice(int(top), int(np.ceil(bottom))), slice(int(left), int(np.ceil(right)))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_edits_do_what_they_say(split):
    kinds = Counter()
    for example in [*examples("general/edit", split), *examples("text/edit", split)]:
        before, after = example.source, example.image
        assert edited(example.prompt, before, after) == after, example
        kinds[example.topic] += 1
    assert set(kinds) == set(EDITS) and min(kinds.values()) > 40


def test_edits_leave_the_rest_as_it_is():
    """Pixels outside the boxes of what changed are equal; of a background, those inside the objects are."""
    for example in [*examples("general/edit", count=200), *examples("text/edit", count=50)]:
        for side in (32, 64):
            before, after = example.source.draw(side), example.image.draw(side)
            same = (before == after).all(2)
            assert not same.all(), example
            if example.topic == "background":
                colours = [RGB[item.colour] for item in example.source.items]
                covered = np.any([(before == colour).all(2) for colour in colours], axis=0)
                assert covered.any() and same[covered].all(), example
                continue
            words = {example.source.word, example.image.word} if example.topic == "text" else set()
            for thing in {*example.source.items} ^ {*example.image.items} | words:
                same[pixel_box(thing.box, side)] = True
            assert same.all(), example
