"""Low-rank adapters: nothing at first, what merging gives afterwards, and cheap."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.checkpoints import loading
from internvlu_jax.config import Compute, ConfigError
from internvlu_jax.models import lora
from internvlu_jax.training.config import LoraConfig
from internvlu_jax.utils.flops import count_flops
from internvlu_jax.utils.tree import from_paths, paths
from tests.conftest import Golden
from tests.helpers.measures import assert_close, relative_l2
from tests.training.test_losses import objective_for, random_batch, with_latents

PATTERN, RANK, SCALE = LoraConfig().pattern, 3, 0.5


@pytest.fixture(scope="module")
def base():
    return loading.load(Golden("base").checkpoint)


@pytest.fixture(scope="module")
def fresh(base):
    return lora.add(base.params, PATTERN, RANK, jax.random.key(0))


@pytest.fixture(scope="module")
def trained(fresh):
    """Adapters whose B is no longer zero."""
    rng = np.random.default_rng(0)
    leaves = {
        path: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype) if path.endswith("lora_b") else leaf
        for path, leaf in paths(fresh).items()
    }
    return from_paths(leaves)


def with_adapters(objective, scale):
    model = dataclasses.replace(objective.model, adapter_scale=scale)
    return dataclasses.replace(objective, model=model)


@pytest.fixture(scope="module")
def sums(base):
    """(parameters, adapter scale or None, compute) -> (text, flow) of a batch with pictures, sources and text."""
    batch = with_latents(random_batch(objective_for(base)))
    batch = batch._replace(text=batch.text._replace(tiles=None, visual_index=None))
    noise = objective_for(base).draw(jax.random.key(1), batch)

    def run(params, scale=None, compute=Compute()):
        objective = with_adapters(objective_for(base, compute), scale)
        return jax.jit(lambda p: jnp.stack(list(objective.sums(p, batch, noise).values())))(params)

    return run


def test_every_matching_kernel_has_an_adapter_of_its_shape(fresh):
    leaves = paths(fresh)
    kernels = [p.removesuffix("/kernel") for p in leaves if p.endswith("/kernel")]
    matched = {p for p in kernels if re.fullmatch(PATTERN, p)}
    assert {p.removesuffix("/lora_a") for p in leaves if p.endswith("lora_a")} == matched
    assert len(matched) > 20
    for path in matched:
        kernel, a, b = (leaves[f"{path}/{name}"] for name in ("kernel", "lora_a", "lora_b"))
        assert a.shape[-1] == RANK
        assert RANK in b.shape
        assert a.size // RANK * (b.size // RANK) == kernel.size * (kernel.shape[0] if "s/" in path else 1)
        assert not np.any(b)


def test_at_first_nothing_changes(base, fresh, sums):
    np.testing.assert_array_equal(sums(fresh, SCALE), sums(base.params))


@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_adapters_equal_merged_kernels(base, trained, sums, remat):
    merged = jax.jit(partial(lora.merge, scale=SCALE))(trained)
    assert jax.tree.structure(merged) == jax.tree.structure(base.params)
    got = sums(trained, SCALE, Compute(remat=remat))
    assert_close(got, sums(merged), 1e-5)
    assert relative_l2(got, sums(base.params)) > 1e-3


def test_merging_keeps_the_dtype(trained):
    half = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), trained)
    merged = jax.eval_shape(partial(lora.merge, scale=SCALE), half)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}


def test_operations_rise_by_the_low_rank_products_alone(base, trained):
    """Forward: 2 r (in + out) for each token and adapted map; a full-size update would cost in x r x out besides."""
    objective, batch = objective_for(base), random_batch(objective_for(base))
    batch = batch._replace(picture=None)

    def operations(params, scale):
        adapted = with_adapters(objective, scale)
        return count_flops(lambda p: adapted.sums(p, batch, None), params)

    llm = base.config.vlm.llm_config
    width, heads = llm.hidden_size, llm.head_dim
    q, kv = llm.num_attention_heads * heads, llm.num_key_value_heads * heads
    ends = (width + q) + 2 * (width + kv) + (q + width) + 3 * (width + llm.intermediate_size)
    tokens = batch.text.ids.size
    extra = 2 * RANK * ends * tokens * llm.num_hidden_layers
    assert operations(trained, SCALE) - operations(base.params, None) == extra


def test_convolutions_have_no_adapters(base):
    """Nothing would use them, and folding would change what is drawn."""
    found = [path for path in paths(lora.add(base.params, ".*", 2, jax.random.key(0))) if path.endswith("/lora_a")]
    kernels = {path: leaf for path, leaf in paths(base.params).items() if path.endswith("/kernel")}
    convolutions = {path.removesuffix("/kernel") for path in kernels if "conv" in path.rsplit("/", 2)[1]}
    assert len(convolutions) > 20 and any("qkv" in path for path in found)
    assert convolutions.isdisjoint(path.removesuffix("/lora_a") for path in found)


def test_a_pattern_that_matches_nothing_is_refused(base):
    with pytest.raises(ConfigError, match=r"lora.pattern 'vlm/nothing' matches no linear map"):
        lora.add(base.params, "vlm/nothing", 4, jax.random.key(0))
