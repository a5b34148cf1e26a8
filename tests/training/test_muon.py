"""Muon against singular vectors in float64, against optax's own, and beside Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.muon import matrix_axes, scale_by_muon
from internvlu_jax.training.optimizer import factors, make_optimizer
from internvlu_jax.utils.tree import from_paths, paths

SHAPES = {
    "vlm/llm/layers/attn/q/kernel": (3, 16, 4, 8),
    "vlm/llm/layers/attn/out/kernel": (3, 4, 8, 16),
    "head/mmdit/blocks/mlp/fc1/kernel": (2, 8, 24),
    "head/mmdit/blocks/mlp/fc1/bias": (2, 24),
    "vlm/llm/layers/input_norm/scale": (3, 16),
    "vlm/projector/fc1/kernel": (16, 8),
    "vlm/llm/embed/embedding": (30, 16),
}
MATRICES = {path: shape for path, shape in SHAPES.items() if matrix_axes(path, len(shape)) is not None}


def tree(seed: int, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return from_paths({path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()})


def as_matrices(path: str, leaf: jax.Array) -> np.ndarray:
    """[layers, in, out], float64."""
    inputs = {"q": 1, "out": 2, "fc1": 1}[path.split("/")[-2]]
    return np.asarray(leaf, np.float64).reshape(leaf.shape[0], int(np.prod(leaf.shape[1 : 1 + inputs])), -1)


def test_kernels_of_stacked_layers_are_the_matrices():
    assert list(MATRICES) == list(SHAPES)[:3]


def test_the_first_update_has_the_gradients_singular_vectors():
    """And singular values near one, as near as five rounds of the iteration bring them, times the factor."""
    gradients = tree(0, MATRICES)
    rule = scale_by_muon(gradients).transform
    updates, _ = rule.update(gradients, rule.init(gradients))
    for path, got in paths(updates).items():
        given, got = as_matrices(path, paths(gradients)[path]), as_matrices(path, got)
        for gradient, update in zip(given, got, strict=True):
            u, _, v = np.linalg.svd(gradient, full_matrices=False)
            size = 0.2 * np.sqrt(max(gradient.shape))
            turned = u.T @ update @ v.T / size
            assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-3
            assert np.diag(turned).min() > 0.6 and np.diag(turned).max() < 1.3


def test_every_matrix_moves_as_optax_moves_it_alone():
    steps = [tree(seed, MATRICES) for seed in range(3)]
    rule = scale_by_muon(steps[0]).transform
    state, found = rule.init(steps[0]), []
    for gradients in steps:
        updates, state = rule.update(gradients, state)
        found.append(updates)
    for path in MATRICES:
        for layer in range(SHAPES[path][0]):
            alone = optax.contrib.muon(-1.0, consistent_rms=0.2)
            first = {"w": jnp.asarray(as_matrices(path, paths(steps[0])[path])[layer], jnp.float32)}
            own = alone.init(first)
            for gradients, updates in zip(steps, found, strict=True):
                one = {"w": jnp.asarray(as_matrices(path, paths(gradients)[path])[layer], jnp.float32)}
                want, own = alone.update(one, own, first)
                got = as_matrices(path, paths(updates)[path])[layer]
                np.testing.assert_allclose(got, want["w"], atol=2e-5 * np.abs(want["w"]).max(), err_msg=path)


@pytest.fixture(scope="module")
def optimizers():
    """By what moves the matrices: the optimizer, and the parameters."""
    params = tree(1)
    made = {}
    for matrices in ("adam", "muon"):
        cfg = OptimizerConfig(matrices=matrices, warmup=0, weight_decay=0.1)
        made[matrices] = make_optimizer(cfg, factors(params, cfg), params, steps=10)
    return made, params


def test_all_else_moves_as_without(optimizers):
    made, params = optimizers
    moved = {}
    for name, optimizer in made.items():
        updates, _ = optimizer.update(tree(2), optimizer.init(params), params)
        moved[name] = paths(updates)
    for path in SHAPES:
        same = np.array_equal(moved["adam"][path], moved["muon"][path])
        assert same == (path not in MATRICES), path


def test_what_is_not_finite_leaves_the_moments(optimizers):
    made, params = optimizers
    optimizer = made["muon"]
    _, state = optimizer.update(tree(2), optimizer.init(params), params)
    _, after = optimizer.update(tree(3), state, params, finite=jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, after, state)
