"""Which models are served from a list of layers."""

import jax
import jax.numpy as jnp
import pytest

from internvlu_jax import InternVLUPipeline
from internvlu_jax.evaluation.settings import fingerprint
from internvlu_jax.inference import layers
from internvlu_jax.inference.layers import layers_of, listed
from internvlu_jax.inference.pipeline import _finished
from internvlu_jax.models.quantization import Kernel
from internvlu_jax.models.qwen3 import as_list
from internvlu_jax.parallel.placement import OneDevice
from internvlu_jax.utils.tree import paths
from tests.conftest import GOLDENS


@pytest.mark.parametrize(("spare", "layers"), [(1, "scan"), (0, "unrolled")])
def test_a_list_from_64_mib_on(spare, layers):
    def kernel(*shape):
        return {"kernel": jnp.zeros((2, *shape), jnp.float32)}

    attention = {"q": kernel(4, 2, 2), "k": kernel(4, 1, 2), "v": kernel(4, 1, 2), "out": kernel(2, 2, 4)}
    stack = {"attn": attention, "mlp": {"gate": kernel(4, 8), "up": kernel(4, 8), "down": kernel(8, 4)}}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(stack))
    stack["input_norm"] = {"scale": jnp.zeros((2, (2**26 - size) // 8 - spare), jnp.float32)}
    names = list(stack)
    vlm = listed({"llm": {"layers": stack}})
    assert layers_of({"vlm": vlm}) == layers
    assert list(vlm["llm"]["layers"]) == (["0", "1"] if layers == "unrolled" else names)


def test_nothing_is_held_for_whoever_gave_it(monkeypatch):
    """Or a stack would stand beside the list made of it, in 8 bits and otherwise, until all is loaded."""
    monkeypatch.setattr(layers, "_LIST_FROM", 0)
    leaf = jnp.zeros((2, 4, 4))
    kernel = Kernel(leaf.astype(jnp.int8), jnp.zeros((2, 4)))
    attention = {"q": {"kernel": kernel}, "k": {"kernel": kernel}, "v": {"kernel": kernel},
                 "out": {"kernel": jnp.zeros((2, 2, 2, 4))}}  # fmt: skip
    mlp = {name: {"kernel": leaf} for name in ("gate", "up", "down")}
    given = {"llm": {"layers": {"attn": attention, "mlp": mlp}}, "projector": {"kernel": leaf}}
    served = _finished(OneDevice(), "vlm", given)
    assert not paths(given) and list(served["llm"]["layers"]) == ["0", "1"]
    assert set(served["llm"]["layers"]["0"]["attn"]["q_k_v"]) == {"kernel", "kernel_scale"}


def test_the_model_in_the_box_keeps_its_stack():
    """Its first picture waits for compilation, and a list would compile longer."""
    assert InternVLUPipeline.from_pretrained().model.compute.layers == "scan"


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantize": "int8"}])
def test_a_list_has_the_fingerprint_of_its_stack(options):
    """A benchmark that began on one device goes on with many, whose layers are a stack."""
    whole = InternVLUPipeline.from_pretrained(GOLDENS / "base/checkpoint", **options)
    stack = fingerprint(whole)
    whole.params["vlm"]["llm"]["layers"] = as_list(whole.params["vlm"]["llm"]["layers"])
    assert layers_of(whole.params) == "unrolled" and fingerprint(whole) == stack
    layer = whole.params["vlm"]["llm"]["layers"]["1"]["mlp"]["gate_up"]
    layer["kernel"] = layer["kernel"].at[-1, -1].add(1)
    assert fingerprint(whole) != stack
