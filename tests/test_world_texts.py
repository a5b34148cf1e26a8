"""Texts of plain scenes, read by a second grammar that shares no code with the engine, agree with their scenes."""

import itertools
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from internvlu_jax.data.world import SMALL, Scene
from internvlu_jax.data.world.domains.reasoning import RIDDLES
from internvlu_jax.data.world.edits import EDITS
from internvlu_jax.data.world.questions import QUESTIONS
from internvlu_jax.data.world.scene import COLOURS as RGB
from internvlu_jax.data.world.source import record_of
from internvlu_jax.data.world.steps import STEPS
from internvlu_jax.processing.chat import IMAGE_MARK
from tests.world_parts import examples

COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLOURS, SIZES, BACKGROUNDS = SMALL.colours, ("small", "large"), SMALL.backgrounds
NAMES = {**{kind: kind for kind in SMALL.kinds}, **{kind + "s": kind for kind in SMALL.kinds}}
ANY_COLOUR, ANY_BACKGROUND = "|".join(COLOURS), "|".join(BACKGROUNDS)
FRAME = re.compile(r"^(?:a picture of |draw |an image of )?(.*?)(?: please)?$")
CHINESE = {
    **dict(zip(("红色", "绿色", "蓝色", "黄色", "紫色", "橙色", "黑色", "粉色"), COLOURS, strict=True)),
    **{"圆形": "circle", "正方形": "square", "三角形": "triangle", "星星": "star"},
    **{"浅蓝色": "light blue", "浅黄色": "light yellow"},
}


# Prompts


def phrase(text: str) -> tuple[int, str | None, str | None, str]:
    """ "two small red stars" -> (2, "small", "red", "star")."""
    words = text.split()
    size = next((word for word in words if word in SIZES), None)
    colour = next((word for word in words if word in COLOURS), None)
    known = {size, colour} - {None}
    assert set(words[1:-1]) == known and words[0] in COUNTS and words[-1] in NAMES, text
    return COUNTS[words[0]], size, colour, NAMES[words[-1]]


def understood(text: str) -> dict:
    """What a prompt asks for."""
    match = FRAME.match(text)
    assert match
    text = match[1]
    meaning = {"groups": [], "relation": None, "background": "white", "word": None, "colour": None, "place": None}
    if found := re.search(rf" on (?:a )?({ANY_BACKGROUND})(?: background)?$", text):
        meaning["background"], text = found[1], text[: found.start()]
    word = re.match(rf'the word "(\w+)"(?: in ({ANY_COLOUR}))?', text)
    plain = re.match(rf"the (?:({ANY_COLOUR}) )?(?:word|text) (\w+)", text)
    if word or plain:
        found = word or plain
        meaning["word"], meaning["colour"] = (word[1], word[2]) if word else (plain[2], plain[1])
        rest = re.match(r" (and|above|below) (.+)", text[found.end() :])
        if not rest:
            assert found.end() == len(text), text
            return meaning
        meaning["place"], text = {"and": None}.get(rest[1], rest[1]), rest[2]
    if found := re.search(r" (?:to the )?(left of|right of|above|below|under) ", text):
        meaning["relation"] = found[1].replace("under", "below")
        parts = [text[: found.start()], text[found.end() :]]
    else:
        parts = re.split(r", | and ", text)
    meaning["groups"] = [phrase(part) for part in parts]
    return meaning


def fits(item, size, colour, kind) -> bool:
    return item.kind == kind and colour in (None, item.colour) and size in (None, item.size)


def fulfils(scene: Scene, meaning: dict) -> bool:
    """Whether some way to take the objects for what is said makes all of it true."""
    wanted = [(n, rest) for n, (count, *rest) in enumerate(meaning["groups"]) for _ in range(count)]
    word = scene.word
    if len(wanted) != len(scene.items) or scene.background != meaning["background"]:
        return False
    if (word.text if word else None) != meaning["word"] or (word and meaning["colour"] not in (None, word.colour)):
        return False
    if meaning["place"] and not all(beyond(word, item, meaning["place"]) for item in scene.items):
        return False
    return any(
        all(fits(item, *rest) for item, (_, rest) in zip(order, wanted, strict=True))
        and (meaning["relation"] is None or all_related(order, wanted, meaning["relation"]))
        for order in itertools.permutations(scene.items)
    )


def beyond(word, item, place: str) -> bool:
    return item.box[1] > word.box[3] if place == "above" else item.box[3] < word.box[1]


def all_related(order, wanted, relation: str) -> bool:
    firsts, seconds = ([item for item, (n, _) in zip(order, wanted, strict=True) if n == group] for group in (0, 1))
    return all(is_related(relation, a, b, 0.2) for a, b in itertools.product(firsts, seconds))


def is_related(relation: str, a, b, least: float) -> bool:
    difference = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[relation]
    return difference >= least


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


def meant(name: str, scene: Scene):
    """The one object that is called so."""
    _, size, colour, kind = phrase(f"one {name}")
    found = [item for item in scene.items if fits(item, size, colour, kind)]
    assert len(found) == 1, (name, scene)
    return found[0]


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


# Questions


def answered(text: str, scene: Scene) -> str:
    """The answer, from the scene alone."""
    items = scene.items
    yes = {True: "yes", False: "no"}

    def called(name: str):
        words = name.split()
        return [i for i in items if fits(i, None, words[0] if len(words) > 1 else None, NAMES[words[-1]])]

    if found := re.match(r"(?:Is there|Can you see) an? (.+?)(?: in the picture)?\?", text):
        return yes[bool(called(found[1]))]
    if found := re.match(r"How many (.+?) (?:are there|are in the picture|do you see)\?", text):
        return str(len(items if found[1] == "objects" else called(found[1])))
    if found := re.match(r"What colou?r is the (.+)\?", text):
        return scene.background if found[1] == "background" else called(found[1])[0].colour
    if found := re.match(r"(?:What shape is the (\w+) object|Which shape is (\w+))\?", text):
        (item,) = (item for item in items if item.colour in found.groups())
        return item.kind
    if found := re.match(r"Is the (.+) (left or right of|above or below) the (.+)\?", text):
        a, b = meant(found[1], scene), meant(found[3], scene)
        if "left" in found[2]:
            return "left" if a.x < b.x else "right"
        return "above" if a.y < b.y else "below"
    if found := re.match(r"Is the (.+) (left of|right of|above|below) the (.+)\?", text):
        return yes[is_related(found[2], meant(found[1], scene), meant(found[3], scene), 0.1)]
    if found := re.match(r"Is the (.+) small or large\?", text):
        return meant(found[1], scene).size
    if found := re.match(r"Are there (more|fewer) (\w+) than (\w+)\?", text):
        a, b = (len(called(name)) for name in found.groups()[1:])
        return yes[a > b if found[1] == "more" else a < b]
    if found := re.match(r"Which is (larger|smaller), the (.+) or the (.+)\?", text):
        pick = max if found[1] == "larger" else min
        return pick((meant(name, scene) for name in found.groups()[1:]), key=lambda item: item.radius).kind
    assert text in ("What does the word say?", "What is written in the picture?", "Read the text.", "图片上写着什么？")
    return scene.word.text


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answers_are_right(split):
    kinds, answers = Counter(), Counter()
    for example in [*examples("general/question", split), *examples("text/question", split)]:
        assert answered(example.prompt, example.source) == example.answer, example
        kinds[example.topic] += 1
        answers[example.topic, example.answer] += 1
    assert set(kinds) == set(QUESTIONS) and min(kinds.values()) > 90
    for kind in ("existence", "relation"):
        assert 0.5 < answers[kind, "yes"] / answers[kind, "no"] < 2.5
    if split == "train":
        assert max(answers["count", str(n)] for n in range(5)) < 2.2 * min(answers["count", str(n)] for n in range(5))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_further_questions_of_a_conversation(split):
    """Every answer is right, none is given away by another, and the record has them as turns of one picture."""
    numbers = Counter()
    for example in examples("general/conversation", split, count=300):
        turns = ((example.prompt, example.answer), *example.further)
        assert all(answered(text, example.source) == answer for text, answer in turns), example
        assert len(set(turns)) == len(turns)
        numbers[len(example.further)] += 1
        record = record_of(example, "x:1", 64)
        assert [answer for _, answer in record.turns] == [answer for _, answer in turns]
        assert [IMAGE_MARK in text for text, _ in record.turns] == [True] + [False] * len(example.further)
    assert max(numbers) == 5 and numbers[5] > 150


# Reasoning

THINGS = {
    **{"Sundays": 1, "horns": 1, "moons": 1, "eyes": 2, "halves": 2, "lamps": 3, "legs": 4, "seasons": 4, "corners": 0},
    **{"wheels": 0, "wings": 2},
}
OWNED = {"a triangle": 3, "a square": 4, "a bicycle": 2, "a tricycle": 3, "a car": 4}
MIXED = {
    frozenset(pair): colour
    for colour, pair in {
        "orange": ("red", "yellow"),
        "green": ("blue", "yellow"),
        "purple": ("red", "blue"),
        "pink": ("red", "white"),
    }.items()
}


def number_meant(prompt: str) -> int:
    if found := re.match(r"as many .+ as (an? [\w ]+|the earth) has (\w+)", prompt):
        return THINGS[found[2]] or OWNED[found[1]]
    if found := re.match(r"half of (\w+)", prompt):
        return WORDS.index(found[1]) // 2
    a, sign, b = re.match(r"(\w+) (plus|minus) (\w+)", prompt).groups()
    return WORDS.index(a) + WORDS.index(b) * (1 if sign == "plus" else -1)


@pytest.mark.parametrize("kind", RIDDLES)
def test_riddles_resolve_to_what_they_mean(kind):
    """Worked out anew, where a rule and not a fact is behind it; the reasoning ends with what is drawn."""
    asked = [example for example in examples("reasoning/words") if example.topic == kind]
    assert len(asked) > 40
    for example in asked:
        check_riddle(kind, example.prompt, concluded(example.answer, example.truth))


def concluded(reasoning: str, wanted) -> dict:
    """What the reasoning ends with, which is what is meant."""
    said = understood(re.search(r"So draw (.+)\.$", reasoning)[1])
    groups = [(group.count, group.size, group.colour, group.kind) for group in wanted.groups]
    assert (said["groups"], said["relation"], said["word"]) == (groups, wanted.relation, wanted.word)
    return said


def check_riddle(kind: str, text: str, said: dict) -> None:
    groups = said["groups"]
    if kind == "number":
        assert number_meant(text) == groups[0][0]
    elif kind == "size":
        assert {groups[0][1], text.split()[-1]} == {"small", "large"}
    elif kind == "mirror":
        shown = understood(re.split(", seen|, turned", text)[0])
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        assert (shown["groups"], opposite[shown["relation"]]) == (groups, said["relation"])
        assert ("mirror" in text) == (said["relation"] in ("left of", "right of"))
    elif kind == "swap":
        (_, _, a, first), (_, _, b, second) = understood(text.removesuffix(" with their colours swapped"))["groups"]
        assert groups == [(1, None, b, first), (1, None, a, second)]
    elif kind == "letter":
        if found := re.match(r"the result of (\d+) \+ (\d+)", text):
            assert int(said["word"]) == int(found[1]) + int(found[2])
        else:
            assert ord(said["word"]) == ord(text[-1]) + 1
    elif found := re.search(r"the colour that (\w+) and (\w+) mix to", text):
        assert MIXED[frozenset(found.groups())] == groups[0][2]
    elif found := re.match(r"the next shape after (\w+), (\w+)", text):
        assert groups[0][3] == found[2]


def after_changes(text: str) -> list[str]:
    """Every state of "a red circle that becomes blue, then a star", from the second on."""
    start, changes = text.split(" that becomes ")
    colour, kind = start.split()[1:]
    states = []
    for change in changes.split(", then "):
        colour, kind = (change, kind) if change in COLOURS else (colour, change.split()[1])
        states.append(f"{'an' if colour[0] == 'o' else 'a'} {colour} {kind}")
    return states


def ordered(text: str) -> list[str]:
    """The kinds from large to small: the only order of the three in which both comparisons hold."""
    facts = re.findall(r"the (\w+) is (larger|smaller) than the (\w+)", text)
    pairs = [(a, b) if how == "larger" else (b, a) for a, how, b in facts]
    (found,) = [
        order
        for order in itertools.permutations({kind for pair in pairs for kind in pair})
        if all(order.index(a) < order.index(b) for a, b in pairs)
    ]
    return list(found)


def summed(text: str) -> list[int]:
    """What is had before and after every step of "two plus three minus four"."""
    first, *rest = text.split()
    steps = [WORDS.index(b) * (1 if sign == "plus" else -1) for sign, b in zip(rest[::2], rest[1::2], strict=True)]
    return list(itertools.accumulate(steps, initial=WORDS.index(first)))


@pytest.mark.parametrize("kind", STEPS)
def test_riddles_of_several_steps_are_resolved_step_by_step(kind):
    asked = [example for example in examples("reasoning/steps") if example.topic == kind]
    assert len(asked) > 80
    for example in asked:
        ((count, _, colour, shape),) = concluded(example.reasoning, example.truth)["groups"]
        text, steps = example.prompt, example.reasoning[0].lower() + example.reasoning[1:].rsplit(" So draw", 1)[0]
        if kind == "changes":
            states = after_changes(text)
            assert steps == f"{text.split(' that ')[0]} becomes {', then '.join(states)}."
            assert states[-1].split()[1:] == [colour, shape]
        elif kind == "same":
            facts = dict(re.findall(r"the (\w+) is (?:like the )?(\w+)", text))
            assert len(facts) == 3 and text.endswith(f": the {shape}")
            assert facts[facts[shape]] == colour
            assert steps == f"the {facts[shape]} is {colour}, so the {shape} is, too."
        elif kind == "order":
            order, which = ordered(text), re.search(r": the (largest|smallest), in ", text)[1]
            assert order[0 if which == "largest" else -1] == shape and text.endswith(colour)
            assert steps == f"{', '.join(order)}: the {which} is the {shape}."
        else:
            first, second, third = summed(re.match(r"\w+( (plus|minus) \w+){2}", text)[0])
            assert (third, WORDS[second] in steps) == (count, True)
            assert steps.endswith(f" is {WORDS[third]}.") and 0 < second != first


def test_reasoning_pictures_fulfil_what_the_reasoning_ends_with():
    for example in (*examples("reasoning/picture"), *examples("reasoning/steps")):
        assert fulfils(example.image, understood(re.search(r"So draw (.+)\.$", example.reasoning)[1])), example
    assert all(example.reasoning is None for example in examples("reasoning/direct"))
    assert all(example.image is None and example.answer for example in examples("reasoning/words"))
