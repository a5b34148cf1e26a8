"""At the released sizes everything that runs lowers for accelerators that are not here. Nothing is allocated."""

import jax
import pytest

from experiments.flops import case_for
from experiments.traced import Traced
from internvlu_jax.config import Compute, InternVLUConfig


@pytest.mark.parametrize("task", ["t2i", pytest.param("edit", marks=pytest.mark.slow), "text"])
def test_released_sizes_lower_for_gpu_and_tpu(task):
    traced = Traced(InternVLUConfig(), case_for(task, 512, 512), Compute("bfloat16", "xla"))
    for part in traced.parts().values():
        lowered = jax.jit(lambda *a, f=part.function: f(*a)).trace(*part.arguments)
        for platform in ("cuda", "tpu"):
            assert "bf16" in lowered.lower(lowering_platforms=(platform,)).as_text()
