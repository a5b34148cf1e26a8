"""What a call gives, and the sizes of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from internvlu_jax.config import GenerationImageProcessorConfig
from internvlu_jax.inference.options import Options


@dataclass(frozen=True)
class PipelineOutput:
    """text: one string per prompt, or None in image mode. tokens: their ids, without the prompt, with the stop token
    if one was written. images: prompt by prompt, `num_images_per_prompt` of each, or None in text mode; a list of PIL
    pictures, or by `output_type` an array. seed: the argument, or what was drawn where there was none."""

    text: list[str] | None = None
    tokens: list[np.ndarray] | None = None
    images: Any = None
    seed: Any = None

    def to_tuple(self) -> tuple[Any, ...]:
        """What there is of pictures and text, in this order."""
        return tuple(part for part in (self.images, self.text) if part is not None)


class SourceSize(NamedTuple):
    """(height, width) of a prompt's first source: as it was given, upright, and as it enters the head."""

    given: tuple[int, int]
    entering: tuple[int, int]


def sized(
    options: Options,
    source: SourceSize | None,
    asked: tuple[int | None, int | None],
    limits: GenerationImageProcessorConfig,
) -> Options:
    """The options for a prompt with this source.

    Where no size is asked for an edit is drawn in the size at which its first source enters the head, and comes back
    in that of the source, as far as the checkpoint's limits allow. A side that is not asked for is the source's too.

    Args:
        options: those of the call; height and width are for prompts without pictures.
        asked: height and width of the call.
    """
    if source is None or None not in asked:
        return replace(options, returned=(options.height, options.width))
    height, width = asked[0] or source.entering[0], asked[1] or source.entering[1]
    returned = within(limits, source.given) if asked == (None, None) else (height, width)
    return replace(options, height=height, width=width, returned=returned)


def by_size(run: Callable[[list[int], Options], PipelineOutput], options: Sequence[Options]) -> PipelineOutput:
    """Runs prompts of one size together, by their numbers, and gives everything in the order of the prompts.

    Args:
        options: of each prompt, as `sized` gives them.
    """
    groups: dict[Hashable, tuple[Options, list[int]]] = {}
    for n, own in enumerate(options):
        groups.setdefault(own.sizes, (own, []))[1].append(n)
    outputs = {
        tuple(members): run(members, replace(own, seed=own.seeds_of(members))) for own, members in groups.values()
    }
    return _in_order(outputs, options[0].num_images_per_prompt)


def collected(images: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """One array of arrays of one shape; of several shapes the list."""
    return np.stack(images) if len({image.shape for image in images}) == 1 else images


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
