"""Processes that all go on with the same step of data, or end. Here threads are the processes."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image

from internvlu_jax.data.examples import DataError
from internvlu_jax.data.loader import Loader
from internvlu_jax.data.sources import open_source
from internvlu_jax.parallel.together import next_step
from tests.helpers.data import CFG, DATA, TOKENIZER

RECORDS, STEPS = 40, 12


@pytest.fixture
def hosts(monkeypatch):
    """Runs a function on each of three threads with a number of its own, which gather as processes do."""
    own, gate, given = threading.local(), threading.Barrier(3, timeout=60), {}

    def gather(values):
        given[own.number] = values
        gate.wait()
        found = np.stack([given[number] for number in range(3)])
        gate.wait()
        return found

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: own.number)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)

    def run(function):
        found = {}

        def one(number):
            own.number = number
            found[number] = function(number)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[number] for number in range(3)]

    return run


def steps_of(folder, count: int = STEPS, max_broken: float = 1.0) -> tuple[list[np.ndarray], str]:
    """The prompts of the steps that a process took, and what ended it."""
    data = dataclasses.replace(DATA, batch_size=4, sources=(("records.jsonl", 1.0),), max_broken=max_broken)
    taken = []
    with Loader(CFG, TOKENIZER, data, seed=3, sources=[open_source(str(folder / "records.jsonl"))]) as loader:
        try:
            for _ in range(count):
                taken.append(next_step(loader)[0].text.ids)
        except DataError as error:
            return taken, str(error)
    return taken, ""


@pytest.fixture
def folders(tmp_path):
    """The same records and pictures for each process."""
    lines = [json.dumps({"task": "t2i", "prompt": f"number {n}", "image": f"{n}.png"}) for n in range(RECORDS)]
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
        (folder / "records.jsonl").write_text("\n".join(lines))
        for n in range(RECORDS):
            Image.new("RGB", (64, 32 if n % 2 else 64)).save(folder / f"{n}.png")
    return folders


def assert_equal_steps(hosts: list[list[np.ndarray]]) -> None:
    assert len({len(taken) for taken in hosts}) == 1
    for steps in zip(*hosts, strict=True):
        assert all(np.array_equal(steps[0], other) for other in steps)


def test_hosts_with_the_same_data_go_on(hosts, folders):
    found = hosts(lambda number: steps_of(folders[number]))
    assert_equal_steps([taken for taken, _ in found])
    assert [len(taken) for taken, _ in found] == [STEPS] * 3 and not any(said for _, said in found)


def test_a_picture_that_one_host_lacks_ends_all_before_a_step_differs(hosts, folders, caplog):
    (folders[2] / "7.png").unlink()
    found = hosts(lambda number: steps_of(folders[number], 3 * STEPS))
    assert_equal_steps([taken for taken, _ in found])
    assert len(found[0][0]) < 3 * STEPS
    for _, said in found:
        assert "process 2 has read other records than process 0; expected that all hosts see the same files" in said
    assert "7.png" in caplog.text


def test_the_data_of_one_host_end_all(hosts, folders):
    """Each says its own."""
    for n in range(RECORDS):
        (folders[1] / f"{n}.png").unlink()
    found = hosts(lambda number: steps_of(folders[number], max_broken=0.0))
    assert [taken for taken, _ in found] == [[]] * 3
    said = [words for _, words in found]
    assert said[0] == said[2] == "the data of process 1 ended; its message says why"
    assert "cannot be used, and data.max_broken is 0" in said[1]
