"""Path, noise levels, solver, guidance and the sampling loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.flow import solver
from internvlu_jax.flow.guidance import Scales, Velocities, guide
from internvlu_jax.flow.path import interpolate, predict_clean, velocity_target
from internvlu_jax.flow.sampler import Group, branch_velocities, guided_velocity, sample, sample_step, step_at
from internvlu_jax.flow.times import LogitNormal, Uniform, shift_sigma
from internvlu_jax.models.head import Condition
from tests.conftest import sizes_only
from tests.helpers.head import load_mmdit, row_inputs
from tests.helpers.measures import assert_close, channels_first, channels_last, relative_l2

FORWARD, TRAJECTORY = 1e-5, 5e-5


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# Path


def test_path_ends_at_picture_and_noise():
    clean, noise = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    x = interpolate(clean, noise, jnp.asarray([0.0, 1.0]))
    np.testing.assert_array_equal(x[0], clean[0])
    np.testing.assert_array_equal(x[1], noise[1])


def test_clean_picture_from_velocity():
    clean, noise, sigma = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1), jnp.asarray([0.3, 0.9])
    velocity = velocity_target(clean, noise)
    assert_close(predict_clean(interpolate(clean, noise, sigma), velocity, sigma), clean, 1e-6)
    slope = (interpolate(clean, noise, sigma + 1e-2) - interpolate(clean, noise, sigma)) / 1e-2
    assert_close(slope, velocity, 1e-4)


def test_recorded_noisy_latents(golden):
    recorded = golden.component("flow_grad_t2i")
    clean, noise, sigma = (jnp.asarray(recorded[name]) for name in ("clean", "noise", "sigma"))
    assert_close(interpolate(clean, noise, sigma), recorded["noisy"], 1e-6)


# Noise levels of training


@pytest.mark.parametrize("times", [LogitNormal(), LogitNormal(mean=0.5, std=0.7, shift=1.0), Uniform(), Uniform(3.0)])
def test_noise_levels_are_keyed_by_example(times):
    key = jax.random.key(0)
    index = jnp.asarray([4, 0, 7])
    together = times.sample(key, index)
    assert ((together >= 0) & (together <= 1)).all()
    apart = jnp.concatenate([times.sample(key, index[n : n + 1]) for n in range(3)])
    np.testing.assert_array_equal(together, apart)
    assert not np.array_equal(together, times.sample(jax.random.key(1), index))


def test_noise_levels_have_the_distribution():
    index = jnp.arange(20000)
    shifted = np.asarray(LogitNormal(shift=3.0).sample(jax.random.key(0), index), np.float64)
    u = shifted / (3 - 2 * shifted)  # the inverse of the shift
    normal = np.log(u / (1 - u))
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    uniform = np.asarray(Uniform().sample(jax.random.key(0), index))
    assert np.abs(np.quantile(uniform, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.02


@pytest.mark.parametrize("times", [LogitNormal(0.5, 0.7, 2.0), Uniform(3.0)])
def test_so_many_noise_levels_are_below_a_quantile(times):
    drawn = np.asarray(times.sample(jax.random.key(0), jnp.arange(20000)))
    for share in (0.1, 0.5, 0.9):
        assert abs(np.mean(drawn < times.quantile(share)) - share) < 0.01


def test_shift_moves_towards_noise():
    u = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(shift_sigma(u, 1.0), u, rtol=1e-6)
    np.testing.assert_allclose(shift_sigma(jnp.asarray(0.5), 3.0), 0.75, rtol=1e-6)


# Schedule and solver


@pytest.mark.parametrize("shift", [3.0, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8, 20, 50])
def test_recorded_schedule(golden, num_steps, shift):
    recorded = golden.component("scheduler")
    plan = solver.schedule(num_steps, shift)
    np.testing.assert_array_equal(plan.timesteps, recorded[f"timesteps_{num_steps}_{shift}"])
    np.testing.assert_array_equal(plan.sigmas, recorded[f"sigmas_{num_steps}_{shift}"])
    assert plan.timesteps.dtype == np.int32 and plan.sigmas.dtype == np.float32


@pytest.mark.parametrize("num_steps", [1, 3, 8])
def test_recorded_trajectory(golden, num_steps):
    recorded = golden.component("scheduler")
    velocities = recorded[f"velocities_{num_steps}"]
    steps = solver.steps(solver.schedule(num_steps, 3.0))
    state = solver.start(jnp.asarray(recorded[f"start_{num_steps}"]))
    for n in range(num_steps):
        state = solver.step(state, jnp.asarray(velocities[n]), step_at(steps, n))
        assert_close(state.x, recorded[f"trajectory_{num_steps}"][n], 1e-6, f"step {n}")


def test_less_than_one_step_is_refused():
    with pytest.raises(ValueError, match="num_steps is 0"):
        solver.schedule(0)


@pytest.mark.parametrize(("num_steps", "shift"), [(20, 1e6), (20, 1e-38), (20_000, 3.0), (1, 1e30)])
def test_a_schedule_has_finite_coefficients(num_steps, shift):
    assert all(np.isfinite(c).all() for c in solver.steps(solver.schedule(num_steps, shift)))


@pytest.mark.parametrize(("num_steps", "shift"), [(20, 1e8), (20, 1e-45), (20_000, 1e4)])
def test_noise_levels_that_are_one_in_float32_are_refused(num_steps, shift):
    """Their step has the coefficients 0 / 0, and pictures were black."""
    with pytest.raises(ValueError, match=f"flow_shift is {shift} with {num_steps} steps, whose noise levels float32"):
        solver.schedule(num_steps, shift)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_solver_is_exact_where_the_clean_picture_is_constant(num_steps):
    """If the velocity always points from the same picture, every number of steps ends at it exactly."""
    target = random(1, 4, 4, 2, seed=3)
    plan = solver.schedule(num_steps)

    def velocity(x, timestep):
        n = jnp.argmin(jnp.abs(jnp.asarray(plan.timesteps) - timestep))
        return (x - target) / jnp.asarray(plan.sigmas)[n]

    assert_close(sample(velocity, random(1, 4, 4, 2), solver.steps(plan)), target, 1e-5)


def gaussian_error(num_steps):
    """Largest error after `num_steps` steps from sigma 0.9 to 0.1, where the velocity is linear in x.

    Pictures are normal with mean m and standard deviation s. Then x_sigma is normal with mean (1 - sigma) m and
    standard deviation spread(sigma), and the exact solution keeps x's distance from the mean in units of the standard
    deviation. The steps are even in lambda, where the solver's order is defined.
    """
    mean, std = 0.5, 0.3
    log_snr = np.linspace(np.log(0.1 / 0.9), np.log(0.9 / 0.1), num_steps + 1)
    sigmas = 1 / (1 + np.exp(log_snr))
    plan = solver.Schedule(np.zeros(num_steps + 1, np.int32), np.append(sigmas, 0.0).astype(np.float32))

    def spread(sigma):
        return np.sqrt(((1 - sigma) * std) ** 2 + sigma**2)

    def deviation(x, sigma):
        return x - (1 - sigma) * mean

    start = np.linspace(-2, 2, 9)
    want = (1 - sigmas[-1]) * mean + deviation(start, sigmas[0]) * spread(sigmas[-1]) / spread(sigmas[0])
    steps, state = solver.steps(plan), solver.start(jnp.asarray(start, jnp.float32)[None])
    for n, sigma in enumerate(sigmas[:-1]):
        away = deviation(state.x, sigma) / spread(sigma) ** 2
        noise, clean = sigma * away, mean + (1 - sigma) * std**2 * away  # their means, given x
        state = solver.step(state, noise - clean, step_at(steps, n))
    return np.abs(state.x[0] - want).max()


def test_solver_is_second_order_on_a_linear_field():
    errors = np.array([gaussian_error(n) for n in (40, 80, 160)])
    rates = np.log2(errors[:-1] / errors[1:])
    assert errors[-1] < 2e-5
    assert rates.min() > 1.7, (errors, rates)


def test_first_and_last_step_are_of_first_order():
    slope = np.asarray(solver.steps(solver.schedule(6)).slope)
    assert slope[0] == 0 and slope[-1] == 0
    assert (slope[1:-1] > 0).all()


# Guidance


def test_recorded_guidance(golden):
    recorded = {name: channels_last(value) for name, value in golden.component("guidance").items()}
    branches = Velocities(*(jnp.asarray(recorded[name]) for name in ("cond", "uncond", "part")))
    run = jax.jit(guide)
    for time, name in ((931.0, "above_930"), (930.0, "below_930"), (100.0, "below_930")):
        assert_close(run(branches, jnp.float32(time), Scales(4.5, 2.0)), recorded[name], 1e-6, f"t = {time}")
    assert relative_l2(recorded["above_930"], recorded["below_930"]) > 1e-2


@pytest.mark.parametrize("time", [999.0, 500.0])
def test_two_branches_equal_three_when_the_text_is_all_there_is(time):
    cond, uncond = random(2, 4, 4, 16), random(2, 4, 4, 16, seed=1)
    two = guide(Velocities(cond, uncond), jnp.float32(time), Scales(4.5, 2.0))
    three = guide(Velocities(cond, uncond, uncond), jnp.float32(time), Scales(4.5, 2.0))
    np.testing.assert_array_equal(two, three)


def test_guidance_is_finite_where_branches_agree():
    same = random(1, 4, 4, 16)
    np.testing.assert_array_equal(guide(Velocities(same, same, same), jnp.float32(999.0), Scales(4.5, 2.0)), same)


# The loop


def toy_velocity(x, timestep):
    return jnp.tanh(x) + timestep / 1000


def test_scan_equals_steps():
    noise, steps = random(2, 4, 4, 16), solver.steps(solver.schedule(5))
    scanned = jax.jit(partial(sample, toy_velocity))(noise, steps)
    one_step = jax.jit(partial(sample_step, toy_velocity))
    state = solver.start(noise)
    for n in range(5):
        state = one_step(state, step_at(steps, n))
    np.testing.assert_allclose(state.x, scanned, rtol=1e-6, atol=1e-6)


def test_latents_stay_float32():
    noise, steps = random(1, 2, 2, 16), solver.steps(solver.schedule(3))
    out = sample(lambda x, t: toy_velocity(x, t).astype(jnp.bfloat16), noise.astype(jnp.bfloat16), steps)
    assert out.dtype == jnp.float32


BRANCHES = ("cond", "text_dropped", "uncond")


def velocity_of(mmdit, params):
    """The recorded head as the sampler knows it."""

    def velocity(x, timestep, c):
        times = jnp.broadcast_to(timestep, x.shape[:1])
        return mmdit.module.apply({"params": params}, x, times, c.context, c.lengths, c.rope, c.sources)

    return velocity


def case_groups(case, mmdit):
    """The recorded rows [all cond, all text-dropped, all uncond] as the groups that we run."""
    examples = len(case["context"]) // 3
    rows = {name: list(range(n * examples, (n + 1) * examples)) for n, name in enumerate(BRANCHES)}
    editing = "cond_latents" in case
    plan = [("cond", "text_dropped"), ("uncond",)] if editing else [("cond", "uncond")]
    groups = []
    for branches in plan:
        parts = [row_inputs(case, rows[branch], mmdit) for branch in branches]
        conditions = [Condition(p["context"], p["context_lengths"], p["rope"], p["conditions"]) for p in parts]
        groups.append(Group(branches, jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *conditions)))
    return tuple(groups)


@sizes_only
@pytest.mark.parametrize("name", ["t2i", pytest.param("edit", marks=pytest.mark.slow), "edit_batch"])
def test_recorded_sampling(golden, name):
    """Step by step: two batched branches for text-to-image, one group with sources and one without for editing."""
    case, mmdit = golden.case(name), load_mmdit(golden.checkpoint)
    kwargs = golden.cases[name]["kwargs"]
    groups = case_groups(case, mmdit)
    steps = solver.steps(solver.schedule(kwargs["num_inference_steps"], 3.0))
    scales = Scales(kwargs.get("all_cfg_scale", 4.5), kwargs.get("part_cfg_scale", 2.0))

    @jax.jit
    def one_step(params, groups, scales, state, at):
        found = {}
        for group in groups:
            found |= branch_velocities(velocity_of(mmdit, params), state.x, at.timestep, group)
        return sample_step(lambda x, t: guide(Velocities(**found), t, scales), state, at), found

    state = solver.start(jnp.asarray(channels_last(case["initial_latents"])))
    for n in range(kwargs["num_inference_steps"]):
        state, found = one_step(mmdit.params, groups, scales, state, step_at(steps, n))
        assert_close(channels_first(state.x), case["latents_by_step"][n], TRAJECTORY, f"step {n}")
        if n < 2:
            want = np.split(case[f"dit{n}_velocity"], 3)
            for branch, recorded in zip(BRANCHES, want, strict=True):
                got = found.get(branch, found["uncond"])
                assert_close(channels_first(got), recorded, (FORWARD, TRAJECTORY)[n], f"{branch}, step {n}")
    assert_close(channels_first(state.x), case["final_latents"], TRAJECTORY, "final latents")


@sizes_only
def test_recorded_sampling_in_one_scan(golden):
    case, mmdit = golden.case("t2i"), load_mmdit(golden.checkpoint)
    steps = solver.steps(solver.schedule(6, 3.0))

    @jax.jit
    def run(params, groups, scales, noise, steps):
        velocity = velocity_of(mmdit, params)
        return sample(lambda x, t: guided_velocity(velocity, x, t, groups, scales), noise, steps)

    noise = jnp.asarray(channels_last(case["initial_latents"]))
    got = run(mmdit.params, case_groups(case, mmdit), Scales(4.5, 2.0), noise, steps)
    assert_close(channels_first(got), case["final_latents"], TRAJECTORY)


def test_branches_that_see_no_source_do_not_pay_for_it():
    """The velocity is asked for with sources in the group that has them, and without in the other; any tree will do."""
    seen = []

    def velocity(x, timestep, condition):
        seen.append((x.shape[0], len(condition["sources"])))
        return x * condition["weight"][:, None, None, None]

    x = random(2, 4, 4, 16)
    pair = Group(("cond", "text_dropped"), {"weight": jnp.array([[3.0, 2.0]] * 2), "sources": (jnp.ones((2, 2, 5)),)})
    alone = Group(("uncond",), {"weight": jnp.ones((2, 1)), "sources": ()})
    got = guided_velocity(velocity, x, jnp.float32(10.0), (pair, alone), Scales(4.5, 2.0))
    assert seen == [(4, 1), (2, 0)]
    assert_close(got, x * (1 + 2.0 * (2 - 1) + 4.5 * (3 - 2)), 1e-6)
