"""A pipeline with 8-bit weights: they are in 8 bits wherever a checkpoint comes from, and what it does stays close."""

import jax
import numpy as np
import pytest

from internvlu_jax import InternVLUPipeline
from internvlu_jax.checkpoints import loading
from internvlu_jax.models.quantization import is_quantized
from internvlu_jax.utils.tree import paths
from tests.conftest import Golden
from tests.inference.test_pipeline import run


@pytest.fixture(scope="module")
def base():
    return Golden("base")


@pytest.fixture(scope="module")
def pipe(base):
    return InternVLUPipeline.from_pretrained(base.checkpoint, quantize="int8")


def test_only_large_maps_are_in_8_bits(pipe):
    leaves = paths(pipe.params)
    small = {path for path, leaf in leaves.items() if leaf.dtype == np.int8}
    assert small == {path for path in leaves if is_quantized(path)} and len(small) > 20
    assert all(leaves[f"{path}_scale"].dtype == np.float32 for path in small)


@pytest.mark.slow
def test_our_own_directories_load_alike(pipe, base, tmp_path):
    loading.convert(base.checkpoint, tmp_path / "own", "orbax")
    own = paths(InternVLUPipeline.from_pretrained(tmp_path / "own", quantize="int8").params)
    for path, leaf in paths(pipe.params).items():
        np.testing.assert_array_equal(leaf, own[path])


def test_it_draws_nearly_what_was_recorded(pipe, base, monkeypatch):
    monkeypatch.setattr("tests.inference.test_pipeline.load", lambda name: pipe)
    _, out, recorded = run(base, "t2i")
    apart = np.abs(np.asarray(out.images[0]).astype(int) - recorded["images"][0])
    assert 0 < apart.mean() < 2


def test_what_cannot_be_is_said_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="quantize is 'int3'; expected one of int8"):
        InternVLUPipeline.from_pretrained(tmp_path, quantize="int3")
    if jax.default_backend() == "cpu":
        with pytest.raises(ValueError, match="'fp8', which cpu does not compute with"):
            InternVLUPipeline.from_pretrained(tmp_path, quantize="fp8")
