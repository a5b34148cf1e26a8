"""What a run holds when its first step begins, before it compiles."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest

from internvlu_jax.checkpoints import run_directory
from internvlu_jax.config import InternVLUConfig
from internvlu_jax.parallel.executors import make_executor
from internvlu_jax.training import loop, setup
from internvlu_jax.training.config import LoraConfig, ValidationConfig
from internvlu_jax.utils.tree import paths
from tests.helpers.training import TINY, leaves_equal, with_data


class Begun(Exception):
    """In place of the first step."""


def begin(cfg, workdir, monkeypatch, look=lambda: None):
    """The state before the first step of a run, which ends there; `look` is called while all of the run is there."""
    states = []

    def go(self, state, done):
        states.append(state)
        look()
        raise Begun

    monkeypatch.setattr(loop._Run, "go", go)
    with pytest.raises(Begun):
        loop.train(cfg, workdir, quiet=True)
    return states[0]


@pytest.mark.parametrize("held_out", [(), TINY.data.sources])
def test_the_weights_of_the_start_are_not_held(tmp_path, monkeypatch, held_out):
    """Gigabytes of each process's host; a trained array is looked at, for a state may share others."""
    load, loaded, held = setup.initial_model, [], []

    def watched(*given):
        initial = load(*given)
        loaded.append(weakref.ref(jax.tree.leaves(initial.params["head"])[0]))
        return initial

    monkeypatch.setattr(setup, "initial_model", watched)
    cfg = dataclasses.replace(TINY, validation=ValidationConfig(held_out))
    begin(cfg, tmp_path, monkeypatch, lambda: (gc.collect(), held.append(loaded[0]())))
    assert held == [None]


def test_what_is_kept_is_what_is_trained_on(tmp_path, monkeypatch):
    """Where a run ended before its first checkpoint, and what it starts from has changed when it is begun again."""
    started = setup._started

    def changed(cfg):
        initial = started(cfg)
        return dataclasses.replace(initial, params=jax.tree.map(lambda leaf: leaf + 1, initial.params))

    first = begin(TINY, tmp_path, monkeypatch)
    monkeypatch.setattr(setup, "_started", changed)
    second = begin(TINY, tmp_path, monkeypatch)
    assert not np.array_equal(*(jax.tree.leaves(state.frozen)[0] for state in (first, second)))
    leaves_equal(run_directory.restore_frozen(tmp_path, second.frozen), second.frozen)


@pytest.mark.parametrize(("sides", "said"), [((64, 512, 1024), None), ((512, 1448, 2048), "1448, 2048")])
def test_sizes_that_the_model_will_refuse_to_draw_are_named(caplog, sides, said):
    setup.warn_of_sizes(with_data(TINY, sides=sides), InternVLUConfig())
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in lines] == (
        [] if said is None else [f"data.sides has {said}, and the model draws 1024 pixels a side at most"]
    )


@pytest.mark.parametrize("kind", ["mesh", "pmap", "single"])
def test_frozen_parameters_are_on_the_devices_once(monkeypatch, kind):
    cfg = dataclasses.replace(
        TINY,
        lora=LoraConfig(rank=2, pattern="head/mmdit/.*/(q|out)"),
        optimizer=dataclasses.replace(TINY.optimizer, rates=((".*/lora_[ab]", 1.0), (".*", 0.0))),
    )
    initial, executor = setup.initial_model(cfg), make_executor(kind, cfg.mesh)
    step, placed = setup.make_step(cfg, initial, executor.shards), executor.place(initial.params)
    monkeypatch.setattr(executor, "place", lambda params: placed)
    state = setup.first_state(cfg, initial, step, executor)
    shapes, flat = jax.eval_shape(step.init, initial.shapes), paths(placed)
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    assert all(leaf is flat[path] for path, leaf in paths(state.frozen).items())
