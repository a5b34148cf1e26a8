"""Worlds as sources of a training run, by name."""

import numpy as np
import pytest

from internvlu_jax.data.sources import open_source
from internvlu_jax.small_world import SMALL


def test_a_world_by_name():
    source = open_source("world:small/general/picture?seed=3&side=32&length=50")
    assert len(source) == 50
    record = source[7]
    assert record.task == "t2i" and record.image.pixels().shape == (32, 32, 3)
    again = open_source("world:small/general/picture?seed=3&side=32")[7]
    assert again.prompt == record.prompt
    np.testing.assert_array_equal(again.image.pixels(), record.image.pixels())
    assert open_source("world:small/general/picture?seed=4")[7].prompt != record.prompt


def test_a_domain_by_name_has_all_its_tasks():
    source = open_source("world:small/text")
    assert {source[n].task for n in range(60)} == {"t2i", "edit", "understanding"}


def test_one_kind_of_a_task_by_name():
    world = open_source("world:small/general/picture/position")
    assert all(world.example(n).truth.relation for n in range(50))
    assert {open_source("world:small/general/question/relation").example(n).topic for n in range(20)} == {"relation"}
    assert {open_source("world:small/general/edit/move").example(n).topic for n in range(20)} == {"move"}
    assert {open_source("world:small/general/question/place").example(n).topic for n in range(20)} == {"place"}
    for length in range(1, 5):
        words = {open_source(f"world:small/text/picture/{length}").example(n).truth.word for n in range(20)}
        assert {len(word) for word in words} == {length} and not any(map(SMALL.holds_word, words))
    with pytest.raises(ValueError, match="no word of length 1 was found with held_out True"):
        SMALL.word(np.random.default_rng(0), held_out=True, length=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("world:large", "the world is 'large'; expected one of small, full"),
        ("world:small/general/pictures", "general/pictures"),
        ("world:small?sides=64", "there is no option 'sides'"),
        ("world:small?side=big", "side is 'big'; expected a whole number"),
        ("world:small?split=test", "split is 'test'; expected one of train, seen, heldout"),
    ],
)
def test_names_that_mean_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        open_source(name)
