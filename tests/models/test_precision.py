"""float32 is float32: accelerators, which take products of it with fewer bits, are told not to."""

import dataclasses
import re

import jax
import pytest

from experiments.benchmark import parse_case
from experiments.configs import CONFIGS
from experiments.memory import batches, step_of
from experiments.traced import Traced
from internvlu_jax.config import Compute
from internvlu_jax.ops.attention import attention
from internvlu_jax.presets import debug_config
from tests.helpers.unchecked import shapes_unchecked

WHOLE = {"cuda": {"HIGHEST"}, "tpu": {"HIGHEST"}}


def precisions(function, *arguments) -> dict[str, set[str]]:
    """By platform, those of all products of a program that is lowered for it."""
    found = {}
    with shapes_unchecked():
        traced = jax.jit(function).trace(*arguments)
        for platform in ("cuda", "tpu"):
            program = traced.lower(lowering_platforms=(platform,)).as_text()
            products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", program)
            kinds = [re.findall(r"DEFAULT|HIGHEST", product) or ["none"] for product in products]
            assert len(products) > 2
            found[platform] = {kind for kinds_of_one in kinds for kind in kinds_of_one}
    return found


def parts(case: str, dtype: str):
    with shapes_unchecked():
        traced = Traced(debug_config(), parse_case(case, "debug"), Compute(dtype, "chunked"))
        return {name: part for name, part in traced.parts().items() if name != "context"}


@pytest.mark.parametrize("case", ["text", pytest.param("edit-32", marks=pytest.mark.slow)])
def test_no_product_of_drawing_or_writing_has_fewer_bits(case):
    for name, part in parts(case, "float32").items():
        assert precisions(part.function, *part.arguments) == WHOLE, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["edit, 64", "conversations"])
def test_no_product_of_a_gradient_has_fewer_bits(kind):
    cfg = CONFIGS["debug"]
    step, params = step_of(dataclasses.replace(cfg, compute=Compute(attention="chunked", remat="dots")))
    batch = batches(cfg, debug_config(), rows=1)[kind]
    with shapes_unchecked():
        state, key = jax.eval_shape(step.init, params), jax.eval_shape(lambda: jax.random.key(0))
        totals = jax.eval_shape(step.totals, (batch,))
    assert precisions(lambda *given: step.gradients(*given).of, state, batch, totals, key) == WHOLE


def test_both_passes_of_chunked_attention_have_the_precision_of_the_call():
    """Each is traced when that is over, where a program is derived that was traced before."""

    @jax.jit
    def attend(q):
        with jax.default_matmul_precision("highest"):
            return attention(q, q, q, implementation="chunked").sum()

    assert precisions(jax.grad(attend), jax.ShapeDtypeStruct((1, 600, 2, 8), "float32")) == WHOLE


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_precision_stays_as_it_is(dtype):
    """In bfloat16, and where a user has chosen."""
    part = parts("text", dtype)["vision"]
    with jax.default_matmul_precision("default" if dtype == "float32" else None):
        assert precisions(part.function, *part.arguments) == {"cuda": {"DEFAULT"}, "tpu": {"DEFAULT"}}
