"""Prompts to what pictures are drawn from: the part of the pipeline that reads and does not yet draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.inference import programs
from internvlu_jax.inference.drawing import Branch, PictureInputs
from internvlu_jax.inference.outputs import SourceSize
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.parallel.placement import Placement
from internvlu_jax.processing.layout import layout, takes_latents
from internvlu_jax.processing.positions import Grid
from internvlu_jax.processing.processor import ProcessedPrompt, Processor
from internvlu_jax.processing.rows import Row, bucket, pack, pad_right

# Branches of all-dropped prompts that are kept: two system texts draw, in the sizes that somebody asks for.
_KEPT_BRANCHES = 16


# Pixels that the VAE codes at once on a device; larger batches go through it in parts.
_VAE_PIXELS = 8 * 512 * 512


@dataclass(frozen=True)
class PromptEmbeds:
    """Prompts that were read, with all branches of guidance and their source pictures, for pictures of any size.

    Of the model that read them: with other weights (`load_lora_weights`) they are read again.
    """

    pictures: tuple[PictureInputs, ...]
    sources: tuple[SourceSize | None, ...]

    def __len__(self) -> int:
        return len(self.pictures)


class WithEncoding:
    """What the pipeline is made of, and reading with it."""

    config: InternVLUConfig
    params: Params
    processor: Processor
    model: InternVLU
    on: Placement
    _kept: dict[Any, Any]

    def encode_prompt(
        self,
        prompt: str | list[str],
        image: Any = None,
        *,
        negative_prompt: str | list[str] | None = None,
        system_prompt: str | None = None,
        max_tiles: int = 1,
    ) -> PromptEmbeds:
        """Reads prompts once, for `prompt_embeds` of many calls in mode "image"; arguments are those of a call.

        Raises:
            ValueError: an argument cannot be used; before anything is computed.
        """
        prompts = self.processor.process(
            prompt, image, "image", system_prompt=system_prompt, max_tiles=max_tiles, negative_prompt=negative_prompt
        )
        head = self.config.generation_decoder
        grid = head.latent_grid(head.gen_image_height, head.gen_image_width)
        return PromptEmbeds(tuple(self._encode(prompts, grid)), tuple(map(source_size, prompts)))

    def _encode(self, prompts: Sequence[ProcessedPrompt], grid: Grid) -> list[PictureInputs]:
        """What pictures of so many rows and columns of latents are drawn from."""
        visual, rows = self._see(prompts)
        cond = self._branches(rows, [self._source_grids(p) for p in prompts], grid, visual)
        return self._pictures(prompts, rows, cond, visual, grid)

    def _see(self, prompts: Sequence[ProcessedPrompt]) -> tuple[np.ndarray | jax.Array | None, list[Row]]:
        """Visual tokens of all pictures of the call, and the prompts as rows that know where theirs begin."""
        counts = [len(p.tiles) * self.config.vlm.tokens_per_tile for p in prompts]
        rows = [Row(p.cond, first) for p, first in zip(prompts, [0, *np.cumsum(counts)[:-1].tolist()], strict=True)]
        return self._visual_tokens(np.concatenate([p.tiles for p in prompts])), rows

    def _visual_tokens(self, tiles: np.ndarray) -> np.ndarray | jax.Array | None:
        """Visual tokens [k, d] of tiles one after the other; None without tiles."""
        if not len(tiles):
            return None
        tokens = self._rows(programs.visual_tokens, tiles)
        return tokens.reshape(-1, tokens.shape[-1])

    def _pictures(
        self,
        prompts: Sequence[ProcessedPrompt],
        rows: Sequence[Row],
        cond: Sequence[Branch],
        visual: np.ndarray | jax.Array | None,
        grid: Grid,
    ) -> list[PictureInputs]:
        """All branches of guidance, of which `cond` are those with all of the condition, and latents of the sources."""
        edits = [(p, row) for p, row in zip(prompts, rows, strict=True) if p.sources]
        dropped = [Row(self._drawn_from(p.text_dropped), row.first_visual) for p, row in edits]
        text_dropped = iter(self._branches(dropped, [self._source_grids(p) for p, _ in edits], grid, visual))
        sources = iter(self._sources([s for p in prompts for s in p.sources]))
        pictures = []
        for prompt, own in zip(prompts, cond, strict=True):
            kept = next(text_dropped) if prompt.sources else None
            latents = tuple(next(sources) for _ in self._source_grids(prompt))
            pictures.append(PictureInputs(own, kept, self._uncond(self._drawn_from(prompt.uncond), grid), latents))
        return pictures

    def _drawn_from(self, ids: np.ndarray | None) -> np.ndarray:
        """The tokens of a dropped prompt, with the `<img>` that the processor leaves to reasoning."""
        assert ids is not None  # as both modes that draw have them
        start = self.processor.tokenizer.img_start
        return ids if ids[-1] == start else np.append(ids, start).astype(np.int32)

    def _source_grids(self, prompt: ProcessedPrompt) -> list[Grid]:
        """Rows and columns of the latents of a prompt's sources; none where the head gets none."""
        factor = self.config.vae.downsample_factor
        sources = prompt.sources if takes_latents(self.config) else ()
        return [(s.shape[0] // factor, s.shape[1] // factor) for s in sources]

    def _kind(self, prompt: ProcessedPrompt) -> Hashable:
        """`PictureInputs.kind` of what a prompt is drawn from, before it is read."""
        return bool(prompt.sources), *self._source_grids(prompt)

    def _branches(
        self, rows: Sequence[Row], sources: Sequence[Sequence[Grid]], grid: Grid, visual: np.ndarray | jax.Array | None
    ) -> list[Branch]:
        """Encodes prompts for the head, all in one batch; `sources` are the grids of each row's source latents."""
        if not rows:
            return []
        tokenizer = self.processor.tokenizer
        layouts = [layout(self.config, tokenizer, row.ids, own, grid) for row, own in zip(rows, sources, strict=True)]
        batch = pack(rows, tokenizer)
        index, _ = pad_right([own.span for own in layouts], bucket(max(len(own.span) for own in layouts)), 0)
        shown = visual if batch.visual_index is not None else None
        ids, index, places = self.on.put((batch.ids, index, batch.visual_index))
        made = self.on.run(programs.contexts, self.model, self.params, ids, index, shown, places)
        contexts = np.asarray(self.on.get(made, len(rows)))
        return [Branch(context[: len(own.span)], own) for context, own in zip(contexts, layouts, strict=True)]

    def _uncond(self, ids: np.ndarray, grid: Grid) -> Branch:
        """The branch of an all-dropped prompt. It depends on its text and the size alone, so it is kept."""
        key = (ids.tobytes(), grid)
        if key not in self._kept:
            same = [branch for (text, _), branch in self._kept.items() if text == key[0]]
            own = layout(self.config, self.processor.tokenizer, ids, (), grid)
            context = same[0].context if same else self._branches([Row(ids)], [()], grid, None)[0].context
            if len(self._kept) >= _KEPT_BRANCHES:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = Branch(context, own, {})
        return self._kept[key]

    def _sources(self, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Normalised latents of source pictures, those of one size in one batch."""
        if not takes_latents(self.config):
            return []
        latents: dict[int, np.ndarray] = {}
        for shape in dict.fromkeys(p.shape for p in pixels):
            members = [i for i, p in enumerate(pixels) if p.shape == shape]
            batch = self._coded(programs.encode, np.stack([pixels[i] for i in members]), math.prod(shape[:2]))
            latents.update(zip(members, batch, strict=True))
        return [latents[i] for i in range(len(pixels))]

    def _rows(self, program: Callable[..., jax.Array], rows: np.ndarray) -> np.ndarray | jax.Array:
        """What a program of the model gives for each row of an array."""
        made = self.on.run(program, self.model, self.params, self.on.put(rows))
        return self.on.get(made, len(rows))

    def _coded(self, program: Callable[..., jax.Array], rows: np.ndarray, pixels: int) -> np.ndarray:
        """The same of the VAE, whose rows have so many pixels each: as many of them at once as memory allows."""
        at_once = max(1, _VAE_PIXELS // pixels) * self.on.shards
        parts = (rows[i : i + at_once] for i in range(0, len(rows), at_once))
        return np.concatenate([np.asarray(self._rows(program, part)) for part in parts])


def source_size(prompt: ProcessedPrompt) -> SourceSize | None:
    """Of the first source of a prompt that is drawn from; None without one."""
    if prompt.size is None or not prompt.sources:
        return None
    height, width = prompt.sources[0].shape[:2]
    return SourceSize(prompt.size, (height, width))
