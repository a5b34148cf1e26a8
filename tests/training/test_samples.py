"""The sheet of pictures that a run draws."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from converters.engine import on_host
from internvlu_jax.checkpoints import loading
from internvlu_jax.inference.outputs import PipelineOutput
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.models import lora
from internvlu_jax.parallel.placement import OneDevice
from internvlu_jax.training.config import LoraConfig
from internvlu_jax.training.samples import sample_sheet
from internvlu_jax.utils.tree import from_paths, paths
from tests.helpers.training import CHECKPOINT, TINY, one_block

CFG = dataclasses.replace(
    TINY, lora=LoraConfig(rank=2, pattern="(vlm/llm|head/mmdit)/.*/(q|out|fc1)"), sample_prompts=("a",), sample_steps=2
)


@pytest.fixture(scope="module")
def model():
    return one_block(loading.load(CHECKPOINT, place=on_host))


@pytest.fixture(scope="module")
def params(model):
    """With adapters that have learned something."""
    leaves = paths(lora.add(model.params, CFG.lora.pattern, 2, jax.random.key(0)))
    return from_paths({path: leaf + 0.1 if path.endswith("/lora_b") else leaf for path, leaf in leaves.items()})


def test_no_kernel_is_made_for_it(model, params, monkeypatch):
    """For the frozen ones alone may fill half of a card."""
    drawn = []

    def draw(pipe, *_, **__):
        drawn.append((pipe.params, pipe.on))
        return PipelineOutput(images=[Image.new("RGB", (32, 32))])

    monkeypatch.setattr(InternVLUPipeline, "__call__", draw)
    sample_sheet(CFG, model.config, model.tokenizer, params, 32, placed := OneDevice())
    assert drawn[0][0] is params and drawn[0][1] is placed


@pytest.mark.slow
def test_adapters_draw_beside_kernels_as_within_them(model, params):
    def sheet(cfg, params):
        return np.asarray(sample_sheet(cfg, model.config, model.tokenizer, params, 32, OneDevice()), int)

    without = dataclasses.replace(CFG, lora=None)
    got, want = sheet(CFG, params), sheet(without, lora.merge(params, CFG.lora.alpha / CFG.lora.rank))
    assert np.abs(got - want).max() <= 1
    assert np.abs(got - sheet(without, model.params)).max() > 8
