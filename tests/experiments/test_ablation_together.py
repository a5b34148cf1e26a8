"""Many seeds in one program: each is what a run of its own is, and all of them stop and go on together."""

import json
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ablations.together import (
    Member,
    compile_together,
    final_params,
    first_states,
    knobs_of,
    state_of,
    step_together,
    train_together,
)
from internvlu_jax.checkpoints import loading
from internvlu_jax.config import ConfigError
from internvlu_jax.data.batch import Batch
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.resuming import Stopped
from internvlu_jax.training.step import Step
from internvlu_jax.utils.tree import merge
from tests.conftest import Golden
from tests.helpers.measures import assert_close
from tests.helpers.training import leaves_equal, one_block
from tests.training.test_losses import objective_for, random_batch, with_latents

pytestmark = pytest.mark.slow  # a study in CI trains seeds together, too
SEEDS, STEPS = (4, 9), 4
MEMBERS = tuple(Member(seed) for seed in SEEDS)
RATES = (("head/.*", 1.0), (".*", 0.0))


@pytest.fixture(scope="module")
def recorded():
    return one_block(loading.load(Golden("base").checkpoint))


@pytest.fixture(scope="module")
def step(recorded) -> Step:
    """Of the head alone, on contexts that were computed beforehand."""
    cfg = OptimizerConfig(learning_rate=1e-3, warmup=2, weight_decay=0.01, ema=0.8, rates=RATES)
    return Step(objective_for(recorded, weights=(("flow", 1.0),)), cfg, factors(recorded.params, cfg), STEPS)


@pytest.fixture(scope="module")
def start(recorded):
    """From a seed to a model: the recorded one, its head moved."""
    base = recorded.params

    def model(seed: int):
        rng = np.random.default_rng(seed)
        moved = jax.tree.map(lambda p: p + 0.02 * rng.standard_normal(p.shape).astype(np.float32), base["head"])
        return {**base, "head": moved}

    return model


@pytest.fixture(scope="module")
def steps(step):
    """From the number of a step to its one micro-batch."""
    made = with_latents(random_batch(step.objective, rows=2))
    width = step.objective.model.cfg.generation_decoder.input_hidden_size

    def one(number: int) -> tuple[Batch, ...]:
        rng = np.random.default_rng(number)
        context = rng.normal(size=(2, made.picture.context_index.shape[1], width)).astype(np.float32)
        target = rng.normal(size=made.picture.target.shape).astype(np.float32)
        picture = made.picture._replace(context=context, context_index=None, target=target)
        return (Batch(np.arange(2, dtype=np.int32), None, picture),)

    return one


@pytest.fixture(scope="module")
def apart(step, start, steps):
    """Each seed by a program that knows nothing of the others: states after every step, and their metrics."""
    program, runs = jax.jit(step), []
    for seed in SEEDS:
        state, key, run = step.init(start(seed)), jax.random.key(seed), []
        for number in range(STEPS):
            state, metrics = program(state, steps(number), key)
            run.append((state, metrics))
        runs.append(run)
    return runs


@pytest.fixture(scope="module")
def together(step, start, steps, tmp_path_factory):
    """(final states, work directory)"""
    workdir = tmp_path_factory.mktemp("together")
    return train_together(step, start, MEMBERS, steps, workdir, {"data": "random"}, save_every=2, quiet=True), workdir


def test_seeds_together_are_seeds_apart(apart, together):
    """Parameters, averages and optimizer state, by part; and they are different models."""
    states, _ = together
    for n, run in enumerate(apart):
        own, alone = state_of(states, n), run[-1][0]
        assert int(own.step) == int(alone.step) == STEPS
        for name in ("trained", "ema", "opt_state"):
            both = [jax.tree.leaves(getattr(state, name)) for state in (own, alone)]
            assert_close(*(np.concatenate([np.ravel(leaf) for leaf in leaves]) for leaves in both), 1e-6, name)
            for one, other in zip(*both, strict=True):  # some are next to nothing, as biases that began at 0
                assert_close(one, other, 1e-5, name)
        leaves_equal(own.frozen, alone.frozen)
        leaves_equal(final_params(states, n), merge(own.frozen, own.ema))
    first, second = (np.asarray(leaf) for leaf in jax.tree.leaves(states.trained)[0])
    assert np.max(np.abs(first - second)) > 1e-3


def test_metrics_are_those_of_each_seed_and_their_mean(apart, together):
    lines = [json.loads(line) for line in (together[1] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for number, line in enumerate(lines):
        for name in ("loss", "flow_loss", "grad_norm"):
            own = [float(run[number][1][name]) for run in apart]
            np.testing.assert_allclose([line[f"{name}/{n}"] for n in range(len(SEEDS))], own, rtol=1e-5)
            np.testing.assert_allclose(line[name], np.mean(own), rtol=1e-5)
        assert line["finite/0"] == line["finite/1"] == 1.0


@pytest.mark.slow
def test_all_seeds_stop_and_go_on_bit_for_bit(step, start, steps, together, tmp_path):
    def stopping(number: int):
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        return steps(number)

    with pytest.raises(Stopped, match="stopped at step 3"):
        train_together(step, start, MEMBERS, stopping, tmp_path, {"data": "random"}, quiet=True)
    again = train_together(step, start, MEMBERS, steps, tmp_path, {"data": "random"}, quiet=True)
    leaves_equal(again, together[0])
    assert (tmp_path / "metrics.jsonl").read_text() == (together[1] / "metrics.jsonl").read_text()


def test_other_settings_are_refused(step, start, steps, together):
    for members, settings, message in (
        ((Member(4), Member(10)), {"data": "random"}, r"members\.1\.seed: 9 -> 10"),
        (MEMBERS, {"data": "other"}, r'study\.data: "random" -> "other"'),
        ((Member(4), Member(4)), {"data": "random"}, r"members are .*; expected each once"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_together(step, start, members, steps, together[1], settings, quiet=True)


def test_a_seed_that_is_not_finite_does_not_end_the_others(step, start, steps, tmp_path):
    def model(seed: int):
        made = start(seed)
        return made if seed == SEEDS[1] else {**made, "head": jax.tree.map(lambda p: p * jnp.nan, made["head"])}

    states = train_together(step, model, MEMBERS, steps, tmp_path, {"data": "random"}, quiet=True)
    assert states.step.tolist() == [0, STEPS]


def test_a_seed_that_is_not_finite_stays_where_it_is_and_the_others_go_on(step, start, steps, apart):
    states = first_states(step, [start(seed) for seed in SEEDS])
    broken = states.replace(trained=jax.tree.map(lambda p: p.at[0].set(jnp.nan), states.trained))
    after, metrics = step_together(step, broken, steps(0), knobs_of(step, MEMBERS))
    assert metrics["finite"].tolist() == [False, True] and after.step.tolist() == [0, 1]
    leaves_equal(state_of(after, 0), state_of(broken, 0))
    for one, other in zip(*(jax.tree.leaves(s.trained) for s in (state_of(after, 1), apart[1][0][0])), strict=True):
        assert_close(one, other, 1e-5)


@pytest.mark.slow
def test_members_differ_in_rates_weights_and_length_without_another_program(step, start, steps, caplog):
    """As a step that was made with these numbers, and compiled for them."""
    members = (Member(4, 2e-3), Member(4, 5e-4, (("flow", 3.0),)))
    states, knobs = first_states(step, [start(4), start(4)]), knobs_of(step, members, steps=9)
    compile_together(step, states, steps(0), knobs)
    with jax.log_compiles():
        for number in range(2):
            states, _ = step_together(step, states, steps(number), knobs)
    assert "compilation of jit(_gradients)" not in caplog.text and "compilation of jit(_update)" not in caplog.text
    for n, member in enumerate(members):
        cfg = replace(step.objective.cfg, weights=member.weights or step.objective.cfg.weights)
        own = replace(
            step,
            optimizer=replace(step.optimizer, learning_rate=member.learning_rate),
            objective=replace(step.objective, cfg=cfg),
            steps=9,
        )
        state, program = own.init(start(4)), jax.jit(own)
        for number in range(2):
            state, _ = program(state, steps(number), jax.random.key(4))
        for one, other in zip(*(jax.tree.leaves(s.trained) for s in (state_of(states, n), state)), strict=True):
            assert_close(one, other, 1e-5)


def test_what_is_frozen_is_shared(step, start):
    other = start(9)
    other["vae"] = jax.tree.map(lambda p: p + 1, other["vae"])
    with pytest.raises(ValueError, match=r"vae/.* is frozen and differs between seeds"):
        first_states(step, [start(4), other])
    with pytest.raises(ValueError, match="there are no seeds"):
        first_states(step, [])
