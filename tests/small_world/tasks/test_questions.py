"""Questions about plain scenes, read by a second grammar: every answer is what the scene says."""

import re
from collections import Counter

import pytest

from internvlu_jax.processing.chat import IMAGE_MARK
from internvlu_jax.small_world import Scene
from internvlu_jax.small_world.source import record_of
from internvlu_jax.small_world.tasks.questions import QUESTIONS
from tests.helpers.world import examples
from tests.helpers.world_grammar import NAMES, fits, is_related, meant

AT, RELATED = " (on|at) the ", " (left|right|above|below) .*the "


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
    if found := re.match(r"Is the (.+) (?:on|at) the (left or right|top or bottom)\?", text):
        x, y = meant(found[1], scene).x, meant(found[1], scene).y
        return ("left", "right")[x > 0.5] if "left" in found[2] else ("top", "bottom")[y > 0.5]
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
    numbers, places = Counter(), 0
    for example in examples("general/conversation", split, count=300):
        turns = ((example.prompt, example.answer), *example.further)
        assert all(answered(text, example.source) == answer for text, answer in turns), example
        assert len(set(turns)) == len(turns)
        numbers[len(example.further)] += 1
        placed, related = (any(re.search(words, text) for text, _ in turns) for words in (AT, RELATED))
        assert not (placed and related)
        places += placed
        record = record_of(example, "x:1", 64)
        assert [answer for _, answer in record.turns] == [answer for _, answer in turns]
        assert [IMAGE_MARK in text for text, _ in record.turns] == [True] + [False] * len(example.further)
    assert max(numbers) == 5 and numbers[5] > 150 and places > 60
