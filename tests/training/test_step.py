"""The step: what it trains and what it leaves alone, pooling of micro-batches, and what it does with bad numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from internvlu_jax.checkpoints import loading
from internvlu_jax.config import ConfigError
from internvlu_jax.data.batch import Batch
from internvlu_jax.parallel.steps import single_step
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.optimizer import factors, make_optimizer, schedule
from internvlu_jax.training.step import Gradients, Step, TrainState, not_finite
from internvlu_jax.training.tree import numbers
from internvlu_jax.utils.tree import from_paths, merge, paths, split
from tests.conftest import Golden
from tests.helpers.measures import assert_close
from tests.helpers.training import one_block
from tests.training.test_losses import objective_for, random_batch, with_latents

HEAD_ONLY = (("head/.*", 1.0), (".*", 0.0))
ALL_BUT_VAE = (("vae/.*", 0.0), (".*", 1.0))
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def model():
    return one_block(loading.load(Golden("base").checkpoint))


def step_for(model, **optimizer) -> Step:
    cfg = OptimizerConfig(**{"learning_rate": 1e-3, "warmup": 1, **optimizer})
    return Step(objective_for(model), cfg, factors(model.params, cfg), steps=10)


@pytest.fixture(scope="module")
def whole(model):
    """Everything but the VAE trained for one step: (step, state before, batch, state after, metrics)."""
    step = step_for(model, rates=ALL_BUT_VAE, weight_decay=0.01, ema=0.9)
    state, batch = jax.jit(step.init)(model.params), with_latents(random_batch(objective_for(model), rows=4))
    return step, state, batch, *jax.jit(step)(state, (batch,), KEY)


def test_equal_steps_share_their_programs(model):
    """As those of several seeds are; another rate is another step."""
    programs = single_step(step_for(model, rates=HEAD_ONLY))
    assert single_step(step_for(model, rates=HEAD_ONLY)) is programs
    assert single_step(step_for(model, rates=HEAD_ONLY, learning_rate=2e-3)) is not programs
    assert single_step(step_for(model)) is not programs


def differing(before, after) -> set[str]:
    a, b = paths(before), paths(after)
    assert set(a) == set(b)
    return {path for path in a if not np.array_equal(a[path], b[path])}


def test_stage_three_moves_all_but_the_vae(model, whole):
    _, _, _, state, metrics = whole
    moved = differing(model.params, merge(state.trained, state.frozen))
    assert {path.split("/")[0] for path in moved} == {"vlm", "head"}
    for part in ("vlm/vit", "vlm/projector", "vlm/llm", "vlm/special_tokens", "head/mmdit"):
        assert any(path.startswith(part) for path in moved), part
    assert state.step == 1
    assert bool(metrics["finite"])
    np.testing.assert_allclose(metrics["loss"], 20 * metrics["flow_loss"] + metrics["text_loss"], rtol=1e-6)


def test_stage_one_leaves_all_but_the_head_bit_identical(model):
    step = step_for(model, rates=HEAD_ONLY)
    state = jax.jit(step.init)(model.params)
    state, metrics = jax.jit(step)(state, (stored(step.objective),), KEY)
    moved = differing(model.params, merge(state.trained, state.frozen))
    assert {path.split("/")[0] for path in moved} == {"head"}
    assert {name for name in metrics if "/" in name} == {"grad_norm/head/mmdit", "grad_norm/head/padding_token"}
    held = jax.tree.leaves(state.opt_state)
    assert sum(leaf.size for leaf in held) < 2.1 * sum(leaf.size for leaf in jax.tree.leaves(model.params["head"]))


def stored(objective) -> Batch:
    """Pictures whose latents and contexts were computed beforehand: nothing but the head runs."""
    batch = with_latents(random_batch(objective, rows=4))
    rows, length = batch.picture.context_index.shape
    context = np.random.default_rng(2).normal(
        size=(rows, length, objective.model.cfg.generation_decoder.input_hidden_size)
    )
    weight = np.array([1, 0, 1, 1], np.float32)
    picture = batch.picture._replace(context=context.astype(np.float32), context_index=None, weight=weight)
    return Batch(batch.index, None, picture)


def spoken(objective) -> Batch:
    """Rows of text alone, with different numbers of targets."""
    batch = random_batch(objective, rows=4)
    return Batch(batch.index, batch.text._replace(tiles=None, visual_index=None))


@pytest.mark.parametrize("make", [pytest.param(stored, marks=pytest.mark.slow), spoken])
def test_two_parts_of_a_batch_equal_the_whole(model, make):
    """Losses and gradients are pooled as sums over totals: a part with few targets counts for little."""
    step = step_for(model, rates=ALL_BUT_VAE)
    state, batch = jax.jit(step.init)(model.params), make(step.objective)
    parts = [jax.tree.map(lambda a, s=s: a[s], batch) for s in (slice(0, 2), slice(2, 4))]
    totals = step.totals((batch,))
    jax.tree.map(np.testing.assert_array_equal, step.totals(tuple(parts)), totals)
    gradients = jax.jit(step.gradients)
    whole, first, second = (gradients(state, b, totals, KEY) for b in (batch, *parts))
    first, second, whole = jax.device_get((first, second, whole))
    both = jax.tree.map(np.add, first, second)
    assert set(whole.terms) == {"flow", "text"}
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), both.terms, whole.terms)
    for path, got in paths(both.of).items():
        want = paths(whole.of)[path]
        np.testing.assert_allclose(got, want, atol=1e-5 * np.max(np.abs(want)) + 1e-9, err_msg=path)


@pytest.mark.parametrize("make", [pytest.param(stored, marks=pytest.mark.slow), spoken])
def test_what_is_measured_are_the_terms_of_the_loss(model, make):
    """As the gradients' way has them, with the same noise."""
    step = step_for(model, rates=HEAD_ONLY)
    state, batch = step.init(model.params), make(step.objective)
    sums, totals = jax.jit(step.measure)(state, batch, jax.random.fold_in(KEY, state.step))
    terms = jax.jit(step.gradients)(state, batch, step.totals((batch,)), KEY).terms
    for name, term in terms.items():
        assert_close(sums[name] / np.maximum(totals[name], 1), term, 1e-6, name)
    assert max(map(float, totals.values())) > 1


def test_a_step_that_is_not_finite_changes_nothing_and_names_the_part(model, whole):
    step, state, batch, _, _ = whole
    broken = paths(state.trained)
    name = "vlm/llm/layers/mlp/up/kernel"
    broken[name] = broken[name].at[0, 0, 0].set(jnp.nan)
    state = state.replace(trained=from_paths(broken))
    after, metrics = jax.jit(step)(state, (batch,), KEY)
    assert after.step == 0
    assert differing(state.trained, after.trained) == {name}, "not a number differs from itself, all else is equal"
    assert "text_loss" in not_finite(metrics) and "grad_norm/vlm/llm" in not_finite(metrics)
    assert not_finite({"finite": True}) is None
    assert not_finite({"finite": False, "update_norm": np.inf, "a_loss": 1.0}) == "update_norm"


def test_moving_average(whole):
    _, before, _, after, _ = whole
    a, b, c = (paths(tree) for tree in (before.ema, after.trained, after.ema))
    for path in a:
        np.testing.assert_allclose(c[path], 0.9 * a[path] + 0.1 * b[path], atol=1e-7)


def test_what_is_measured_is_what_a_checkpoint_is_loaded_as(model, monkeypatch):
    """The average where there is one: its losses are those of the weights that leave the run."""
    step = step_for(model)
    for name, made in (("draw", None), ("totals", {})):
        monkeypatch.setattr(type(step.objective), name, lambda *_, made=made: made)
    monkeypatch.setattr(type(step.objective), "sums", lambda _, params, *__: {"text": params["a"]})
    state = TrainState(0, {"a": jnp.ones(())}, {}, None, {"a": jnp.zeros(())})
    batch = Batch(np.zeros(1, np.int32), None, None)
    assert step.measure(state, batch, KEY)[0]["text"] == 0
    assert step.measure(state.replace(ema=None), batch, KEY)[0]["text"] == 1


# The optimizer


def test_update_equals_optax_adamw_with_masks():
    """Against optax's own adamw, clip and schedule, on a tree whose rules differ."""
    cfg = OptimizerConfig(
        learning_rate=0.1, schedule="cosine", warmup=3, weight_decay=0.05, clip=0.5,
        rates=((".*/frozen", 0.0), (".*/slow", 0.25), (".*", 1.0)), decays=(("a/.*", 1.0), (".*", 0.0)),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    sizes = {"a": {"w": (3, 2), "slow": (4,), "frozen": (2,)}, "b": {"w": (5,)}}
    params = jax.tree.map(lambda size: rng.normal(size=size), sizes, is_leaf=lambda node: isinstance(node, tuple))
    params = jax.tree.map(jnp.asarray, params)
    found = factors(params, cfg)
    trained, frozen = split(params, found.is_trained)
    assert set(paths(frozen)) == {"a/frozen"}
    ours = make_optimizer(cfg, found, trained, steps=8)
    mask = {"a": {"w": True, "slow": True}, "b": {"w": False}}
    rate = schedule(cfg, 8)
    decay, step = optax.add_decayed_weights(0.05, mask), optax.scale_by_learning_rate(rate)
    theirs = optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_adam(), decay, step)
    state, other = ours.init(trained), theirs.init(trained)
    for _ in range(4):
        gradient = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), trained)
        updates, state = ours.update(gradient, state, trained)
        expected, other = theirs.update(gradient, other, trained)
        expected["a"]["slow"] = expected["a"]["slow"] * 0.25
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_an_update_is_written_in_place(model):
    """Beside the state, which is given away, the gradients and one other tree of their size; once there were 2.7."""
    shapes = {"a": {f"kernel_{n}": jax.ShapeDtypeStruct((256, 512), jnp.float32) for n in range(6)}}
    cfg = OptimizerConfig(weight_decay=0.01, ema=None, rates=((".*", 1.0),), decays=((".*", 1.0),))
    step = Step(objective_for(model, weights=(("flow", 1.0),)), cfg, factors(shapes, cfg), 8)

    def whole(state, x):
        def loss(params):
            return sum(jnp.sum(jnp.square(x @ kernel)) for kernel in params["a"].values())

        value, gradients = jax.value_and_grad(loss)(state.trained)
        return step.update(state, Gradients(gradients, {"flow": value}))

    program = jax.jit(whole, donate_argnums=0).lower(jax.eval_shape(step.init, shapes), jnp.ones((8, 256))).compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < 2.1 * 6 * 256 * 512 * 4
    assert memory.alias_size_in_bytes >= 3 * 6 * 256 * 512 * 4


def test_a_state_stays_where_an_update_is_not_finite():
    cfg = OptimizerConfig(weight_decay=0.01, rates=((".*", 1.0),), decays=((".*", 1.0),))
    params = {"a": {"kernel": jnp.arange(3.0)}}
    ours = make_optimizer(cfg, factors(params, cfg), params, steps=8)
    _, before = ours.update({"a": {"kernel": jnp.ones(3)}}, ours.init(params), params)
    updates, after = ours.update({"a": {"kernel": jnp.full(3, jnp.nan)}}, before, params, finite=jnp.asarray(False))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert np.isfinite(updates["a"]["kernel"]).all()


def test_schedules():
    constant = schedule(OptimizerConfig(learning_rate=2.0, warmup=4), 100)
    np.testing.assert_allclose([constant(s) for s in (0, 1, 3, 4, 99)], [0.5, 1.0, 2.0, 2.0, 2.0])
    cosine = schedule(OptimizerConfig(learning_rate=2.0, warmup=4, schedule="cosine"), 104)
    np.testing.assert_allclose([cosine(s) for s in (0, 3, 4, 54, 104)], [0.5, 2.0, 2.0, 1.0, 0.0], atol=1e-6)
    longer = schedule(OptimizerConfig(learning_rate=2.0, warmup=4, schedule="cosine", decay_steps=104), 30)
    np.testing.assert_allclose([longer(s) for s in range(30)], [cosine(s) for s in range(30)])


def test_rules_that_do_not_fit_are_refused():
    tree = {"a": {"w": 0}, "b": {"w": 0}}
    assert numbers(tree, (("a/.*", 2.0), (".*", 1.0)), "rates") == {"a/w": 2.0, "b/w": 1.0}
    with pytest.raises(ConfigError, match=r"'c/\.\*' match no parameter; paths begin with a/w, b/w"):
        numbers(tree, (("c/.*", 2.0), (".*", 1.0)), "rates")
    with pytest.raises(ConfigError, match="no pattern matches the parameter b/w"):
        numbers(tree, (("a/.*", 2.0),), "rates")
    with pytest.raises(ConfigError, match="is not a regular expression"):
        numbers(tree, (("a/(", 2.0),), "rates")


def test_split_and_merge_are_inverse(model):
    first, second = split(model.params, lambda path: "llm" in path)
    assert set(first) == {"vlm"} and "llm" not in second["vlm"]
    assert differing(merge(first, second), model.params) == set()


def test_frozen_parameters_keep_their_dtype_and_trained_ones_are_float32(model):
    step = step_for(model, rates=HEAD_ONLY)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), model.params)
    state = jax.eval_shape(step.init, shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trained)} == {jnp.dtype("float32")}


def test_uniform_times(model):
    objective = objective_for(model, time="uniform", shift=1.0)
    batch = random_batch(objective, rows=3)._replace(index=np.arange(3, dtype=np.int32))
    sigma = np.concatenate([objective.draw(jax.random.key(n), batch).sigma for n in range(60)])
    assert 0.44 < np.mean(sigma) < 0.56
