"""Examples drawn once: the world's own, batches that are the loader's, and an order that the step alone decides."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from experiments.ablations.pool import (
    KINDS,
    Pool,
    PoolConfig,
    PooledSteps,
    collated,
    draw,
    load_or_draw,
    rows_of_step,
    with_latents,
)
from internvlu_jax.config import Compute, ConfigError
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import DataError
from internvlu_jax.data.loader import Loader
from internvlu_jax.data.sources import open_source
from internvlu_jax.models import slots
from internvlu_jax.models.internvlu import InternVLU
from internvlu_jax.presets import debug_config, small_config
from internvlu_jax.processing import chat
from internvlu_jax.processing.tokenizer import Tokenizer
from tests.helpers.training import leaves_equal

SOURCES = (("world:xs/general/picture", 2.0), ("world:xs/general/edit", 1.0), ("world:xs/general/question", 2.0))
CONFIG = PoolConfig(SOURCES, 90, seed=3)
KEY = jax.random.key(0)
DATA = DataConfig(
    batch_size=4, packed_rows=2, sides=(64,), text_lengths=(256,), pack_length=512, pack_tiles=3, threads=1,
    drop_all_t2i=0.3, drop_all_edit=0.3, drop_text_edit=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Pool:
    return draw(CONFIG)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.byte_level(chat.FIXED_TEXTS)


@pytest.fixture(scope="module")
def whole(pool, tokenizer):
    return collated(pool, debug_config(), tokenizer, DATA, seed=1)


def told(record):
    """All of a record that a model may see."""
    pictures = [picture.pixels().tobytes() for picture in (*record.sources, *([record.image] if record.image else []))]
    return record.task, record.prompt, record.reasoning, record.turns, pictures


def test_records_are_those_of_the_world_in_their_shares(pool):
    seen = {"t2i": 0, "edit": 0, "understanding": 0}
    worlds = {task: open_source(f"{name}?seed=3") for task, (name, _) in zip(seen, SOURCES, strict=True)}
    for n in range(len(pool)):
        record = pool[n]
        assert told(record) == told(worlds[record.task][seen[record.task]])
        seen[record.task] += 1
    assert (
        sum(seen.values()) == 90 and min(seen.values()) > 8 and seen["edit"] < min(seen["t2i"], seen["understanding"])
    )


def test_a_pool_is_drawn_once_and_kept(pool, tmp_path, monkeypatch):
    first = load_or_draw(CONFIG, tmp_path / "pool.npz")
    monkeypatch.setattr("experiments.ablations.pool.draw", None)
    again = load_or_draw(CONFIG, tmp_path / "pool.npz")
    for n in range(len(pool)):
        assert told(first[n]) == told(again[n]) == told(pool[n])
    with pytest.raises(ConfigError, match=r"is the pool of .*'seed': 3.*; remove it"):
        load_or_draw(dataclasses.replace(CONFIG, seed=4), tmp_path / "pool.npz")
    (tmp_path / "other.npz").write_bytes(b"no pool")
    with pytest.raises(ConfigError, match="is not a pool"):
        load_or_draw(CONFIG, tmp_path / "other.npz")
    with pytest.raises(ConfigError, match="0 examples of 3 sources"):
        PoolConfig(SOURCES, 0)


def test_batches_are_those_of_the_loader(pool, tokenizer, whole):
    """Dropped prompts, packing and padding among them: batch for batch, until one that the pool cannot fill."""
    data = dataclasses.replace(DATA, sources=(("pool", 1.0),), shuffle=False)
    taken = dict.fromkeys(KINDS, 0)
    with Loader(debug_config(), tokenizer, data, seed=1, sources=[pool]) as loader:
        while True:
            (batch,) = next(loader)
            if loader.state()["position"] > len(pool):
                break
            name = "questions" if batch.picture is None else "edits" if batch.picture.sources else "pictures"
            rows = slice(taken[name], taken[name] + len(batch.index))
            own = jax.tree.map(lambda leaf, rows=rows: leaf[rows], whole[name])
            leaves_equal(own._replace(index=batch.index), batch)
            taken[name] = rows.stop
    assert taken == {name: len(batch.index) for name, batch in whole.items()} and min(taken.values()) >= 2
    dropped = np.sum(np.asarray(whole["pictures"].text.ids) == tokenizer.img_uncond, axis=1)
    assert 0 < np.sum(dropped > 0) < len(dropped)


def test_every_pass_reads_all_rows_and_the_first_in_order():
    read = np.concatenate([rows_of_step(10, 4, step, seed=7) for step in range(10)])
    np.testing.assert_array_equal(read[:10], np.arange(10))
    for number in range(1, 4):
        own = read[10 * number : 10 * number + 10]
        assert sorted(own) == list(range(10)) and not np.array_equal(own, read[:10])
    assert not np.array_equal(read[10:20], read[20:30])
    other = np.concatenate([rows_of_step(10, 4, step, seed=8) for step in range(5)])
    assert np.array_equal(other[:10], read[:10]) and not np.array_equal(other[10:20], read[10:20])


def test_a_step_takes_rows_and_numbers_them(whole):
    joint = PooledSteps(whole, {"questions": 2, "pictures": 3, "edits": 2}, seed=5)
    pictures, edits, questions = joint(4)
    assert [batch.index.tolist() for batch in (pictures, edits, questions)] == [[0, 1, 2], [3, 4], [5, 6]]
    rows = rows_of_step(len(whole["pictures"].index), 3, 4, seed=5)
    np.testing.assert_array_equal(pictures.picture.target, whole["pictures"].picture.target[rows])
    np.testing.assert_array_equal(pictures.text.ids, whole["pictures"].text.ids[rows])
    leaves_equal(joint(4), PooledSteps(whole, {"pictures": 3, "edits": 2, "questions": 2}, seed=5)(4))
    alone = PooledSteps(whole, {"pictures": 3, "edits": 2}, seed=5)
    leaves_equal(alone(4), (pictures, edits))
    for rows, message in (({"pictures": 500}, "500 rows of 'pictures' a step"), ({"riddles": 1}, "expected 1 to 0")):
        with pytest.raises(ConfigError, match=message):
            PooledSteps(whole, rows)


@pytest.mark.slow
def test_latents_are_those_that_the_step_would_compute(whole, tokenizer):
    config = small_config()
    model = InternVLU(config, tokenizer.special_table_ids)
    params = {"vae": jax.jit(lambda key: slots.module(config.vae, Compute()).init(key, method="build")["params"])(KEY)}
    edits, encode = whole["edits"], jax.jit(partial(model.encode, params))
    stored = with_latents(edits, model, params, rows=3)  # the last chunk is not full
    assert len(edits.index) % 3
    for pictures, latents in (
        (edits.picture.target, stored.picture.target), (edits.picture.sources[0], stored.picture.sources[0])
    ):  # fmt: skip
        assert latents.shape == (len(edits.index), 8, 8, 8) and latents.dtype == np.float32
        for rows in (slice(0, 3), slice(-3, None)):
            np.testing.assert_allclose(latents[rows], encode(pictures[rows]), atol=1e-5)
    assert stored.text is edits.text and with_latents(whole["questions"], model, params) is whole["questions"]


def test_examples_that_do_not_fit_are_refused(pool, tokenizer, whole):
    middle = int(np.median(whole["pictures"].picture.context_lengths))
    several = dataclasses.replace(DATA, text_lengths=(middle, 256))
    with pytest.raises(DataError, match=r"(pictures|edits) of the pool have several shapes"):
        collated(pool, debug_config(), tokenizer, several)
    with pytest.raises(DataError, match=r"cannot be used|do not fit"):
        collated(pool, debug_config(), tokenizer, dataclasses.replace(DATA, text_lengths=(16,)))
