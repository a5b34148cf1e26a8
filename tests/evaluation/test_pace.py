"""The seconds of programs, against a program that is known to take some."""

import time
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from internvlu_jax.evaluation import pace
from internvlu_jax.evaluation.pace import Stopwatch, measured
from internvlu_jax.inference import programs
from internvlu_jax.parallel.placement import OneDevice, Placement

SECONDS = 0.05


def waited(x):
    time.sleep(SECONDS)
    return x


@partial(jax.jit, static_argnums=0)
def sleeping(model, params, x):
    return jax.pure_callback(waited, x, x)


def test_a_program_takes_until_its_results_are_there():
    watch = Stopwatch(OneDevice())
    assert isinstance(watch, Placement)
    x = watch.put(np.arange(3.0, dtype=np.float32))
    assert watch.get(watch.run(sleeping, None, {}, x), 3).tolist() == [0, 1, 2]
    ((program, seconds),) = watch.seconds
    assert program is sleeping and seconds >= SECONDS


def test_the_sampler_is_part_of_all(monkeypatch):
    """A batch of six in two programs of equal length."""
    monkeypatch.setattr(programs, "draw", sleeping)
    monkeypatch.setattr(pace, "InternVLUPipeline", lambda *parts: SimpleNamespace(on=parts[4]))
    model = SimpleNamespace(compute=None, quantization=None)
    pipe = SimpleNamespace(on=OneDevice(), config=None, params={}, processor=None, model=model)
    other = partial(jax.jit, static_argnums=0)(lambda model, params, x: sleeping(model, params, x) + 1)
    x = jnp.zeros(2)
    for program in (sleeping, other):
        jax.block_until_ready(program(None, {}, x))

    def call(timed):
        for program in (sleeping, other):
            timed.on.run(program, None, {}, x)

    found = measured(pipe, call, 6, 10.0)
    assert found.run == 10 and found.compiled <= 6 / (2 * SECONDS)
    assert found.sampler is not None and found.compiled < found.sampler <= 6 / SECONDS
    monkeypatch.setattr(programs, "draw", None)
    assert measured(pipe, call, 6, 10.0).sampler is None
