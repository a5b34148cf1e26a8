"""Riddles, read by a second grammar and worked out anew: their reasoning ends with what is meant, and is drawn."""

import itertools
import re

import pytest

from internvlu_jax.small_world.tasks.domains.reasoning import RIDDLES
from internvlu_jax.small_world.tasks.steps import STEPS
from tests.helpers.world import examples
from tests.helpers.world_grammar import COLOURS, WORDS, fulfils, understood

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
