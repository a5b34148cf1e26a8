"""Which models are served from a list of layers."""

import jax
import jax.numpy as jnp
import pytest

from internvlu_jax import InternVLUPipeline
from internvlu_jax.inference.layers import layers_of, listed


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


def test_the_model_in_the_box_keeps_its_stack():
    """Its first picture waits for compilation, and a list would compile longer."""
    assert InternVLUPipeline.from_pretrained().model.compute.layers == "scan"
