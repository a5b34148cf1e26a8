"""A second grammar of the world's texts, which shares no code with the engine: from a prompt to what it asks for."""

import itertools
import re

from internvlu_jax.small_world import SMALL, Scene

COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLOURS, SIZES, BACKGROUNDS = SMALL.colours, ("small", "large"), SMALL.backgrounds
NAMES = {**{kind: kind for kind in SMALL.kinds}, **{kind + "s": kind for kind in SMALL.kinds}}
ANY_COLOUR, ANY_BACKGROUND = "|".join(COLOURS), "|".join(BACKGROUNDS)
FRAME = re.compile(r"^(?:a picture of |draw |an image of )?(.*?)(?: please)?$")


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


def meant(name: str, scene: Scene):
    """The one object that is called so."""
    _, size, colour, kind = phrase(f"one {name}")
    found = [item for item in scene.items if fits(item, size, colour, kind)]
    assert len(found) == 1, (name, scene)
    return found[0]
