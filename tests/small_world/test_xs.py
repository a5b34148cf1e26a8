"""The worlds of the ablations: few things, what they lack, and facts that one sort of task alone shows in training."""

from collections import Counter

import numpy as np
import pytest

from internvlu_jax.config import ConfigError
from internvlu_jax.data.sources import open_source
from internvlu_jax.small_world import SMALL, WORLDS, XS, XS_TRANSFER, Scene, World
from internvlu_jax.small_world.scoring.cases import cases as scored_cases
from internvlu_jax.small_world.tasks.domains import KINDS, TASKS
from internvlu_jax.small_world.tasks.edits import edit
from internvlu_jax.small_world.tasks.example import Example
from internvlu_jax.small_world.tasks.transfer import is_answered
from tests.helpers.evaluation import mismatch, readings
from tests.helpers.unchecked import unchecked
from tests.helpers.world import named_examples

DRAWING, ANSWERED = ("general/picture", "general/edit"), ("general/question", "general/conversation")
QUESTIONS = {"existence", "count", "colour", "shape"}
EDITS = {"recolour", "replace", "remove", "add"}


def made(name: str, count: int = 60) -> list[Example]:
    """Examples of a source by name."""
    return unchecked(named_examples, f"world:{name}", count)


def cases(*arguments) -> list[Example]:
    return unchecked(scored_cases, *arguments)


def scenes(examples) -> list[Scene]:
    return [drawn for example in examples for drawn in (example.image, example.source) if isinstance(drawn, Scene)]


def pairs(drawn: list[Scene]) -> set[tuple[str, str]]:
    return {(item.colour, item.kind) for scene in drawn for item in scene.items}


def test_every_clean_picture_of_xs_is_read():
    drawn = [
        scene
        for source in ("xs?", "xs?split=seen", "xs?split=heldout", "xs-transfer?", "xs-transfer?split=transfer")
        for scene in scenes(made(source.replace("?", "/general/picture?"), 60))
    ]
    read = unchecked(readings, [scene.draw(64) for scene in drawn], XS.kinds)
    assert len(drawn) == 300 and not any(map(mismatch, drawn, read))


@pytest.mark.parametrize("task", [*DRAWING, *ANSWERED, "general/description", "general"])
def test_xs_has_what_it_says_and_no_more(task):
    examples = made(f"xs/{task}")
    for scene in scenes(examples):
        assert len(scene.items) <= XS.most == 2 and scene.background == "white" and scene.word is None
        assert {item.size for item in scene.items} <= {"large"}
        assert all(round(8 * at, 9) == round(8 * at) for item in scene.items for at in (item.x, item.y)), "on the grid"
        assert not XS.holds(scene)
    assert not any(
        word in f" {e.prompt} {e.answer} " for e in examples for word in (" small ", " background", " word ")
    )


def test_kinds_that_xs_is_without_are_not_drawn_by_chance_and_are_refused_by_name():
    assert {example.topic for example in made("xs/general/question", 100)} == QUESTIONS
    assert {example.topic for example in made("xs/general/edit", 100)} == EDITS
    asked = {text.split()[0] for example in made("xs/general/conversation") for text, _ in example.further}
    assert asked <= {"Is", "Can", "How", "What", "Which"} and made("xs")
    for example in made("xs/general/conversation"):
        assert not any(word in text for text, _ in example.further for word in ("left", "above", "larger", "fewer"))
    assert {example.topic for example in made("xs/reasoning/picture", 100)} == {
        "number", "colour", "kind", "mirror", "swap"
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"world\.without has 'move'; there is no such thing as an edit"):
        edit(XS, "move", np.random.default_rng(0))
    with pytest.raises(ValueError, match="weights has text/picture; this world is without text, move"):
        open_source("world:xs/text/picture")
    assert {case.topic for case in cases(XS, "edits", 8)} == EDITS
    assert [case.topic for case in cases(XS, "questions", 4)] == ["existence", "count", "colour", "shape"]


def test_held_out_combinations_are_kept_from_training():
    assert len({kind for _, kind in XS.held_pairs}) == len(XS.held_pairs) == len(XS.kinds)
    trained = scenes(made("xs/general", 150))
    assert pairs(trained) == set(XS.pairs) and not any(map(XS.holds, trained))
    assert all(XS.holds(example.image) for example in made("xs/general/picture?split=heldout"))
    assert all(XS.holds(case.image) for case in cases(XS, "geneval_heldout", 30))
    twice = Counter(kind for scene in trained for kind, n in Counter(i.kind for i in scene.items).items() if n == 2)
    assert set(twice) == {"square", "ring"}


# Transfer


def test_what_a_task_wants_is_known_from_its_name():
    for name in (*TASKS, *KINDS):
        (example,) = made(f"small/{name}", 1)
        assert is_answered(name) == (example.task == "understanding"), name


def test_a_pair_of_one_sort_of_task_is_never_trained_in_the_other():
    drawn, asked = set(XS_TRANSFER.drawn_pairs), set(XS_TRANSFER.asked_pairs)
    everything = {(colour, kind) for colour in XS.colours for kind in XS.kinds}
    for split in ("train", "seen"):
        for task in DRAWING:
            assert pairs(scenes(made(f"xs-transfer/{task}?split={split}", 120))) == everything - asked
        for task in ANSWERED:
            examples = made(f"xs-transfer/{task}?split={split}", 120)
            assert pairs(scenes(examples)) == everything - drawn
            said = " ".join(f"{e.prompt} {e.answer} {e.further}" for e in examples)
            assert not any(f"{colour} {kind}" in said for colour, kind in drawn)
    assert pairs(scenes(cases(XS_TRANSFER, "geneval_seen", 60) + cases(XS_TRANSFER, "edits", 60))) == everything - asked
    assert pairs(scenes(cases(XS_TRANSFER, "questions", 120))) == everything - drawn


def test_pictures_to_draw_are_those_of_xs():
    """So that what another choice of questions does to drawing can be told."""
    for task in DRAWING:
        assert [repr(e) for e in made(f"xs-transfer/{task}")] == [repr(e) for e in made(f"xs/{task}")]


def test_tests_of_transfer_are_about_the_pairs_that_the_task_lacked():
    for example in made("xs-transfer/general/picture?split=transfer") + cases(XS_TRANSFER, "transfer_pictures", 30):
        assert pairs([example.image]) & set(XS_TRANSFER.asked_pairs) and not XS_TRANSFER.holds(example.image)
    for example in made("xs-transfer/general/edit?split=transfer"):
        assert pairs(scenes([example])) & set(XS_TRANSFER.asked_pairs)
    for example in made("xs-transfer/general/question?split=transfer") + cases(XS_TRANSFER, "transfer_questions", 30):
        assert pairs([example.source]) <= set(XS_TRANSFER.drawn_pairs) and example.source.items
    assert {case.topic for case in cases(XS_TRANSFER, "transfer_questions", 8)} == QUESTIONS


def test_worlds_without_such_pairs_say_so():
    with pytest.raises(ConfigError, match=r"world\.drawn_pairs is empty; a test of transfer needs some"):
        made("xs/general/question?split=transfer")
    with pytest.raises(ConfigError, match=r"world\.asked_pairs is empty"):
        cases(SMALL, "transfer_pictures", 1)
    pair = ("red", "circle")
    with pytest.raises(ConfigError, match=r"stands 2 times in world\.held_pairs, drawn_pairs and asked_pairs"):
        World(held_pairs=(pair,), asked_pairs=(pair,))
    assert SMALL.drawn is SMALL.asked is SMALL and set(WORLDS) == {"small", "full", "xs", "xs-transfer"}
