"""Pictures that show how a run is doing: fixed prompts, fixed noise, one sheet."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.parallel.placement import Placement
from internvlu_jax.processing.processor import Processor
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.utils.sheets import sheet
from internvlu_jax.utils.tree import Tree


def sample_sheet(
    cfg: TrainConfig, config: InternVLUConfig, tokenizer: Tokenizer, params: Tree, side: int, on: Placement
) -> Image.Image:
    """Draws `cfg.sample_prompts` from noise that is the same every time.

    Args:
        params: of the whole model, where `on` has them, adapters beside the kernels: folded ones would be so many more.
        side: pixels of each picture.
        on: whose devices share out the prompts. Of several processes all call this, and all get the sheet.
    """
    pipe = InternVLUPipeline(config, params, Processor(config.processor, tokenizer), cfg.compute, on)
    if cfg.lora is not None:
        pipe.model = replace(pipe.model, adapter_scale=cfg.lora.alpha / cfg.lora.rank)
    out = pipe(
        list(cfg.sample_prompts), generation_mode="image", height=side, width=side, seed=0,
        num_inference_steps=cfg.sample_steps,
    )  # fmt: skip
    return sheet(out.images or [])
