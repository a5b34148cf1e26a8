"""What all loops share: signals, and settings that must stay; on a loop that only adds."""

import json
import os
import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.checkpoints.run_checkpoints import saved_steps
from internvlu_jax.checkpoints.run_directory import with_present_names
from internvlu_jax.config import Compute, ConfigError
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.resuming import LoopState, NotFiniteError, Stopped, interruptible, interruption, run_steps
from internvlu_jax.utils.locks import locked

SETTINGS = {"rate": 0.5, "data": {"sources": [["a", 1.0]], "threads": 1}}
SIGNALS = [signal.SIGTERM, signal.SIGINT]


class Counter:
    """Data whose item is its position, and a step that adds it up; sends a signal to itself in one step."""

    def __init__(self, number: int | None = None, which: signal.Signals = signal.SIGINT, times: int = 1) -> None:
        self.position, self.steps, self._signal = 0, [], (number, which, times)

    def state(self) -> dict:
        return {"position": self.position}

    def restore(self, state: dict) -> None:
        self.position = state["position"]

    def __call__(self, state: LoopState, number: int) -> tuple[LoopState, dict]:
        self.position += 1
        self.steps.append(number)
        at, which, times = self._signal
        for _ in range(times if number == at else 0):
            signal.raise_signal(which)
        total = state.trained["total"] + 0.1 * self.position
        return LoopState({"total": total}, state.opt_state, {"total": total / 3}), {"loss": total}


def run(workdir, counter: Counter, settings=SETTINGS, **options) -> LoopState:
    options = {"steps": 5, "save_every": 100, "data": {"counter": counter}, "quiet": True, **options}
    zero = {"total": jnp.float32(0)}
    return run_steps(workdir, settings, lambda: LoopState(zero, {"count": jnp.int32(0)}, zero), counter, **options)


@pytest.mark.parametrize("which", SIGNALS)
@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_signal_saves_after_the_step_in_hand_and_the_rest_is_as_if_it_had_not_come(which, number, tmp_path):
    whole = run(tmp_path / "whole", Counter())
    before = [signal.getsignal(which) for which in SIGNALS]
    with pytest.raises(Stopped, match=rf"stopped at step {number + 1}; .*stopped. can go on"):
        run(tmp_path / "stopped", Counter(number, which))
    assert [signal.getsignal(which) for which in SIGNALS] == before
    rest = Counter()
    again = run(tmp_path / "stopped", rest)
    assert rest.steps == list(range(number + 1, 5))
    for name in ("trained", "ema"):
        np.testing.assert_array_equal(getattr(again, name)["total"], getattr(whole, name)["total"])
    assert (tmp_path / "stopped/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_a_second_interrupt_ends_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Counter(2, times=2))
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(Stopped):
        run(tmp_path, Counter(2, signal.SIGTERM, times=2))


@pytest.mark.parametrize("which", SIGNALS)
def test_a_signal_before_the_first_step_ends_at_once(which, tmp_path):
    def init():
        signal.raise_signal(which)
        pytest.fail("it went on")

    before = [signal.getsignal(which) for which in SIGNALS]
    with pytest.raises(Stopped, match="stopped at step 0"):
        run_steps(tmp_path, SETTINGS, init, pytest.fail, steps=5, save_every=1)
    assert [signal.getsignal(which) for which in SIGNALS] == before
    assert float(run(tmp_path, Counter()).trained["total"]) == pytest.approx(1.5)


def test_two_loops_in_one_directory(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"):
        run_steps(tmp_path, SETTINGS, pytest.fail, pytest.fail, steps=5, save_every=1)
    run(tmp_path, Counter())
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "metrics.jsonl", "checkpoints"}


def test_a_damaged_last_step_is_made_again(tmp_path, caplog):
    """From the one before it, with its data, to the same end."""
    whole = run(tmp_path / "whole", Counter())
    with pytest.raises(Stopped):
        run(tmp_path / "run", Counter(1))
    with pytest.raises(Stopped):
        run(tmp_path / "run", Counter(3))
    (tmp_path / "run/checkpoints/4/optimizer/_METADATA").write_text("{}")
    rest = Counter()
    assert float(run(tmp_path / "run", rest).trained["total"]) == float(whole.trained["total"])
    assert rest.steps == [2, 3, 4] and "step 2 is taken" in caplog.text
    assert (tmp_path / "run/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_a_number_that_is_not_finite_ends_the_loop_and_what_is_saved_is_from_before(tmp_path):
    """Before, the loop went on to its end, and what it saved on the way was that number."""

    def step(state: LoopState, number: int) -> tuple[LoopState, dict]:
        total = state.trained["total"] + (jnp.nan if number == 2 else 1.0)
        return LoopState({"total": total}, state.opt_state, {"total": total}), {"loss": 1.0, "grad_norm": total}

    for _ in range(2):  # the same call comes to the same end
        with pytest.raises(NotFiniteError, match=rf"{tmp_path}, step 3: grad_norm is not finite"):
            run(tmp_path, step, steps=9, save_every=2, data={})
        assert saved_steps(tmp_path / "checkpoints") == [2]
    assert [json.loads(line)["grad_norm"] for line in (tmp_path / "metrics.jsonl").open()] == [1.0, 2.0]
    done = run(tmp_path / "borne", step, steps=5, data={}, must_be_finite=False)
    assert np.isnan(done.trained["total"])


def test_off_the_main_thread_handlers_are_left_alone(tmp_path):
    outcome = []
    before = [signal.getsignal(which) for which in SIGNALS]

    def work():
        with interruption() as is_interrupted:
            outcome.append([signal.getsignal(which) for which in SIGNALS] == before and not is_interrupted(1))
        outcome.append(float(run(tmp_path, Counter()).trained["total"]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [True, pytest.approx(1.5)]


def test_of_several_processes_an_interrupt_is_passed_on(monkeypatch):
    """As SIGTERM, which JAX tells the others; a second one ends at once. See `tests.parallel.test_interrupts`."""
    passed = []
    before = signal.signal(signal.SIGTERM, lambda *_: passed.append(1))
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", lambda step: step == 7)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible(), interruption() as is_interrupted:
            signal.raise_signal(signal.SIGINT)
            assert passed == [1] and [is_interrupted(step) for step in (6, 7)] == [False, True]
            signal.raise_signal(signal.SIGINT)
        assert passed == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_settings_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, Counter(1))
    other = {"rate": 0.25, "data": {"sources": [["b", 1.0]], "threads": 1}}
    message = r'another configuration: rate: 0.5 -> 0.25; data.sources.0.0: "a" -> "b"'
    with pytest.raises(ConfigError, match=message):
        run_steps(tmp_path, other, pytest.fail, pytest.fail, steps=5, save_every=1)
    threads = {**SETTINGS, "data": {**SETTINGS["data"], "threads": 4}}
    with pytest.raises(ConfigError, match=r"data.threads: 1 -> 4"):
        run(tmp_path, Counter(), threads)
    assert float(run(tmp_path, Counter(), threads, may_change=("data.threads",)).trained["total"]) == pytest.approx(1.5)


def test_what_never_saved_may_begin_with_other_settings(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Counter(0, times=2))
    run(tmp_path, Counter(), {"rate": 0.25})
    with pytest.raises(ConfigError, match=r"rate: 0.25 -> 0.5"):
        run(tmp_path, Counter())


def test_checkpoints_without_settings_are_refused(tmp_path):
    run(tmp_path, Counter())
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds checkpoints of unknown settings: it has no config.json"):
        run(tmp_path, Counter())


def test_runs_train_with_a_scan_over_layers_and_those_of_before_did():
    with pytest.raises(ConfigError, match="training runs with 'scan'"):
        TrainConfig("x", 1, compute=Compute(layers="unrolled"))
    assert with_present_names({"compute": {"dtype": "float32"}})["compute"] == {"dtype": "float32", "layers": "scan"}
    assert with_present_names({"compute": {"layers": "unrolled"}})["compute"] == {"layers": "unrolled"}
