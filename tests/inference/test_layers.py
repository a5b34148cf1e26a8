"""Which models are served from a list of layers."""

import numpy as np
import pytest

from internvlu_jax import InternVLUPipeline
from internvlu_jax.config import Compute
from internvlu_jax.inference.layers import listed


@pytest.mark.parametrize(("width", "layers"), [(2**23 - 1, "scan"), (2**23, "unrolled")])
def test_a_list_from_64_mib_on(width, layers):
    params = {"vlm": {"llm": {"layers": {"kernel": np.empty((2, width), np.float32)}}}}
    assert listed(Compute("bfloat16"), params) == Compute("bfloat16", layers=layers)
    assert list(params["vlm"]["llm"]["layers"]) == (["0", "1"] if layers == "unrolled" else ["kernel"])


def test_the_model_in_the_box_keeps_its_stack():
    """Its first picture waits for compilation, and a list would compile longer."""
    assert InternVLUPipeline.from_pretrained().model.compute.layers == "scan"
