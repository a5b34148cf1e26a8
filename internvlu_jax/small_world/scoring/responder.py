"""A pipeline as the model that is scored: queries in batches of one size, so that each program is compiled once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from internvlu_jax.flow.noise import numbered_noise
from internvlu_jax.inference.options import GUIDANCE
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.small_world.scoring.suite import Query, Reply

NEW_TOKENS = {"text": 24, "text_image": 96}
"""Most tokens of an answer and of reasoning; the world's own are shorter."""


@dataclass(frozen=True)
class SamplingOptions:
    """How the model is run.

    side: pixels of pictures, None for the checkpoint's default. seed: of the starting noise. all_cfg_scale,
    part_cfg_scale: None for the pipeline's default in each mode. batch: queries that run together, which does not
    change what any of them gets. flow_shift: of the noise levels, None for the checkpoint's.
    """

    steps: int = 20
    seed: int = 0
    side: int | None = None
    all_cfg_scale: float | None = None
    part_cfg_scale: float | None = None
    batch: int = 50
    flow_shift: float | None = None

    def guidance(self) -> dict[str, tuple[float, float]]:
        """(all, part) as they hold in each mode that draws."""
        given = (self.all_cfg_scale, self.part_cfg_scale)
        return {
            mode: (default[0] if given[0] is None else given[0], default[1] if given[1] is None else given[1])
            for mode, default in GUIDANCE.items()
        }


class PipelineResponder:
    """Replies to queries with a pipeline.

    Args:
        advance: called with the number of queries that were just replied to.

    Raises:
        ValueError: the checkpoint's pictures are not square and no side is given, or an option cannot be used.
    """

    def __init__(
        self,
        pipe: InternVLUPipeline,
        options: SamplingOptions = SamplingOptions(),
        advance: Callable[[int], None] | None = None,
    ) -> None:
        head = pipe.config.generation_decoder
        if options.side is None and head.gen_image_height != head.gen_image_width:
            raise ValueError(
                f"the checkpoint draws {head.gen_image_height} x {head.gen_image_width} pixels; expected a square. "
                "Give the side of the pictures"
            )
        if options.batch < 1:
            raise ValueError(f"batch is {options.batch}; expected at least 1")
        self.side = head.gen_image_height if options.side is None else options.side
        self._pipe, self._options, self._advance = pipe, options, advance

    def __call__(self, queries: Sequence[Query]) -> list[Reply]:
        """Replies in the order of the queries. The last batch is filled up with its last query."""
        size = min(self._options.batch, len(queries))
        replies: list[Reply] = []
        for first in range(0, len(queries), size or 1):
            chunk = list(queries[first : first + size])
            replies += self._batch(chunk + chunk[-1:] * (size - len(chunk)))[: len(chunk)]
            if self._advance is not None:
                self._advance(len(chunk))
        return replies

    def _batch(self, chunk: Sequence[Query]) -> list[Reply]:
        mode = chunk[0].mode
        prompts = [query.prompt for query in chunk]
        images = [None if query.source is None else Image.fromarray(query.source) for query in chunk]
        out = self._pipe(prompts, images, mode, **self._settings(chunk))
        texts = out.text or [""] * len(chunk)
        pictures = [None] * len(chunk) if out.images is None else [np.asarray(picture) for picture in out.images]
        return [Reply(picture, text) for picture, text in zip(pictures, texts, strict=True)]

    def _settings(self, chunk: Sequence[Query]) -> dict[str, Any]:
        mode, options = chunk[0].mode, self._options
        settings: dict[str, Any] = {"max_new_tokens": NEW_TOKENS.get(mode)}
        if mode == "text":
            return settings
        given = {name: getattr(options, name) for name in ("all_cfg_scale", "part_cfg_scale", "flow_shift")}
        return {
            **settings,
            **{name: value for name, value in given.items() if value is not None},
            "height": self.side,
            "width": self.side,
            "num_inference_steps": options.steps,
            "latents": np.stack([self._noise(query.number) for query in chunk]),
        }

    def _noise(self, number: int) -> np.ndarray:
        """Of a case, whatever batch it is in and whether or not there is reasoning before it."""
        cfg = self._pipe.config
        grid = cfg.generation_decoder.latent_grid(self.side, self.side)
        return numbered_noise((self._options.seed, number), (*grid, cfg.vae.z_dim))
