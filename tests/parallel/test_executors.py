"""Meshes, where parameters lie, and executors: one device, eight simulated ones, and two processes with four each."""

import math
import re
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.parallel import mesh as mesh_module
from internvlu_jax.parallel.config import MeshConfig
from internvlu_jax.parallel.executors import PmapExecutor, SingleExecutor, make_executor
from internvlu_jax.parallel.mesh import AXES, initialise, make_mesh
from internvlu_jax.parallel.rules import shardings, spec
from internvlu_jax.utils.tree import paths
from tests.helpers.measures import assert_close
from tests.helpers.parallel import PLAN, ROWS, TOKENS, batches_of
from tests.helpers.processes import arrays, by_two, launch, named


def abstract(*sizes: int) -> AbstractMesh:
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


# Processes of their own


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a part on eight devices, once."""
    folder, known = tmp_path_factory.mktemp("parallel"), {}

    def get(part: str) -> dict[str, np.ndarray]:
        if part not in known:
            known[part] = arrays(launch(part, folder / f"{part}.npz"), folder / f"{part}.npz")
        return known[part]

    return get


def results(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in found.items() if name.startswith(("state/", "metrics/"))}


def assert_same(found: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    found, want = results(found), results(want)
    assert set(found) == set(want)
    for name, value in want.items():
        assert_close(found[name], value, 2e-6, name)


@pytest.mark.parametrize("name", ["mesh222", "mesh181", "pmap"])
def test_executors_agree(run, name):
    """Losses, parameters, moments after steps of one and of several micro-batches, from parameters made in place."""
    found = run("executors")
    want = named(found, "single")
    assert want["state/step"] == len(PLAN)
    assert want["metrics/0/loss"] != want["metrics/1/loss"]
    assert want[f"metrics/{len(PLAN)}/sum"] != want[f"metrics/{len(PLAN) + 1}/sum"]
    assert_same(named(found, name), want)


@pytest.mark.parametrize("name", ["single", "mesh222", "mesh181", "pmap"])
def test_programs_of_a_step(run, name):
    """PLAN is one micro-batch, two of two shapes, and the same two in the other order."""
    found = named(run("executors"), name)
    # Two shapes: two programs for totals and two for gradients; pooling, zeros and update are one each.
    np.testing.assert_array_equal(found["counts"], [1, 7, 0])
    np.testing.assert_array_equal(found["kept"], 0, err_msg="the old state is given away")
    assert found["stays"], "the new state lies where the old one did"


@pytest.mark.parametrize("name", ["single", "mesh222", "mesh181", "pmap"])
def test_saved_state_comes_back_to_its_place(run, name):
    found = named(run("executors"), name)
    assert found["from devices"] and found["from host"]
    assert found["programs after devices"] == found["programs after host"] == 0, "it goes on without compiling again"
    assert found["half"], "in the dtype asked, where it lay"


@pytest.mark.slow
def test_two_processes_equal_one(run, tmp_path):
    first, second = by_two("two_processes", tmp_path)
    for found in (first, second):
        assert_same(found, named(run("executors"), "single"))
        np.testing.assert_array_equal(found["counts"], [1, 7, 0])
        np.testing.assert_array_equal(found["rows across"], range(3))
        np.testing.assert_array_equal(found["across"], batches_of(0, (5,))[0].text.weights)
    assert [*first["rows"], *second["rows"]] == list(range(16))


def rows_exchanged(shapes: np.ndarray) -> list[str]:
    """Activations of all rows, token by token; ids are few enough to be sent."""
    return [shape for shape in shapes if re.match(rf"(f32|bf16)\[{ROWS},{TOKENS},", shape)]


@pytest.mark.slow
def test_weights_travel_and_activations_stay(run):
    found = run("communication")
    assert rows_exchanged(found["text by itself"]), "else this test could not fail"
    assert rows_exchanged(found["text"]) == []
    assert rows_exchanged(found["head"]) == []
    assert "f32[64,256]" in found["text"] and "f32[64,256]" in found["head"], "the MLP's weights are gathered"


@pytest.mark.slow
def test_the_output_layer_stays_and_its_rows_travel(run):
    shapes = run("communication")["scores"]
    assert rows_exchanged(shapes) == [f"f32[{ROWS},{TOKENS},64]"]
    assert not [shape for shape in shapes if "512" in shape], "neither the layer nor scores of the vocabulary of 512"


def test_each_device_runs_the_attention_kernel_on_its_own_rows_and_heads(run):
    arrays = run("kernel")
    for i, what in enumerate(("value", "dq", "dk", "dv")):
        assert_close(arrays[f"mesh {i}"], arrays[f"one {i}"], 2e-6, what=what)
    assert not arrays["exchanged"].size


# Where parameters lie


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2)])
def test_no_large_array_lies_whole_on_a_device(sizes):
    """At full size every array over 1.2 million numbers is cut by fsdp x tensor, but for the VAE's."""
    mesh, shapes = abstract(*sizes), param_shapes(InternVLUConfig())
    where = paths(shardings(shapes, mesh))
    share = 0
    for path, leaf in paths(shapes).items():
        held = math.prod(where[path].shard_shape(leaf.shape))
        share += held
        if leaf.size > 1_200_000 and not path.startswith("vae/"):
            assert held * sizes[1] * sizes[2] == leaf.size, (path, where[path].spec)
        if path.split("/")[-3:-1] == ["attn", "q"]:
            assert where[path].spec[0] is None, "layers are not cut"
    cut = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / (sizes[1] * sizes[2])
    assert cut < share < cut + 50e6


def spec_of(path: str, shape: tuple[int, ...], *sizes: int) -> P:
    return spec(path, shape, abstract(*sizes))


def test_rules():
    q, shape = "vlm/llm/layers/attn/q/kernel", (3, 64, 8, 16)
    assert spec_of(q, shape, 2, 2, 2) == P(None, "fsdp", "tensor")
    assert spec_of(f"opt_state/1/mu/{q}", shape, 2, 2, 2) == P(None, "fsdp", "tensor"), "moments lie like parameters"
    assert spec_of(q, shape, 8, 1, 1) == P()
    assert spec_of("last_block/image/q/kernel", (64, 8, 16), 1, 2, 4) == P("fsdp", "tensor"), "not stacked"
    assert spec_of("mlp/fc2/kernel", (3, 64, 32), 2, 2, 2) == P(None, "tensor", "fsdp")
    assert spec_of("llm/embed/embedding", (64, 32), 2, 2, 2) == P(None, ("fsdp", "tensor"))
    assert spec_of("mlp/fc1/bias", (3, 4096), 2, 2, 2) == P()
    assert spec_of("vae/decoder/mid/attn/qkv/kernel", (384, 1152), 2, 2, 2) == P()


def test_an_axis_that_does_not_divide_joins_the_other_or_is_left_out():
    assert spec_of("q/kernel", (1536, 12, 256), 1, 1, 8) == P("tensor"), "12 heads on 8 devices"
    assert spec_of("q/kernel", (1536, 12, 256), 1, 2, 8) == P(("fsdp", "tensor"))
    assert spec_of("fc1/kernel", (7, 32), 1, 2, 2) == P(None, ("tensor", "fsdp"))
    assert spec_of("fc1/kernel", (7, 9), 1, 2, 2) == P()


def test_adapters_lie_like_the_sides_of_their_kernels():
    assert spec_of("attn/q/lora_a", (3, 64, 16), 1, 2, 2) == P(None, "fsdp")
    assert spec_of("attn/q/lora_b", (3, 16, 8, 4), 1, 2, 2) == P(None, None, "tensor")
    assert spec_of("attn/out/lora_a", (3, 8, 4, 16), 1, 2, 2) == P(None, "tensor")
    assert spec_of("mlp/fc2/lora_b", (3, 16, 64), 1, 2, 2) == P(None, None, "fsdp")


# Meshes


def test_mesh_takes_what_is_left():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    resolved = mesh_module._resolved
    assert resolved(MeshConfig(-1, 2, 2), 8) == (2, 2, 2)
    assert resolved(MeshConfig(1, -1, 1), 8) == (1, 8, 1)
    assert resolved(MeshConfig(8, 1, 1), 8) == (8, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((-1, 3, 1), "mesh.fsdp 3.*there are 8 devices.*divide them: 1, 2, 4, 8"),
        ((2, 2, 1), "there are 8 devices, and the product must be that"),
        ((-1, -1, 1), "-1 at most once"),
        ((-1, 0, 1), "at least 1"),
    ],
)
def test_mesh_that_does_not_fit(sizes, words):
    with pytest.raises(ValueError, match=words):
        mesh_module._resolved(MeshConfig(*sizes), 8)


def test_slices_lie_along_an_outer_axis():
    """Nodes of a GPU cluster, and slices of a TPU cluster, have slow links between them."""
    devices = [
        SimpleNamespace(id=n, process_index=n // 4, slice_index=n // 4, platform="gpu", device_kind="gpu")
        for n in range(8)
    ]
    for shape in ((2, 4, 1), (1, 4, 2), (4, 1, 2)):
        arranged = mesh_module._arranged(devices, shape)
        assert arranged.shape == shape
        outer = next(n for n, size in enumerate(shape) if size % 2 == 0)
        first, second = np.split(arranged, 2, axis=outer)
        assert {d.slice_index for d in first.flat} == {0} and {d.slice_index for d in second.flat} == {1}


def test_some_of_the_cluster_is_not_enough():
    with pytest.raises(ValueError, match="give all three"):
        initialise("localhost:1234", 2)


@pytest.mark.parametrize("alike", [True, False])
def test_a_process_that_fails_leaves_with_the_others_or_alone(monkeypatch, alike):
    """Alone it would wait for minutes, in JAX's `shutdown`."""
    met, ended = threading.Event(), []
    monkeypatch.setattr(mesh_module, "_PATIENCE", 60.0 if alike else 0.1)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: alike or met.wait(60))
    monkeypatch.setattr(mesh_module.os, "_exit", ended.append)
    begun = time.monotonic()
    mesh_module.leave(2)
    assert ended == [2] and time.monotonic() - begun < 30
    met.set()


# Executors on the one device of this process


def test_rows_that_cannot_be_shared_out():
    pmap = PmapExecutor([jax.devices()[0]] * 4)
    with pytest.raises(ValueError, match=r"10 rows .* 4 devices under pmap; the next sizes are 8 or 12"):
        pmap.rows(10)
    with pytest.raises(ValueError, match=r"the next sizes are 4$"):
        pmap.rows(3)
    assert list(pmap.rows(8)) == list(range(8))


def test_executor_of_a_configuration():
    assert isinstance(make_executor("single", MeshConfig()), SingleExecutor)
    assert SingleExecutor().device_count == 1, "however many there are"
    assert PmapExecutor([jax.devices()[0]] * 4).device_count == 4
    assert list(make_executor("mesh", MeshConfig()).rows(3)) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"mesh\.fsdp 5"):
        make_executor("mesh", MeshConfig(fsdp=5))


def test_only_a_mesh_spans_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="'pmap' runs on one process, and there are 2"):
        make_executor("pmap", MeshConfig())
