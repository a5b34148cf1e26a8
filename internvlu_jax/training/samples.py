"""Pictures that show how a run is doing: fixed prompts, fixed noise, one sheet."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.models import lora
from internvlu_jax.pipeline import InternVLUPipeline
from internvlu_jax.processing.processor import Processor
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.tree import Tree

_GAP = 2


def sample_sheet(
    cfg: TrainConfig, config: InternVLUConfig, tokenizer: Tokenizer, params: Tree, side: int
) -> Image.Image:
    """Draws `cfg.sample_prompts` from noise that is the same every time.

    Args:
        params: of the whole model, on one device; adapters are folded in here.
        side: pixels of each picture.
    """
    if cfg.lora is not None:
        params = lora.merge(params, cfg.lora.alpha / cfg.lora.rank)
    pipe = InternVLUPipeline(config, params, Processor(config.processor, tokenizer), cfg.compute)
    out = pipe(
        list(cfg.sample_prompts), generation_mode="image", height=side, width=side, seed=0,
        num_inference_steps=cfg.sample_steps,
    )  # fmt: skip
    return sheet(out.images or [])


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side, in rows that make about a square."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    canvas = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for n, picture in enumerate(pictures):
        top, left = n // columns * (height + _GAP), n % columns * (width + _GAP)
        canvas[top : top + height, left : left + width] = np.asarray(picture)
    return Image.fromarray(canvas)


def save_sheet(picture: Image.Image, path: Path) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}.png")
    picture.save(partial)
    partial.replace(path)
