"""Batches made by processes side by side: the same data, in a fixed order, and an end to every one of them."""

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from internvlu_jax.checkpoints.loading import BUILT_IN
from internvlu_jax.config import ConfigError
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import DataError
from internvlu_jax.data.loader import Loader
from internvlu_jax.data.workers import WorkerLoader
from internvlu_jax.presets import small_config
from internvlu_jax.processing.tokenizer import Tokenizer
from tests.helpers.data import assert_same, drafts, plan, steps, t2i

ROOT = Path(__file__).parents[2]
CFG, TOKENIZER = small_config(), Tokenizer.from_directory(BUILT_IN / "processor")
SOURCES = (("world:small/general/picture", 2.0), ("world:small/general/question", 1.0))
DATA = DataConfig(SOURCES, batch_size=4, packed_rows=2, sides=(64,), text_lengths=(60,), pack_length=128, threads=1)
TWO = dataclasses.replace(DATA, workers=2)


@pytest.mark.slow
def test_steps_of_the_workers_in_turn_and_resuming():
    """Each worker is a loader over its share; a state, through JSON, gives the steps that came after it."""
    with WorkerLoader(CFG, TOKENIZER, TWO, seed=3, accumulate=2) as made:
        first = next(made)
        state = json.loads(json.dumps(made.state()))
        rest = [next(made) for _ in range(4)]
        processes = [process for process, _ in made._workers]
    assert not any(process.is_alive() for process in processes)
    shares = [steps(Loader(CFG, TOKENIZER, TWO, seed=3, accumulate=2, share=(w, 2)), 3) for w in range(2)]
    assert_same([first, *rest], [shares[n % 2][n // 2] for n in range(5)])
    resumed = WorkerLoader(CFG, TOKENIZER, TWO, seed=3, accumulate=2)
    resumed.restore(state)
    assert resumed.state() == state
    assert_same(steps(resumed, 4), rest)
    with pytest.raises(RuntimeError, match="closed"):
        next(resumed)


def test_shares_are_all_of_the_data():
    records = [[t2i(n) for n in range(12)]]
    whole = [draft.where for row in next(plan(records, batch_size=12)).rows for draft in row]
    parts = [next(plan(records, batch_size=4, share=(w, 3))).rows for w in range(3)]
    found = [[row[0].where for row in rows] for rows in parts]
    assert [where for four in zip(*found, strict=True) for where in four] == whole


def test_every_share_has_the_mixture():
    """A pass of a source is shared out among all. Before, each of four had one source of 1:1:2, and that for ever."""
    records = [[t2i(100 * source + n) for n in range(size)] for source, size in enumerate((8, 8, 16))]
    made = [plan(records, weights=[1.0, 1.0, 2.0], batch_size=8, share=(w, 4)) for w in range(4)]
    for _ in range(3):
        found = [[int(draft.where.removeprefix("t2i:")) for draft in drafts(share, 1)] for share in made]
        assert [sorted(n // 100 for n in numbers) for numbers in found] == 4 * [[0, 0, 1, 1, 2, 2, 2, 2]]
        assert len({number for numbers in found for number in numbers}) == 32


@pytest.mark.parametrize("sources, told", [(SOURCES, 1), (SOURCES[:1], 0)])
def test_a_run_that_shared_out_the_mixture_hears_that_its_order_changes(sources, told, caplog):
    """Of one source the order is what it was."""
    made = WorkerLoader(CFG, TOKENIZER, dataclasses.replace(TWO, sources=sources), seed=0)
    state = json.loads(json.dumps(made.state()))
    made.restore({name: value for name, value in state.items() if name != "shared"})
    made.restore(state)
    assert made.state() == state
    assert len([r for r in caplog.records if "the examples come in another order" in r.getMessage()]) == told


def test_broken_data_ends_the_run_with_its_own_words(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    lines = [{"task": "t2i", "prompt": "a", "image": f"{n}.png"} for n in range(30)]
    (tmp_path / "t2i.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = dataclasses.replace(DATA, workers=1, sources=((str(tmp_path / "t2i.jsonl"), 1.0),), max_broken=0.0)
    with WorkerLoader(CFG, TOKENIZER, data, seed=0) as made:
        for _ in range(2):
            with pytest.raises(DataError, match=r"cannot be used.*t2i.jsonl:\d+: \d+.png: there is no such"):
                next(made)


def test_other_records_are_refused_before_a_process_starts(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n" * 3)
    data = dataclasses.replace(TWO, sources=((str(tmp_path / "a.jsonl"), 1.0),))
    state = WorkerLoader(CFG, TOKENIZER, data, seed=0).state()
    WorkerLoader(CFG, TOKENIZER, data, seed=0).restore(state)
    (tmp_path / "a.jsonl").write_text("{}\n" * 4)
    with pytest.raises(DataError, match=r"a\.jsonl: when the run last saved it had 3 records and has 4 now"):
        WorkerLoader(CFG, TOKENIZER, data, seed=0).restore(state)


def test_a_worker_leaves_sigterm_to_the_run_and_is_missed_when_it_is_killed():
    """As bad data are, so that the run saves."""
    with WorkerLoader(CFG, TOKENIZER, dataclasses.replace(DATA, workers=1, prefetch=1), seed=0) as made:
        next(made)
        worker = made._workers[0][0]
        worker.terminate()
        for _ in range(12):  # more than can lie ready
            next(made)
        worker.kill()
        with pytest.raises(DataError, match="data worker 0 ended with exit code -9"):
            for _ in range(100):
                next(made)


UNCLOSED = """
import pickle, sys
from internvlu_jax.data.workers import WorkerLoader
made = WorkerLoader(*pickle.load(sys.stdin.buffer), seed=0)
next(made)
"""


@pytest.mark.slow
def test_a_loader_that_nobody_closes_ends_with_its_process():
    given = pickle.dumps((CFG, TOKENIZER, dataclasses.replace(DATA, workers=1)))
    subprocess.run([sys.executable, "-c", UNCLOSED], input=given, cwd=ROOT, timeout=60, check=True)


def test_bad_values_are_refused_before_a_process_starts():
    with pytest.raises(ConfigError, match="workers is -1"):
        dataclasses.replace(DATA, workers=-1)
    with pytest.raises(DataError, match=r"data\.sources is empty"):
        WorkerLoader(CFG, TOKENIZER, dataclasses.replace(TWO, sources=()), seed=0)
    with pytest.raises(ValueError, match="no such file"):
        WorkerLoader(CFG, TOKENIZER, dataclasses.replace(TWO, sources=(("none.jsonl", 1.0),)), seed=0)
