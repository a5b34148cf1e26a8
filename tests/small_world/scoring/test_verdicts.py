"""Verdicts on hand-made scenes with each kind of wrong, on answers, and the fixed cases that they are for."""

import math
from dataclasses import replace

import numpy as np
import pytest

from internvlu_jax.evaluation.scores import MOST_PSNR
from internvlu_jax.small_world import FULL, SMALL, Group, Item, Scene, SceneSpec, Word
from internvlu_jax.small_world.scoring import edits, geneval, words
from internvlu_jax.small_world.scoring.answers import right
from internvlu_jax.small_world.scoring.cases import NAMES, cases, kinds
from internvlu_jax.small_world.scoring.reader import read
from internvlu_jax.small_world.tasks.edits import EDITS
from internvlu_jax.small_world.tasks.questions import QUESTIONS
from internvlu_jax.small_world.tasks.spec_sampling import CATEGORIES
from tests.helpers.evaluation import alone

CIRCLE = Item("circle", "red", "large", 0.25, 0.3)
SQUARE = Item("square", "blue", "small", 0.75, 0.7)
STAR = Item("star", "red", "small", 0.25, 0.75)
WANTED = SceneSpec((Group("circle", "red", "large"), Group("square", "blue")), "left of")
LABELLED = SceneSpec(
    (Group("circle", "red"),), word="CAT", word_colour="green", word_place="above", background="light blue"
)
LABELLED_SCENE = Scene((replace(CIRCLE, y=0.7),), "light blue", Word("CAT", "green", 0.5, 0.25))


def changed(scene: Scene, n: int, **changes) -> Scene:
    items = list(scene.items)
    items[n] = replace(items[n], **changes)
    return replace(scene, items=tuple(items))


PAIR = Scene((CIRCLE, SQUARE))


@pytest.mark.parametrize(
    "wanted, scene, reason",
    [
        (WANTED, PAIR, ""),
        (WANTED, Scene((SQUARE, CIRCLE)), ""),
        (WANTED, changed(PAIR, 1, size="large"), ""),
        (WANTED, Scene((CIRCLE,)), "count"),
        (WANTED, Scene((CIRCLE, SQUARE, STAR)), "count"),
        (WANTED, Scene(), "count"),
        (WANTED, changed(PAIR, 0, kind="star"), "kind"),
        (WANTED, changed(PAIR, 1, colour="green"), "colour"),
        (WANTED, changed(changed(PAIR, 0, colour="blue"), 1, colour="red"), "colour"),
        (WANTED, changed(PAIR, 0, size="small"), "size"),
        (WANTED, changed(changed(PAIR, 0, x=0.75), 1, x=0.25), "position"),
        (WANTED, changed(changed(PAIR, 0, x=0.5), 1, x=0.55), "position"),
        (WANTED, replace(PAIR, background="light yellow"), "background"),
        (WANTED, replace(PAIR, word=Word("A", "red", 0.6, 0.3)), "text"),
        (replace(WANTED, relation="above"), PAIR, ""),
        (replace(WANTED, relation="right of"), PAIR, "position"),
        (replace(WANTED, relation="below"), PAIR, "position"),
        (SceneSpec((Group("circle", count=2),)), Scene((CIRCLE, replace(CIRCLE, x=0.75, size="small"))), ""),
        (SceneSpec((Group("circle", count=2),)), Scene((CIRCLE, SQUARE)), "kind"),
        (LABELLED, LABELLED_SCENE, ""),
        (LABELLED, replace(LABELLED_SCENE, word=None), "text"),
        (LABELLED, replace(LABELLED_SCENE, word=Word("CAR", "green", 0.5, 0.25)), "text"),
        (LABELLED, replace(LABELLED_SCENE, word=Word("CAT", "red", 0.5, 0.25)), "colour"),
        (LABELLED, replace(LABELLED_SCENE, background="white"), "background"),
        (LABELLED, Scene((CIRCLE,), "light blue", Word("CAT", "green", 0.5, 0.75)), "position"),
        (replace(LABELLED, word_place="below"), Scene((CIRCLE,), "light blue", Word("CAT", "green", 0.5, 0.75)), ""),
        (replace(LABELLED, word_place="below"), LABELLED_SCENE, "position"),
    ],
)
def test_verdicts_on_pictures(wanted, scene, reason):
    verdict = geneval.score(SMALL, wanted, scene.draw(64))
    assert (verdict.right, verdict.reason) == (not reason, reason)


def test_a_malformed_blob_is_wrong_whatever_else_is_right():
    picture = PAIR.draw(64)
    picture[50:60, 4:34] = (25, 150, 60)
    assert geneval.score(SMALL, WANTED, picture).reason == "malformed"
    assert words.judge(SceneSpec(word="A"), read(picture)).reason == "malformed"


def test_verdicts_on_words():
    def verdict(word: Word | None, wanted: SceneSpec = LABELLED):
        return words.judge(wanted, read(replace(LABELLED_SCENE, word=word, background="white").draw(64)))

    assert verdict(Word("CAT", "green", 0.5, 0.25)).right
    assert verdict(Word("CAT", "red", 0.5, 0.25)).reason == "colour"
    assert verdict(Word("CAT", "red", 0.5, 0.25), replace(LABELLED, word_colour=None)).right
    for word in (
        None,
        Word("CA", "green", 0.5, 0.25),
        Word("CATS", "green", 0.5, 0.25),
        Word("COT", "green", 0.5, 0.25),
    ):
        assert verdict(word).reason == "text"


@pytest.mark.parametrize("world", [SMALL, FULL])
@pytest.mark.parametrize("kind", EDITS)
def test_edits_that_are_done_and_that_are_not(world, kind):
    n = EDITS.index(kind)
    for case in cases(world, "edits", len(EDITS) * 5)[n :: len(EDITS)]:
        edit = case.truth
        verdict, untouched = edits.score(world, edit, edit.after.draw(64))
        assert verdict.right and untouched == MOST_PSNR, (edit, verdict)
        verdict, untouched = edits.score(world, edit, edit.before.draw(64))
        assert not verdict.right and untouched == MOST_PSNR, edit


RECOLOUR = edits.Edit(
    "recolour", "make the square green", PAIR, changed(PAIR, 1, colour="green"), SQUARE, replace(SQUARE, colour="green")
)
ADD = edits.Edit("add", "add a star", PAIR, replace(PAIR, items=(CIRCLE, SQUARE, STAR)), None, STAR, True, False)
MOVE = edits.Edit(
    "move", "move the square to the top", PAIR, changed(PAIR, 1, y=0.2), SQUARE, replace(SQUARE, y=0.2)
)  # fmt: skip
SHORT = edits.Edit(  # by less than what is taken for the place to go to
    "move", "move the square up", PAIR, changed(PAIR, 1, y=SQUARE.y - 0.09), SQUARE, replace(SQUARE, y=SQUARE.y - 0.09)
)
NOTE = Scene((), "white", Word("CAT", "green", 0.4, 0.4))
TEXT = edits.Edit("text", "change CAT to DOG", NOTE, replace(NOTE, word=Word("DOG", "green", 0.4, 0.4)))
REMOVE = edits.Edit("remove", "remove the square", PAIR, Scene((CIRCLE,)), SQUARE)


def with_new(edit: edits.Edit, **changes) -> Scene:
    """The scene after the edit, with the new object changed."""
    items = tuple(replace(item, **changes) if item == edit.new else item for item in edit.after.items)
    return replace(edit.after, items=items)


@pytest.mark.parametrize(
    "edit, scene, reason",
    [
        (RECOLOUR, with_new(RECOLOUR, x=0.78), ""),
        (RECOLOUR, with_new(RECOLOUR, x=0.6), "target"),
        (RECOLOUR, with_new(RECOLOUR, colour="black"), "target"),
        (RECOLOUR, with_new(RECOLOUR, size="large"), "target"),
        (RECOLOUR, Scene((CIRCLE,)), "target"),
        (RECOLOUR, replace(RECOLOUR.after, items=(*RECOLOUR.after.items, STAR)), "count"),
        (RECOLOUR, replace(RECOLOUR.after, items=RECOLOUR.after.items[1:]), "rest"),
        (RECOLOUR, changed(RECOLOUR.after, 0, colour="green"), "rest"),
        (RECOLOUR, changed(RECOLOUR.after, 0, x=0.4), "rest"),
        (RECOLOUR, replace(RECOLOUR.after, background="light blue"), "background"),
        (RECOLOUR, replace(RECOLOUR.after, word=Word("A", "red", 0.75, 0.3)), "text"),
        (ADD, with_new(ADD, x=0.75, y=0.25, size="large"), ""),
        (ADD, with_new(ADD, kind="triangle"), "target"),
        (replace(ADD, free=False, sized=True), with_new(ADD, x=0.75, y=0.25), "target"),
        (replace(ADD, free=False, sized=True), with_new(ADD, size="large"), "target"),
        (MOVE, with_new(MOVE, y=0.3), ""),
        (MOVE, with_new(MOVE, y=0.4), "target"),
        (SHORT, SHORT.after, ""),
        (SHORT, SHORT.before, "target"),
        (REMOVE, Scene((SQUARE,)), "rest"),
        (REMOVE, Scene(), "rest"),
        (TEXT, replace(NOTE, word=Word("DOG", "red", 0.4, 0.4)), "text"),
        (TEXT, replace(NOTE, word=Word("DOT", "green", 0.4, 0.4)), "text"),
        (TEXT, replace(NOTE, word=Word("DOG", "green", 0.4, 0.6)), "text"),
        (TEXT, Scene(), "text"),
    ],
)
def test_verdicts_on_edits(edit, scene, reason):
    verdict, _ = edits.score(SMALL, edit, scene.draw(64))
    assert (verdict.right, verdict.reason) == (not reason, reason)


def test_what_an_edit_leaves_alone():
    """Levels that are off by 2 in one row far from the change, by anything in the change itself."""
    picture = RECOLOUR.after.draw(64)
    picture[0] -= 2
    picture[int(0.7 * 64)][int(0.75 * 64)] = 0
    _, untouched = edits.score(SMALL, RECOLOUR, picture)
    region = edits.untouched(RECOLOUR, 64)
    assert region[0].all() and 0 < np.sum(~region) < 24**2
    assert untouched == pytest.approx(10 * math.log10(255**2 / (4 * 64 / np.sum(region))))


def test_where_a_new_object_may_be_its_place_is_not_untouched():
    scene = with_new(ADD, x=0.75, y=0.25)
    verdict, untouched = edits.score(SMALL, ADD, scene.draw(64))
    assert verdict.right and untouched == MOST_PSNR
    _, untouched = edits.score(SMALL, ADD, with_new(ADD, x=0.75, y=0.25, kind="triangle").draw(64))
    assert untouched is not None and untouched < 25


@pytest.mark.parametrize(
    "wanted, said, ok",
    [
        ("yes", "Yes, there is.", True),
        ("yes", "yes", True),
        ("yes", "no", False),
        ("no", "No.", True),
        ("no", "none", False),
        ("no", "", False),
        ("3", "Three", True),
        ("3", "There are three.", True),
        ("3", "33", False),
        ("0", "zero", True),
        ("circle", "It is a circle.", True),
        ("circle", "circles", False),
        ("circle", "a red circle", False),
        ("gray", "Grey", True),
        ("light blue", "light blue", True),
        ("light blue", "blue", False),
        ("left", " left\n", True),
    ],
)
def test_answers(wanted, said, ok):
    assert right(wanted, said) is ok


@pytest.mark.parametrize(
    "wanted, said, ok",
    [("CAT", '"cat".', True), ("TEN", "10", False), ("10", "TEN", False), ("A1", "A1", True), ("AN", "N", False)],
)
def test_what_is_read_is_compared_letter_by_letter(wanted, said, ok):
    assert right(wanted, said, reading=True) is ok


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("transfer")])
@pytest.mark.parametrize("world", [SMALL, FULL])
def test_cases_are_fixed_and_as_held_out_as_they_say(world, name):
    found = cases(world, name, 42)
    assert repr(found[:10]) == repr(cases(world, name, 10)) != repr(cases(world, name, 10, seed=1))
    for n, case in enumerate(found):
        if name not in ("words", "domain_questions"):
            assert case.topic == kinds(name)[n % len(kinds(name))]
        for scene in (case.image, case.source):
            if isinstance(scene, Scene):
                assert world.holds(scene) == (name == "geneval_heldout")


def test_cases_of_each_score_have_their_kinds():
    assert kinds("geneval_seen") == kinds("geneval_heldout") == CATEGORIES
    assert (kinds("edits"), kinds("questions")) == (EDITS, QUESTIONS)
    with pytest.raises(ValueError, match="'other'; expected one of geneval_seen"):
        cases(SMALL, "other", 1)


def test_words_have_up_to_four_letters():
    lengths = [len(case.truth.word) for case in cases(SMALL, "words", 100)]
    assert set(lengths) == {1, 2, 3, 4}


def test_true_pictures_of_all_categories_are_right():
    for name in ("geneval_seen", "geneval_heldout", "words", "reasoning"):
        for case in cases(SMALL, name, 42):
            assert geneval.score(SMALL, case.truth, case.image.draw(64)).right, case


def test_a_picture_without_objects_is_right_for_nobody():
    blank = np.full((64, 64, 3), 255, np.uint8)
    lone = np.round(alone("circle")).astype(np.uint8)
    for case in cases(SMALL, "geneval_seen", 42):
        assert not geneval.score(SMALL, case.truth, blank).right
        if case.truth.count > 1:
            assert not geneval.score(SMALL, case.truth, lone).right
