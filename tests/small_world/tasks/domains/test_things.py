"""Molecules, charts and memes, worked out anew; and what all domains beyond plain scenes have in common."""

import re
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest

from internvlu_jax.small_world import SMALL
from internvlu_jax.small_world.scenes.letters import line_cells
from internvlu_jax.small_world.scenes.marks import DARK
from internvlu_jax.small_world.scenes.scene import BACKGROUNDS, COLOURS
from internvlu_jax.small_world.tasks.domains.humour import JOKES, Meme
from internvlu_jax.small_world.tasks.domains.science.molecule import COMPOUNDS
from internvlu_jax.small_world.tasks.things import Asked, Change, Drawing
from tests.helpers.unchecked import shapes_unchecked
from tests.helpers.world import examples
from tests.small_world.tasks.domains.test_science import YES, asked, assert_apart, drawn, heights, inked

NEW = ("science", "spatial", "humour")


# All of them


def things(example) -> list:
    """What an example shows, said by its truth."""
    truth = example.truth
    if isinstance(truth, Change):
        return [truth.before, truth.after]
    return [truth.thing if isinstance(truth, Drawing | Asked) else truth]


@pytest.mark.parametrize("domain", ["science", "spatial"])
def test_what_is_held_out_is_never_trained_on(domain):
    tasks = [f"{domain}/{task}" for task in ("picture", "reasoning", "question", *["edit"] * (domain == "spatial"))]

    def keys(split: str) -> Counter:
        made = [thing for task in tasks for example in examples(task, split) for thing in things(example)]
        return Counter((type(thing).__name__, thing.key) for thing in made)

    train, heldout = keys("train"), keys("heldout")
    assert not train.keys() & heldout.keys() and not keys("seen").keys() & heldout.keys()
    assert {name for name, _ in train} == {name for name, _ in heldout}


@pytest.mark.parametrize("side", [32, 64, 128])
def test_nothing_is_cut(side):
    """Shapes of arrays are checked at one side."""
    for domain in NEW:
        for example in examples(f"{domain}/picture", count=120):
            with shapes_unchecked() if side > 32 else nullcontext():
                picture, under = example.image.draw(side), BACKGROUNDS[background(example)]
            edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
            assert picture.shape == (side, side, 3) and (edge == under).all(), example
            assert (picture != under).any()


def background(example) -> str:
    truth = example.truth
    return truth.scene.background if isinstance(truth, Meme) else example.image.background


def test_backgrounds_are_said():
    for task in ("science/picture", "science/reasoning", "spatial/picture", "spatial/reasoning"):
        for example in examples(task):
            back = background(example)
            assert (f"on a {back} background" in example.prompt) == (back != "white")
            assert example.reasoning is None or (f", on a {back} background." in example.reasoning) == (back != "white")


def test_marks_are_inside_at_any_size():
    for task in ("science/picture", "spatial/picture"):
        for example in examples(task, "heldout"):
            edges = [edge for mark in example.truth.thing.marks() for edge in mark.box]
            assert min(edges) >= 2 and max(edges) <= 62, example


def test_articles_fit():
    for domain in NEW:
        for task in ("picture", "reasoning"):
            for example in examples(f"{domain}/{task}"):
                said = f"{example.prompt} {example.reasoning}"
                assert not re.search(r"\b(a [aeio]\w|an [^aeiouH\W])", said.replace("a unique", "")), said


def test_bad_pictures():
    for domain in NEW:
        with pytest.raises(ValueError, match="side is 7; expected at least 8"):
            examples(f"{domain}/picture", count=1)[0].image.draw(7)


# Molecules

FORMULAS = {
    **{"hydrogen": "H2", "oxygen": "O2", "nitrogen": "N2", "water": "H2O", "ammonia": "NH3", "methane": "CH4"},
    **{"hydrogen fluoride": "HF", "carbon dioxide": "CO2", "hydrogen cyanide": "CHN", "formaldehyde": "CH2O"},
    **{"ethane": "C2H6", "ethene": "C2H4", "ethyne": "C2H2", "hydrazine": "N2H4", "hydrogen peroxide": "H2O2"},
}
VALENCES = {"H": 1, "F": 1, "O": 2, "N": 3, "C": 4}


@pytest.mark.parametrize("name", COMPOUNDS)
def test_atoms_have_as_many_bonds_as_they_can(name):
    compound = COMPOUNDS[name]
    bonds = Counter()
    for a, b, order in compound.bonds:
        bonds[a] += order
        bonds[b] += order
    assert [bonds[n] for n in range(len(compound.atoms))] == [VALENCES[element] for element, *_ in compound.atoms]
    assert compound.formula == FORMULAS[name]
    assert len(compound.bonds) == len(compound.atoms) - 1  # none of them has a ring
    counts = {element: int(n or 1) for element, n in re.findall(r"([A-Z])(\d?)", FORMULAS[name])}
    assert counts == Counter(element for element, *_ in compound.atoms)


def test_molecules_are_what_is_said():
    for prompt, reasoning, molecule, drawing in [*drawn("molecule"), *drawn("molecule", "science/reasoning")]:
        text = reasoning.split("So draw")[1] if reasoning else prompt
        assert re.search(rf"{molecule.colour} molecule of {molecule.name}, {FORMULAS[molecule.name]}\b", text)
        assert_apart(drawing)


def test_molecule_questions():
    named = {"hydrogen": "H", "carbon": "C", "nitrogen": "N", "oxygen": "O"}
    for kind, text, answer, molecule, _ in asked("molecule"):
        compound = COMPOUNDS[molecule.name]
        elements = [element for element, *_ in compound.atoms]
        if kind == "element":
            assert int(answer) == elements.count(named[re.search(r"many (\w+) atoms", text)[1]])
        elif kind == "order":
            orders = {("", "single", "double", "triple")[order] for *_, order in compound.bonds}
            assert answer == YES[re.search(r"a (\w+) bond", text)[1] in orders]
        else:
            found = {"atoms": len(elements), "bonds": len(elements) - 1, "formula": FORMULAS[molecule.name]}
            assert answer == str(found.get(kind, molecule.name))


# Charts


def test_charts_show_their_values():
    for prompt, reasoning, chart, drawing in [*drawn("chart"), *drawn("chart", "science/reasoning")]:
        text = reasoning.split("So draw")[1] if reasoning else prompt
        bars = re.findall(r"([A-E]) at (\d) in (\w+)", text)
        assert [name for name, *_ in bars] == list("ABCDE"[: len(bars)])
        picture = drawing.draw(64)
        assert [int(value) for _, value, _ in bars] == list(chart.values)
        assert [heights(picture, COLOURS[colour], 4) for *_, colour in bars if colour != "black"] == [
            [int(value)] for _, value, colour in bars if colour != "black"
        ]
        if reasoning:
            assert worked_out(prompt) == list(chart.values)


def worked_out(prompt: str) -> list[int]:
    """The values of a chart, each from those before it."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    values: dict[str, int] = {}
    for name, said in re.findall(r"([A-E]) is (\d|[a-z][\w ]*?[A-E](?: and B together)?)(?=,| and|$)", prompt):
        other = values.get((re.search(r"[A-E]", said) or "?")[0], 0)
        if said.isdigit():
            values[name] = int(said)
        elif "together" in said:
            values[name] = values["A"] + values["B"]
        elif said.startswith(("twice", "half")):
            values[name] = other * 2 if said.startswith("twice") else other // 2
        elif found := re.match(r"(\w+) (more|less) than", said):
            values[name] = other + words.index(found[1]) * (1 if found[2] == "more" else -1)
        else:
            values[name] = other
    return list(values.values())


def test_chart_questions():
    for kind, text, answer, chart, _ in asked("chart"):
        values = dict(zip("ABCDE", chart.values, strict=False))
        names = re.findall(r"\b([A-E])\b", text)
        if kind in ("highest", "lowest"):
            assert (max if kind == "highest" else min)(chart.values) == values[answer]
            assert chart.values.count(values[answer]) == 1
        elif kind == "over":
            limit = int(re.search(r"than (\d)", text)[1])
            assert int(answer) == len([value for value in chart.values if value > limit])
        elif kind == "more":
            assert answer == YES[values[names[0]] > values[names[1]]]
        elif kind == "colour":
            assert answer == chart.colours["ABCDE".index(names[0])]
        else:
            assert int(answer) == sum(values[name] for name in names)


# Memes


def test_memes_are_what_is_said():
    """Both lines stand in the picture, letter by letter, and the scene lies between them."""
    jokes = Counter()
    for task in ("picture", "reasoning"):
        for split in ("train", "heldout"):
            for example in examples(f"humour/{task}", split, 300):
                meme, text = example.image, example.reasoning or example.prompt
                jokes[meme.joke] += 1
                top, bottom = re.search(r'"([A-Z0-9 ]+)" above and "([A-Z0-9 ]+)" below', text).groups()
                assert (meme.top, meme.bottom) == (top, bottom)
                assert all(item.box[1] > 11 / 64 and item.box[3] < 53 / 64 for item in meme.scene.items)
                picture = inked(meme.draw(64), DARK)
                for line, row in ((top, 3), (bottom, 54)):
                    cells = line_cells(line)
                    left = (64 - cells.shape[1] + 1) // 2
                    assert (picture[row : row + 7, left : left + cells.shape[1]] == cells).all()
                    assert picture[row : row + 7].sum() == cells.sum()
    assert set(jokes) == set(JOKES) and min(jokes.values()) > 60


def test_memes_hold_words_and_scenes_out():
    held_words = [SMALL.holds_word(word) for word in ("STAR", "RED", "PURPLE", "GIANT")]
    assert held_words == [True, False, True, False]
    for task in ("picture", "reasoning", "question"):
        for split in ("train", "seen", "heldout"):
            for example in examples(f"humour/{task}", split):
                meme = example.truth
                held = SMALL.holds(meme.scene) or any(map(SMALL.holds_word, f"{meme.top} {meme.bottom}".split()))
                assert held == (split == "heldout"), meme


def test_meme_questions():
    for example in examples("humour/question"):
        meme = example.truth
        assert example.answer == getattr(meme, example.topic)
        if meme.joke == "disguise" and example.topic == "why":
            assert meme.scene.items[0].kind in example.answer and meme.bottom.split()[1].lower() in example.answer
