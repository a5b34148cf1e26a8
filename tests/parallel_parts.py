"""What tests/test_parallel.py runs in processes of their own, because the number of devices is fixed when JAX starts.

    python -m tests.parallel_parts PART OUT.npz [PROCESS PORT]

A part is a function that returns named arrays. With PROCESS and PORT it is one of two processes with four devices each;
without, the only one with eight.
"""

import os
import sys

if __name__ == "__main__":
    _count = 8 if len(sys.argv) == 3 else 4
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={_count}"
    os.environ["JAX_PLATFORMS"] = "cpu"

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from internvlu_jax.data.batch import Batch, Text
from internvlu_jax.parallel.executors import MeshExecutor, PmapExecutor, SingleExecutor, make_executor
from internvlu_jax.parallel.mesh import initialise
from internvlu_jax.training.config import MeshConfig

WIDTH, HIDDEN, HEADS, VOCABULARY = 16, 32, 4, 24


@struct.dataclass
class State:
    step: Any
    trained: Any
    frozen: Any
    opt_state: Any


class Totals(NamedTuple):
    tokens: Any


class Gradients(NamedTuple):
    of: Any
    loss: Any


class ToyStep:
    """A step with the parts of `training.step.Step`: weights by token, noise by row, Adam, something frozen."""

    optimizer = optax.adam(1e-2)

    def params(self, key):
        keys = iter(jax.random.split(key, 6))
        draw = lambda *shape: 0.3 * jax.random.normal(next(keys), shape)  # noqa: E731
        head = WIDTH // HEADS
        layers = {
            "attn": {"q": {"kernel": draw(2, WIDTH, HEADS, head)}, "out": {"kernel": draw(2, HEADS, head, WIDTH)}},
            "mlp": {"fc1": {"kernel": draw(2, WIDTH, HIDDEN)}, "fc2": {"kernel": draw(2, HIDDEN, WIDTH)}},
            "norm": {"scale": jnp.ones((2, WIDTH))},
        }
        return {"llm": {"embed": {"embedding": draw(VOCABULARY, WIDTH)}, "layers": layers}}

    def init(self, params):
        trained, frozen = {"llm": {"layers": params["llm"]["layers"]}}, {"llm": {"embed": params["llm"]["embed"]}}
        return State(jnp.zeros((), jnp.int32), trained, frozen, self.optimizer.init(trained))

    def totals(self, batches, axis_name=None):
        return _summed(Totals(sum(jnp.sum(jnp.asarray(b.text.weights)) for b in batches)), axis_name)

    def zeros(self, state):
        return Gradients(jax.tree.map(jnp.zeros_like, state.trained), jnp.zeros(()))

    def gradients(self, state, batch, totals, key):
        def loss(trained):
            draw = lambda i: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, state.step), i), (WIDTH,))  # noqa: E731
            noise = jax.vmap(draw)(jnp.asarray(batch.index))
            x = state.frozen["llm"]["embed"]["embedding"][batch.text.ids] + noise[:, None]

            def block(x, p):
                q = jnp.einsum("bsd,dnh->bsnh", x * p["norm"]["scale"], p["attn"]["q"]["kernel"])
                x = x + jnp.einsum("bsnh,nhd->bsd", jnp.tanh(q), p["attn"]["out"]["kernel"])
                return x + jnp.tanh(x @ p["mlp"]["fc1"]["kernel"]) @ p["mlp"]["fc2"]["kernel"], None

            x, _ = jax.lax.scan(block, x, trained["llm"]["layers"])
            return jnp.sum(jnp.mean(jnp.square(x), -1) * batch.text.weights) / totals.tokens

        value, of = jax.value_and_grad(loss)(state.trained)
        return Gradients(of, value)

    def update(self, state, gradients, axis_name=None):
        gradients = _summed(gradients, axis_name)
        updates, opt_state = self.optimizer.update(gradients.of, state.opt_state)
        new = state.replace(step=state.step + 1, opt_state=opt_state)
        norm = optax.tree.norm(gradients.of)
        return new.replace(trained=optax.apply_updates(state.trained, updates)), {"loss": gradients.loss, "norm": norm}

    def __call__(self, state, batches, key, axis_name=None):
        totals, gradients = self.totals(batches, axis_name), self.zeros(state)
        for batch in batches:
            gradients = jax.tree.map(jnp.add, gradients, self.gradients(state, batch, totals, key))
        return self.update(state, gradients, axis_name)


def _summed(tree, axis_name):
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def batches_of(step: int, lengths: tuple[int, ...], rows: int = 8) -> tuple[Batch, ...]:
    """Micro-batches of a step, whole; rows differ in how many tokens count."""
    rng = np.random.default_rng(step)
    found = []
    for n, length in enumerate(lengths):
        ids = rng.integers(0, VOCABULARY, (rows, length)).astype(np.int32)
        weights = (rng.random((rows, length)) < np.linspace(0.1, 0.9, rows)[:, None]).astype(np.float32)
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
        found.append(Batch(np.arange(n * rows, (n + 1) * rows, dtype=np.int32), Text(ids, positions, weights=weights)))
    return tuple(found)


def own_rows(executor, batch: Batch) -> Batch:
    rows = np.asarray(executor.rows(len(batch.index)))
    return jax.tree.map(lambda a: a[rows], batch)


def train(executor, plan: list[tuple[int, ...]]):
    """(state, metrics of each step) of steps with micro-batches of these lengths; the parameters are random."""
    step = ToyStep()
    executor.compile(step)
    params = executor.init(step.params, jax.random.key(0))
    state = executor.init(lambda p, key: step.init(p), params, jax.random.key(1))
    metrics = []
    for n, lengths in enumerate(plan):
        given = tuple(executor.put(own_rows(executor, batch)) for batch in batches_of(n, lengths))
        state, values = executor.step(state, given, jax.random.key(7))
        metrics.append({name: np.asarray(v) for name, v in executor.replica(values).items()})
    return state, metrics


def flat(prefix: str, tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {f"{prefix}/{jax.tree_util.keystr(p, simple=True, separator='/')}": np.asarray(leaf) for p, leaf in leaves}


def outcome(name: str, executor, plan) -> dict[str, np.ndarray]:
    state, metrics = train(executor, plan)
    return flat(f"{name}/state", executor.local(state)) | flat(f"{name}/metrics", metrics)


def mesh(*sizes: int) -> MeshExecutor:
    return make_executor("mesh", MeshConfig(*sizes))


# Steps with one micro-batch, and with two of two shapes in either order.
PLAN = [(5,), (5, 3), (3, 5)]


def equal() -> dict[str, np.ndarray]:
    """The same steps by all executors."""
    found = outcome("single", SingleExecutor(), PLAN) | outcome("pmap", PmapExecutor(), PLAN)
    for sizes in ((2, 2, 2), (1, 8, 1), (8, 1, 1), (1, 2, 4)):
        found |= outcome("mesh" + "".join(map(str, sizes)), mesh(*sizes), PLAN)
    return found


def two_processes() -> dict[str, np.ndarray]:
    """What `equal` does on two of its meshes, and on one whose tensor axis crosses the processes."""
    found = {}
    for sizes in ((2, 2, 2), (1, 8, 1), (1, 1, 8)):
        found |= outcome("mesh" + "".join(map(str, sizes)), mesh(*sizes), PLAN)
    found["rows"] = np.array(mesh(1, 8, 1).rows(16))
    return found


PARTS = {part.__name__: part for part in (equal, two_processes)}

if __name__ == "__main__":
    if len(sys.argv) > 3:
        initialise(f"127.0.0.1:{sys.argv[4]}", 2, int(sys.argv[3]))
    assert jax.device_count() == 8
    np.savez(sys.argv[2], **PARTS[sys.argv[1]]())
