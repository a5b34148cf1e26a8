"""Programs of the released model, lowered for TPU and CUDA: attention's kernel is in them, and no array of scores."""

import dataclasses
import re

import jax
import pytest
from jax import export

from experiments.benchmark import parse_case
from experiments.configs import CONFIGS
from experiments.memory import batches, step_of
from experiments.traced import Part, Traced
from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.ops.attention import choice

pytestmark = pytest.mark.slow

KERNELS = {"tpu": "tpu_custom_call", "cuda": "__cudnn$fmhaSoftmax"}
# Which kernel's backward pass a training step has besides.
BACKWARD = {"tpu": "tpu_custom_call", "cuda": "__cudnn$fmhaSoftmaxBackward"}
# Rows shorter than this are computed by XLA.
LONG = 512
WIDEST_HEAD = 128


@pytest.fixture(params=KERNELS)
def platform(request, monkeypatch):
    """As if JAX ran there. What was traced as if it ran elsewhere is forgotten."""
    jax.clear_caches()
    if request.param == "tpu":
        monkeypatch.setattr(choice, "_on_tpu", lambda: True)
    else:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        monkeypatch.setattr(choice, "_cuda_capability", lambda: 9.0)
        monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
        monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    return request.param


def lowered(part: Part, platform: str) -> str:
    kernels = [export.DisabledSafetyCheck.custom_call(name) for name in (*KERNELS.values(), *BACKWARD.values())]
    return export.export(jax.jit(part.function), platforms=[platform], disabled_checks=kernels)(
        *part.arguments
    ).mlir_module()


def scores(program: str) -> list[tuple[int, ...]]:
    """Arrays that end in queries and keys after rows and heads of both kinds, or stacks of blocks that do."""
    shapes = {tuple(map(int, s.split("x")[:-1])) for s in re.findall(r"tensor<((?:\d+x)+)[a-z]", program)}
    whole = [s for s in shapes if len(s) == 5 and min(s[-2:]) >= LONG]
    return whole + [s for s in shapes if len(s) > 5 and min(s[-2:]) > WIDEST_HEAD]


def part(case: str, name: str, compute: Compute) -> Part:
    return Traced(InternVLUConfig(), parse_case(case, "internvl-u-4b"), compute).parts()[name]


def packed_step(attention: str) -> Part:
    """Gradients of stage 3 on one packed row of conversations."""
    cfg = CONFIGS["stage3"]
    step, released = step_of(dataclasses.replace(cfg, compute=dataclasses.replace(cfg.compute, attention=attention)))
    batch = batches(cfg, InternVLUConfig(), rows=1)["conversations"]
    state, key = jax.eval_shape(step.init, released), jax.eval_shape(lambda: jax.random.key(0))
    return Part(lambda *args: step.gradients(*args).of, (state, batch, jax.eval_shape(step.totals, (batch,)), key))


@pytest.mark.parametrize(("case", "name"), [("edit-1024", "denoise"), ("text", "vision"), ("edit-1024", "prompt")])
def test_serving(platform, case, name):
    program = lowered(part(case, name, Compute("bfloat16")), platform)
    assert KERNELS[platform] in program
    assert not scores(program)


def test_a_packed_training_step(platform):
    program = lowered(packed_step("auto"), platform)
    assert BACKWARD[platform] in program
    assert not scores(program)


def test_scores_are_recognised():
    """Where XLA computes attention they are there."""
    program = lowered(part("edit-1024", "denoise", Compute("bfloat16", "xla")), "tpu")
    assert any(min(shape[-2:]) > 2 * 4096 for shape in scores(program))
    assert scores(lowered(packed_step("xla"), "tpu"))
