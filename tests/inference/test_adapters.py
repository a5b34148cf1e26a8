"""Adapters of a pipeline: kernels hold the updates, several add up, and unloading gives back every bit."""

import numpy as np
import pytest

from internvlu_jax import InternVLUPipeline
from internvlu_jax.cli import Model
from internvlu_jax.inference import layers
from internvlu_jax.models.qwen3 import as_list
from internvlu_jax.utils.tree import from_paths, paths
from tests.conftest import GOLDENS
from tests.helpers.adapters import DOWN2, LAST, O1, Q0, TO_Q, V1, factors, update, weights, write_adapter
from tests.helpers.measures import assert_close
from tests.helpers.processes import arrays, by_two, launch, named

CHECKPOINT = GOLDENS / "base/checkpoint"


@pytest.fixture(scope="module")
def matrices():
    return weights(CHECKPOINT)


@pytest.fixture(scope="module")
def tensors(matrices):
    """Of two adapters, which share a map."""
    both = {Q0, O1, V1, TO_Q}, {Q0, DOWN2, LAST}
    return [factors({module: matrices[module] for module in own}, seed=n) for n, own in enumerate(map(sorted, both))]


@pytest.fixture(scope="module")
def adapters(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / name, own) for name, own in zip(("first", "second"), tensors, strict=True)]


@pytest.fixture
def pipe():
    return InternVLUPipeline.from_pretrained(CHECKPOINT)


def assert_equal(got, want) -> None:
    """Bit for bit."""
    got, want = paths(got), paths(want)
    assert got.keys() == want.keys()
    for path in got:
        np.testing.assert_array_equal(np.asarray(got[path]), np.asarray(want[path]), err_msg=path)


def query(pipe) -> np.ndarray:
    """The first layer's queries' matrix, [out, in]."""
    return np.asarray(paths(pipe.params)["vlm/llm/layers/attn/q/kernel"])[0].reshape(64, -1).T


def test_several_add_up_and_go_again(pipe, adapters, tensors, matrices):
    """In the map that both change: W + sum of scale * alpha / r B A, with alpha / r = 2."""
    before = pipe.params
    pipe.load_lora_weights(adapters[0], scale=0.5)
    np.testing.assert_allclose(query(pipe), matrices[Q0] + update(tensors[0], Q0), atol=1e-6)
    alone = pipe.params
    pipe.load_lora_weights(adapters[1], "other", scale=-1.0)
    assert pipe.get_active_adapters() == {"first": 0.5, "other": -1.0}
    np.testing.assert_allclose(
        query(pipe), matrices[Q0] + update(tensors[0], Q0) - 2 * update(tensors[1], Q0), atol=1e-6
    )
    pipe.set_adapters("other", 0.25)
    np.testing.assert_allclose(query(pipe), matrices[Q0] + 0.5 * update(tensors[1], Q0), atol=1e-6)
    changed = {path for path, leaf in paths(pipe.params).items() if not np.array_equal(leaf, paths(before)[path])}
    places = ("vlm/llm/layers/attn/q", "vlm/llm/layers/mlp/down", "head/mmdit/last_block/image/mod")
    assert changed == {f"{place}/kernel" for place in places}
    pipe.set_adapters(["first", "other"], [0.5, -1.0])
    pipe.delete_adapters("other")
    assert_equal(pipe.params, alone)
    pipe.unload_lora_weights()
    assert_equal(pipe.params, before)
    assert pipe.get_active_adapters() == {}
    assert all(leaf is paths(before)[path] for path, leaf in paths(pipe.params).items())  # and nothing is held twice


def test_the_shell_takes_several_whose_names_end_alike(tensors, matrices, tmp_path):
    first, second = (write_adapter(tmp_path / run / "2000", own) for run, own in zip("ab", tensors, strict=True))
    pipe = Model(str(CHECKPOINT), adapter=(f"{first}:0.5", str(second))).load()
    assert list(pipe.get_active_adapters().values()) == [0.5, 1.0]
    assert_close(query(pipe), matrices[Q0] + update(tensors[0], Q0) + 2 * update(tensors[1], Q0))


def test_a_list_of_layers_holds_the_same(pipe, adapters, monkeypatch):
    """As a large model is served: joined kernels that lead with their outputs."""
    monkeypatch.setattr(layers, "_LIST_FROM", 0)
    large = InternVLUPipeline.from_pretrained(CHECKPOINT)
    assert large.model.compute.layers == "unrolled"
    before = large.params
    for own in (pipe, large):
        own.load_lora_weights(adapters[0], scale=0.5)
        own.load_lora_weights(adapters[1])
    want = from_paths(paths(pipe.params))
    want["vlm"]["llm"]["layers"] = as_list(want["vlm"]["llm"]["layers"])
    got, old = paths(large.params), paths(before)
    for path, leaf in paths(want).items():
        np.testing.assert_allclose(np.asarray(got[path]), np.asarray(leaf), atol=1e-6, err_msg=path)
    changed = {path for path in got if got[path] is not old[path] and "llm/layers" in path}
    maps = ("attn/q_k_v", "attn/out", "mlp/down")
    assert changed == {f"vlm/llm/layers/{i}/{name}/kernel" for i in range(3) for name in maps}
    large.unload_lora_weights()
    assert_equal(large.params, before)


def test_what_is_drawn_changes_and_comes_back(pipe, adapters):
    """Also what is kept of dropped prompts between calls."""

    def draw() -> np.ndarray:
        return np.asarray(
            pipe("a cat", generation_mode="image", height=32, width=32, num_inference_steps=1, seed=0).images[0]
        )

    plain = draw()
    pipe.load_lora_weights(adapters[0])
    assert np.abs(draw().astype(int) - plain).max() > 1
    pipe.unload_lora_weights()
    np.testing.assert_array_equal(draw(), plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mesh", "pmap"])
def test_devices_hold_the_same(found, name):
    """With two adapters and with one of them, each kernel where it lay before."""
    got, want = named(found, name), named(found, "one")
    assert got.keys() == want.keys() and len(got) > 10
    for path in got.keys() - {"held"}:
        np.testing.assert_allclose(got[path], want[path], atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_two_processes_hold_the_same(found, tmp_path):
    for got in by_two("adapters_across", tmp_path):
        for path, kernel in got.items():
            np.testing.assert_allclose(kernel, found[f"one/{path}"], atol=1e-6, err_msg=path)
        assert len(got) > 10


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("devices") / "adapters.npz"
    return arrays(launch("adapters", out), out)


def test_8_bit_kernels_are_refused(pipe, adapters):
    parts = pipe.config, pipe.params, pipe.processor, pipe.model.compute
    small = InternVLUPipeline(*parts, quantization="int8")
    with pytest.raises(ValueError, match=r"4 maps that the adapters change have 8-bit weights.*--adapter PATH"):
        small.load_lora_weights(adapters[0])
    assert small.params is pipe.params and small.get_active_adapters() == {}


def test_mistakes_change_nothing(pipe, adapters, matrices, tmp_path):
    pipe.load_lora_weights(adapters[0])
    held = pipe.params
    stranger = write_adapter(
        tmp_path / "stranger", factors({"language_model.model.layers.7.mlp.up_proj": matrices[V1]})
    )
    for call, message in (
        (lambda: pipe.load_lora_weights(stranger), "does not have as linear maps: language_model.model.layers.7"),
        (lambda: pipe.load_lora_weights(adapters[1], "first"), "adapter_name 'first' is taken"),
        (lambda: pipe.load_lora_weights(adapters[1], scale=float("nan")), "scale of an adapter is nan"),
        (lambda: pipe.load_lora_weights(tmp_path / "none"), "there is no directory"),
        (lambda: pipe.set_adapters(["first", "x"]), "no adapters 'x'; loaded: first"),
        (lambda: pipe.set_adapters(["first"], [1.0, 2.0]), "2 adapter_weights for 1 adapters"),
        (lambda: pipe.delete_adapters("x"), "no adapters 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert pipe.params is held and pipe.get_active_adapters() == {"first": 1.0}
