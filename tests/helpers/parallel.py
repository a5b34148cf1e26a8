"""What tests/parallel runs in processes of their own, because the number of devices is fixed when JAX starts.

    python -m tests.helpers.parallel PART OUT.npz [PROCESS PORT]

A part is a function that returns named arrays. With PROCESS and PORT it is one of two processes with four devices each;
without, the only one with eight.
"""

import os
import sys

if __name__ == "__main__":
    _count = 8 if len(sys.argv) == 3 else 4
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={_count}"
    os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses
import re
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import NamedSharding, PartitionSpec

from internvlu_jax.config import Compute
from internvlu_jax.data.batch import Batch, TextBatch
from internvlu_jax.models.mmdit import MMDiT
from internvlu_jax.models.qwen3 import Qwen3
from internvlu_jax.ops.attention.plain import plain_attention
from internvlu_jax.ops.attention.splash import splash_attention
from internvlu_jax.parallel.config import MeshConfig
from internvlu_jax.parallel.executors import MeshExecutor, PmapExecutor, SingleExecutor, make_executor
from internvlu_jax.parallel.mesh import initialise, make_mesh, rows_sharding, tracing_on
from internvlu_jax.presets import debug_config
from internvlu_jax.utils.tree import in_dtype
from tests.helpers.parallel_pipeline import (
    adapters,
    adapters_across,
    conversation,
    conversation_across,
    pipeline,
    pipeline_across,
    pipeline_with_sources,
)

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

    def measure(self, state, batch, key, axis_name=None):
        share = self.gradients(state, batch, Totals(1.0), key).loss
        return _summed({"sum": share}, axis_name)

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
        found.append(
            Batch(np.arange(n * rows, (n + 1) * rows, dtype=np.int32), TextBatch(ids, positions, weights=weights))
        )
    return tuple(found)


def own_rows(executor, batch: Batch) -> Batch:
    rows = np.asarray(executor.rows(len(batch.index)))
    return jax.tree.map(lambda a: a[rows], batch)


@contextmanager
def compilations():
    """Yields a list that grows by one for each program that is compiled."""
    seen = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


# Steps with one micro-batch, and with two of two shapes in either order.
PLAN = [(5,), (5, 3), (3, 5)]


def train(executor) -> tuple[State, dict[str, np.ndarray]]:
    """The state after PLAN, from random parameters, and what was seen on the way: metrics, programs compiled in each
    step, arrays of each old state that are still there, whether the new one lies where the first did. What is measured
    afterwards comes last."""
    step = ToyStep()
    executor.compile(step)
    params = executor.init(step.params, jax.random.key(0))
    state = executor.init(lambda p, key: step.init(p), params, jax.random.key(1))
    where, metrics, counts, kept = places(state), [], [], []
    for n, lengths in enumerate(PLAN):
        given = tuple(executor.put(own_rows(executor, batch)) for batch in batches_of(n, lengths))
        before, key = state, jax.random.key(7)
        with compilations() as seen:
            state, values = executor.step(state, given, key)
        metrics.append({name: np.asarray(v) for name, v in executor.replica(values).items()})
        counts.append(len(seen))
        kept.append(sum(not leaf.is_deleted() for leaf in jax.tree.leaves((before.trained, before.opt_state))))
    for batch in batches_of(len(PLAN), (5, 3)):
        metrics.append(executor.measure(state, executor.put(own_rows(executor, batch)), jax.random.key(8)))
    seen = {"counts": counts, "kept": kept, "stays": where == places(state)}
    return state, flat("metrics", metrics) | {name: np.array(value) for name, value in seen.items()}


def places(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def flat(prefix: str, tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {f"{prefix}/{jax.tree_util.keystr(p, simple=True, separator='/')}": np.asarray(leaf) for p, leaf in leaves}


def mesh(*sizes: int) -> MeshExecutor:
    return make_executor("mesh", MeshConfig(*sizes))


def trained(name: str, executor) -> dict[str, np.ndarray]:
    """What `train` finds, with the state from a single device, under a name."""
    state, found = train(executor)
    found |= flat("state", executor.savable(state)) | saved(executor, state)
    return {f"{name}/{key}": value for key, value in found.items()}


def saved(executor, state) -> dict[str, np.ndarray]:
    """Whether a state that was saved is the same, in the same place, from arrays on devices and on the host; and
    whether `in_dtype` leaves it there."""
    found = {}
    host = jax.tree.map(np.asarray, executor.savable(state))
    like = executor.abstract(jax.eval_shape(lambda tree: tree, host))
    on_devices = jax.tree.map(lambda leaf, shape: jax.device_put(leaf, shape.sharding), host, like)
    for name, given in (("devices", on_devices), ("host", host)):
        back = executor.from_saved(given)
        again = jax.tree.map(np.array_equal, jax.tree.map(np.asarray, executor.savable(back)), host)
        found[f"from {name}"] = np.array(all(jax.tree.leaves(again)) and places(back) == places(state))
        batch = executor.put(own_rows(executor, batches_of(0, PLAN[0])[0]))
        with compilations() as seen:
            executor.step(back, (batch,), jax.random.key(7))
        found[f"programs after {name}"] = np.array(len(seen))
    half = in_dtype(state.trained, "bfloat16")
    are = all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))
    found["half"] = np.array(are and places(half) == places(state.trained))
    return found


def executors() -> dict[str, np.ndarray]:
    """The same steps by all executors."""
    found = trained("single", SingleExecutor()) | trained("pmap", PmapExecutor())
    return found | trained("mesh222", mesh(2, 2, 2)) | trained("mesh181", mesh(1, 8, 1))


def two_processes() -> dict[str, np.ndarray]:
    """The same steps where each process has half of the rows; and what a batch becomes where both have all of them."""
    state, found = train(mesh(2, 2, 2))
    found |= flat("state", process_allgather(state, tiled=True))
    across, batch = mesh(1, 1, 8), batches_of(0, (5,))[0]
    found["across"] = np.asarray(across.put(own_rows(across, batch)).text.weights)
    return found | {"rows": np.array(mesh(1, 8, 1).rows(16)), "rows across": np.array(across.rows(3))}


# Sizes that occur nowhere else, so that shapes in a compiled program can be told apart.
ROWS, TOKENS = 24, 20


def communication() -> dict[str, np.ndarray]:
    """Shapes that devices exchange on a (1, 8, 1) mesh for the gradients of the text model up to its last state, of
    the same where the compiler is left to itself, of the text model up to its scores, and of the head."""
    cfg, compute, executor = debug_config(), Compute(remat="full"), mesh(1, 8, 1)
    llm = dataclasses.replace(cfg.vlm.llm_config, num_hidden_layers=2, hidden_size=64, intermediate_size=256)
    llm, dit = Qwen3(llm, compute), MMDiT(cfg.generation_decoder.decoder_config, compute)
    ids, latents = np.zeros((ROWS, TOKENS), np.int32), np.zeros((ROWS, 8, 10, 16), np.float32)
    lengths, context = np.zeros(ROWS, np.int32), np.zeros((ROWS, TOKENS, dit.cfg.hidden_size), np.float32)
    rope = np.zeros((ROWS, 2 * TOKENS, dit.cfg.attention_head_dim // 2), np.float32)

    def last(module, ids):
        return module(module.embed(ids), ids).last

    def scores(module, ids):
        return module.logits(last(module, ids))

    def velocity(module, latents, context, lengths, rope):
        return module(latents, lengths.astype(np.float32), context, lengths, (rope, rope))

    bound = partial(tracing_on, executor.mesh)
    found = {}
    for name, module, function, given, around in (
        ("text", llm, last, (ids,), bound),
        ("text by itself", llm, last, (ids,), nullcontext),
        ("scores", llm, scores, (ids,), bound),
        ("head", dit, velocity, (latents, context, lengths, rope), bound),
    ):
        shapes = jax.eval_shape(nn.init(function, module), jax.random.key(0), *given)
        params = executor.abstract({"model": shapes["params"]})["model"]

        def loss(params, given, function=function, module=module):
            return jnp.sum(jnp.square(nn.apply(function, module)({"params": params}, *given)))

        where = jax.tree.map(lambda leaf: leaf.sharding, params)
        with around():
            lowered = jax.jit(jax.grad(loss), out_shardings=where).lower(params, executor.put(given))
        found[name] = np.array(exchanged(lowered.compile().as_text()))
    return found


def kernel() -> dict[str, np.ndarray]:
    """Attention by the TPU's kernel, interpreted: values and gradients on a mesh, XLA's, and what is exchanged."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    q, k, v, d_out = (jax.random.normal(jax.random.key(i), (4, 40, heads, 64)) for i, heads in enumerate((4, 2, 2, 4)))
    segments = jnp.tile(jnp.repeat(jnp.arange(2), jnp.array([15, 25]))[None], (4, 1))

    def run(function, q, k, v, d_out, segments):
        out, pull = jax.vjp(lambda *qkv: function(*qkv, True, None, segments), q, k, v)
        return out, *pull(d_out)

    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    given = (*jax.device_put((q, k, v, d_out), where), jax.device_put(segments, rows_sharding(mesh)))
    with tracing_on(mesh):
        program = jax.jit(partial(run, partial(splash_attention, interpret=True))).lower(*given).compile()
    want = jax.jit(partial(run, plain_attention))(q, k, v, d_out, segments)
    arrays = {f"{way} {i}": x for way, made in (("mesh", program(*given)), ("one", want)) for i, x in enumerate(made)}
    return arrays | {"exchanged": np.array(exchanged(program.as_text()))}


def exchanged(program: str) -> list[str]:
    """Results of the collectives of a compiled program, like "f32[24,20,64]"."""
    names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    results = re.findall(rf" = (.*?) (?:{names})(?:-start)?\(", program)
    return sorted({shape for result in results for shape in re.findall(r"\w+\[[\d,]*\]", result)})


_PARTS = (
    *(executors, two_processes, communication, kernel, adapters, adapters_across),
    *(pipeline, pipeline_with_sources, pipeline_across, conversation, conversation_across),
)
PARTS = {part.__name__: part for part in _PARTS}

if __name__ == "__main__":
    if len(sys.argv) > 3:
        initialise(f"127.0.0.1:{sys.argv[4]}", 2, int(sys.argv[3]))
    assert jax.device_count() == 8
    np.savez(sys.argv[2], **PARTS[sys.argv[1]]())
