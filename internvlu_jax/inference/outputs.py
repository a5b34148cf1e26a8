"""What a call gives, and the sizes of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from internvlu_jax.config import GenerationImageProcessorConfig
from internvlu_jax.inference.options import Options
from internvlu_jax.processing.processor import ProcessedPrompt


@dataclass(frozen=True)
class PipelineOutput:
    """text: one string per prompt, or None in image mode. tokens: their ids, without the prompt, with the stop token
    if one was written. images: prompt by prompt, `num_images_per_prompt` of each, or None in text mode. seed: the
    argument, or what was drawn where there was none."""

    text: list[str] | None = None
    tokens: list[np.ndarray] | None = None
    images: list[Image.Image] | None = None
    seed: int | Sequence[int] | None = None


def by_size(
    run: Callable[[list[ProcessedPrompt], Options], PipelineOutput],
    prompts: Sequence[ProcessedPrompt],
    options: Options,
    asked: tuple[int | None, int | None],
    limits: GenerationImageProcessorConfig,
) -> PipelineOutput:
    """Runs prompts of one size together, and gives everything in the order of the prompts.

    Where no size is asked for an edit is drawn in the size at which its first source enters the head, and comes back
    in that of the source, as far as the checkpoint's limits allow. A side that is not asked for is the source's too.

    Args:
        options: those of the call; height and width are for prompts without pictures.
        asked: height and width of the call.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for n, prompt in enumerate(prompts):
        drawn = returned = (options.height, options.width)
        if prompt.size is not None and None in asked:
            height, width = prompt.sources[0].shape[:2]
            drawn = returned = (asked[0] or height, asked[1] or width)
            if asked == (None, None):
                returned = within(limits, prompt.size)
        groups.setdefault((drawn, returned), []).append(n)
    outputs = {}
    for (drawn, returned), members in groups.items():
        own = replace(options, height=drawn[0], width=drawn[1], returned=returned, seed=options.seeds_of(members))
        outputs[tuple(members)] = run([prompts[n] for n in members], own)
    return _in_order(outputs, options.num_images_per_prompt)


def within(limits: GenerationImageProcessorConfig, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture, made smaller if a checkpoint draws none as large."""
    height, width = size
    longest = limits.max_length or max(size)
    scale = min(1.0, longest / max(size), (limits.max_pixels / (height * width)) ** 0.5)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _in_order(outputs: dict[tuple[int, ...], PipelineOutput], each: int) -> PipelineOutput:
    """One output of several; the keys say which prompts each is of, `each` how many pictures a prompt has."""
    places = {n: (output, k) for members, output in outputs.items() for k, n in enumerate(members)}
    ordered = [places[n] for n in sorted(places)]
    images = [image for output, k in ordered for image in (output.images or ())[k * each : (k + 1) * each]]
    texts = [output.text[k] for output, k in ordered if output.text is not None]
    tokens = [output.tokens[k] for output, k in ordered if output.tokens is not None]
    return PipelineOutput(texts or None, tokens or None, images)
