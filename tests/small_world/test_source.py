"""The small world as a source: always the same, held-out combinations apart, pictures that show their scenes."""

import itertools
import zlib
from collections import Counter

import numpy as np
import pytest

from internvlu_jax.config import ConfigError
from internvlu_jax.data.sources import open_source
from internvlu_jax.small_world import FULL, SMALL, WEIGHTS, Group, Scene, SceneSpec, World, WorldSource
from internvlu_jax.small_world.names import open_world
from internvlu_jax.small_world.scenes.layout import NoPlaceError, free_place
from internvlu_jax.small_world.scenes.letters import line_cells, word_cells
from internvlu_jax.small_world.scenes.scene import SIZES
from internvlu_jax.small_world.scenes.shapes import inside
from internvlu_jax.small_world.tasks.captions import chinese
from internvlu_jax.small_world.tasks.domains import DOMAINS, TASKS
from internvlu_jax.small_world.tasks.domains.reasoning import riddle
from internvlu_jax.small_world.tasks.edits import edit
from internvlu_jax.small_world.tasks.questions import question
from internvlu_jax.small_world.tasks.spec_sampling import sample_spec
from internvlu_jax.small_world.tasks.specs import scene_of
from tests.helpers.world import examples, source

PLAIN = [task for task in TASKS if task.split("/")[0] in ("general", "text", "reasoning")]
HELD_TEXT = [f"{colour} {kind}" for colour, kind in SMALL.held_pairs]


def fingerprint() -> dict[str, int]:
    """A number for the first examples of every task and their pictures."""
    found = {}
    for task in TASKS:
        drawn, crc = WorldSource(weights={task: 1.0}, seed=5), 0
        for n in range(8):
            record = drawn[n]
            crc = zlib.crc32(repr((record.data, record.where)).encode(), crc)
            for picture in record.pictures().values():
                crc = zlib.crc32(picture.pixels().tobytes(), crc)
        found[task] = crc
    return found


# What the model in the box was trained on: a change here is a change of its data.
STORED = {
    "general/picture": 4138516816,
    "general/edit": 3420393769,
    "general/question": 3579844609,
    "general/description": 1460668931,
    "text/picture": 2621150708,
    "text/edit": 3743002429,
    "text/question": 480600499,
    "reasoning/picture": 1032162312,
    "reasoning/steps": 1124327681,
    "reasoning/direct": 1294568028,
    "reasoning/words": 4063075039,
}


def test_records_are_those_of_the_shipped_model():
    found = fingerprint()
    assert {task: found[task] for task in STORED} == STORED


def test_another_process_draws_the_same_in_another_order():
    """The examples of these tests come from one; hashes of strings differ between processes."""
    for task, split in itertools.product(TASKS, ("train", "heldout")):
        drawn = source(task, split)
        assert [repr(drawn.example(n)) for n in (7, 3, 0)] == [repr(examples(task, split)[n]) for n in (7, 3, 0)]


def test_examples_hardly_repeat():
    """Only where there is little to draw: one object on a coarse grid, one letter."""
    for task in TASKS:
        texts = [repr(example) for example in examples(task)]
        assert len(set(texts)) > (0.5 if task.startswith(("text", "spatial", "reasoning")) else 0.9) * len(texts), task


def test_weights_are_met():
    counts = Counter(WorldSource().example(n).task for n in range(500))
    edits, total = WEIGHTS["general/edit"] + WEIGHTS["text/edit"], sum(WEIGHTS.values())
    assert counts["edit"] / 500 == pytest.approx(edits / total, abs=0.07)
    only = WorldSource(weights={"text/edit": 1.0, "text/question": 3.0})
    counts = Counter(only.example(n).task for n in range(200))
    assert counts["edit"] / 200 == pytest.approx(0.25, abs=0.1) and set(counts) == {"edit", "understanding"}


def test_every_task_has_both_splits_and_records_of_its_form():
    for task in TASKS:
        for split in ("train", "heldout"):
            record = WorldSource(weights={task: 1.0}, split=split)[3]
            assert record.data["task"] == record.task
            assert all(picture.pixels().shape == (64, 64, 3) for picture in record.pictures().values())
            assert bool(record.turns) == (record.task == "understanding")
            assert (record.reasoning is None) == ("reasoning" not in record.data)


# Held-out combinations


def held_in_scene(world: World, scene: Scene) -> bool:
    """Counted anew, from the definition."""
    pairs = {(item.colour, item.kind) for item in scene.items}
    counts = {(number, kind) for kind, number in Counter(item.kind for item in scene.items).items()}
    word = scene.word.text if scene.word else ""
    held_word = len(word) > 1 and zlib.crc32(word.encode()) % 8 == 0
    return bool(pairs & set(world.held_pairs)) or bool(counts & set(world.held_counts)) or held_word


def scenes(example) -> list[Scene]:
    return [drawn for drawn in (example.image, example.source) if isinstance(drawn, Scene)]


@pytest.mark.parametrize("split", ["train", "seen"])
def test_training_shows_and_says_nothing_held_out(split):
    for example in itertools.chain.from_iterable(examples(task, split) for task in PLAIN):
        assert not any(held_in_scene(SMALL, scene) for scene in scenes(example)), example
        said = f"{example.prompt} {example.answer} {example.reasoning}"
        assert not any(held in said for held in HELD_TEXT), said


def test_the_heldout_split_always_has_something_held_out():
    for n, example in enumerate(itertools.chain.from_iterable(examples(task, "heldout") for task in PLAIN)):
        if found := scenes(example):
            assert any(held_in_scene(SMALL, scene) for scene in found), (n, example)
        else:
            scene = scene_of(SMALL, example.truth, np.random.default_rng(n), held_out=True)
            assert held_in_scene(SMALL, scene), (n, example)


def test_both_worlds_hold_one_colour_of_each_kind_out():
    for world in (SMALL, FULL):
        assert len({kind for _, kind in world.held_pairs}) == len(world.held_pairs) == len(world.kinds)
        assert len({colour for colour, _ in world.held_pairs}) > 2


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"world": "large"}, "the world is 'large'; expected one of small, full"),
        ({"split": "test"}, "split is 'test'; expected one of train, seen, heldout"),
        ({"weights": {"general/poem": 1.0}}, r"weights has \['general/poem'\]; expected some of general/picture"),
        ({"weights": {}}, "weights has nothing"),
        ({"weights": {"general/edit": 0.0}}, "expected every weight over 0"),
        ({"side": 4}, "side 4"),
        ({"seed": -1}, "seed -1"),
        ({"length": 0}, "length 0"),
    ],
)
def test_bad_sources(arguments, message):
    with pytest.raises(ValueError, match=message):
        WorldSource(**arguments)


def test_bad_numbers_and_names():
    drawn = WorldSource(length=5)
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"record {index} of 5"):
            drawn[index]
    for name, message in (
        ("world:huge", "the world is 'huge'"),
        ("world:small/poems", "weights has"),
        ("world:small?sid=3", "no option 'sid'; expected split, seed"),
        ("world:small?side=big", "side is 'big'; expected a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            open_world(name)


def test_names_open_what_they_say():
    named = open_source("world:small/general/edit?split=seen&seed=3&side=32&length=7")
    same = WorldSource(weights={"general/edit": 1.0}, split="seen", seed=3, side=32, length=7)
    assert len(named) == 7 and [named[n].data for n in range(7)] == [same[n].data for n in range(7)]
    assert {open_world("world:small/science").example(n).truth is None for n in range(20)} == {False}
    assert set(DOMAINS) == {"general", "text", "science", "spatial", "humour", "reasoning"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kinds": ("circle", "blob")}, "world.kinds has 'blob'; expected some of circle"),
        ({"colours": ()}, "the world has no kinds, colours"),
        ({"most": 5}, "world.most is 5; expected 1 to 4"),
        ({"plain": 1.5}, "world.plain is 1.5"),
        ({"words": ("CAFÉ",)}, "world.words has 'É'"),
        ({"held_pairs": (("red", "heart"),)}, "world.held_pairs has"),
        ({"held_counts": ((9, "star"),)}, "world.held_counts has"),
    ],
)
def test_bad_worlds(fields, message):
    with pytest.raises(ConfigError, match=message):
        World(**fields)


def test_bad_parts():
    rng = np.random.default_rng(0)
    for call, message in (
        (lambda: sample_spec(SMALL, "poem", rng), "the category is 'poem'"),
        (lambda: edit(SMALL, "rotate", rng), "the kind of edit is 'rotate'"),
        (lambda: question(SMALL, "why", rng), "the kind of question is 'why'"),
        (lambda: word_cells("CA T"), "the word is 'CA T'"),
        (lambda: line_cells("CA/T"), "the line is 'CA/T'"),
        (lambda: inside("blob", np.zeros(1), np.zeros(1)), "the kind is 'blob'"),
        (lambda: Scene(background="mauve").draw(64), "the colour is 'mauve'"),
        (lambda: Scene().draw(4), "side is 4; expected at least 8"),
        (lambda: chinese(SceneSpec((Group("star"), Group("circle")), "above"), rng), "has a relation"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(NoPlaceError, match="does not fit into the picture"):
        free_place((0.6, 0.1), [], 256, rng)
    with pytest.raises(NoPlaceError, match="no scene was found"):
        scene_of(SMALL, SceneSpec((Group("star"), Group("star")), "above"), rng)


def test_a_world_of_one_kind_has_single_objects():
    world = World(kinds=("circle",), colours=("red",), sizes=("small",), backgrounds=("white",), most=1)
    scene = scene_of(world, sample_spec(world, "single", np.random.default_rng(0)), np.random.default_rng(0))
    assert [(item.kind, item.colour, item.radius) for item in scene.items] == [("circle", "red", SIZES["small"])]
    text, _, wanted = riddle(world, "kind", np.random.default_rng(0))
    assert "next shape" not in text and [group.kind for group in wanted.groups] == ["circle"]


@pytest.mark.parametrize(
    ("task", "what"),
    [("general/question/relation", "a question of kind 'relation'"), ("general/question/place", "kind 'place'"),
     ("general/question/comparison", "kind 'comparison'"), ("general/edit/add", "an edit of kind 'add'")],
)  # fmt: skip
def test_what_a_world_of_single_objects_cannot_have_is_said_at_once(task, what):
    drawn = WorldSource(World(most=1), {task: 1.0})
    with pytest.raises(ConfigError, match=rf"world.most is 1; .*{what} needs 2 objects in one scene"):
        drawn.example(0)


def test_a_world_of_single_objects_has_all_else():
    for task in ("general/question", "general/conversation", "general/edit"):
        drawn = WorldSource(World(most=1), {task: 1.0})
        topics = {drawn.example(n).topic for n in range(40)}
        assert len(topics) > 3 and not topics & {"relation", "comparison", "add"}
