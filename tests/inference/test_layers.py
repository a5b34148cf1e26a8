"""Which models are served from a list of layers."""

import jax
import jax.numpy as jnp
import pytest

from internvlu_jax import InternVLUPipeline
from internvlu_jax.inference import layers
from internvlu_jax.inference.layers import layers_of, listed
from internvlu_jax.inference.pipeline import _finished
from internvlu_jax.models.quantization import Kernel
from internvlu_jax.parallel.placement import OneDevice
from internvlu_jax.utils.tree import paths


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
