"""InternVLUPipeline: prompts and PIL pictures in, text and PIL pictures out."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from internvlu_jax.checkpoints import loading
from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.flow.guidance import Scales
from internvlu_jax.flow.solver import schedule
from internvlu_jax.inference import drawing
from internvlu_jax.inference.drawing import Context, Picture
from internvlu_jax.inference.options import GUIDANCE, NEW_TOKENS, Options
from internvlu_jax.inference.programs import Inference
from internvlu_jax.inference.prompts import Row, context_runs, context_start, pack
from internvlu_jax.inference.writing import Written, write
from internvlu_jax.ops.attention import resolve_implementation
from internvlu_jax.processing.batch import bucket
from internvlu_jax.processing.images import smart_resize
from internvlu_jax.processing.processor import Processor, Request
from internvlu_jax.utils.compilation import enable_cache
from internvlu_jax.utils.progress import steps_bar

# Pixels that the VAE decodes at once; larger batches go through it in parts.
_DECODE_PIXELS = 8 * 512 * 512
# All-dropped contexts that are kept: the two system texts that draw, with room for a user's own.
_KEPT_CONTEXTS = 16


@dataclass(frozen=True)
class PipelineOutput:
    """text: one string per prompt, or None in image mode. tokens: their ids, without the prompt, with the stop token
    if one was written. images: prompt by prompt, `num_images_per_prompt` of each, or None in text mode."""

    text: list[str] | None = None
    tokens: list[np.ndarray] | None = None
    images: list[Image.Image] | None = None


class InternVLUPipeline:
    """Understands, draws and edits pictures, and reasons before it draws.

    Calls with the same shapes share compiled programs; text lengths are padded to buckets, so new prompts seldom
    compile. The object holds parameters on the default device and nothing of earlier calls but the states of the
    dropped prompts, which never change.
    """

    def __init__(
        self,
        config: InternVLUConfig,
        params: dict[str, Any],
        processor: Processor,
        compute: Compute = Compute(),
    ) -> None:
        self.config = config
        self.params = params
        self.processor = processor
        self.inference = Inference(config, compute)
        self._dropped: dict[bytes, Context] = {}

    @classmethod
    def from_pretrained(
        cls, path: str | Path | None = None, *, dtype: Any = None, attention: str = "auto"
    ) -> InternVLUPipeline:
        """Loads a checkpoint: a directory in the released layout, one that `convert` wrote, or a run's; or a Hub id.

        Args:
            path: None is the small model in the box, which draws coloured shapes at 64 x 64.
            dtype: of the computation, by name or as a dtype. None: float32 on a CPU, bfloat16 on an accelerator.
                Parameters keep the dtype of the checkpoint unless that is wider.
            attention: "auto", "xla" or "cudnn", see `ops.attention`.

        Raises:
            ValueError: the checkpoint does not exist, is incomplete, or is of another model; everything that is wrong
                with it is named.
        """
        enable_cache()
        default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        compute = Compute(default if dtype is None else dtype_name(dtype), attention)
        model = loading.load(path, max_dtype=compute.dtype)
        _check_attention(model.config, compute)
        processor = Processor.from_pretrained(model.assets, model.config.processor)
        return cls(model.config, model.params, processor, compute)

    def __call__(
        self,
        prompt: str | list[str],
        image: Any = None,
        generation_mode: str = "text",
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        all_cfg_scale: float | None = None,
        part_cfg_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        latents: np.ndarray | jax.Array | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        num_beams: int = 1,
        system_prompt: str | None = None,
        max_tiles: int = 1,
        callback: Callable[[int, int, np.ndarray], None] | None = None,
        progress: bool = False,
    ) -> PipelineOutput:
        """Runs the model on one prompt or a list of them.

        Args:
            prompt: text; `<image>` marks where a picture stands, and marks that are missing are put in front.
            image: None, a PIL picture, or a list with one entry per prompt: a picture, a list of pictures, or None.
            generation_mode: "text" answers; "image" draws, or edits where there are pictures; "text_image" reasons in
                words first.
            height, width: pixels of the picture; None takes the checkpoint's default.
            num_inference_steps: steps of the sampler.
            all_cfg_scale, part_cfg_scale: guidance by everything, and by the source pictures alone; by default 4.5 and
                2.0, with reasoning 3.5 and 1.5.
            seed: of the starting noise and of sampled text; None draws one.
            latents: starting noise instead, float32 [images, height/8, width/8, channels].
            max_new_tokens: most tokens of text; by default 512, with reasoning 200.
            do_sample, temperature, top_p: draw tokens at random. num_beams: beam search. Otherwise greedy.
            system_prompt: replaces the system text.
            max_tiles: most tiles that a large picture is cut into for the vision encoder.
            callback: called as (step, total, latents [b, y, x, c]) after each step of the sampler. Prompts whose source
                pictures differ in size or number are drawn one group after the other, and steps count through them.
            progress: show a bar on standard error.

        Raises:
            ValueError: an argument cannot be used; before anything is computed.
        """
        drawn = (height, width) if generation_mode in GUIDANCE else (None, None)
        head = self.config.generation_decoder
        guidance = GUIDANCE.get(generation_mode, (0.0, 0.0))
        options = Options(
            mode=generation_mode,
            height=head.gen_image_height if drawn[0] is None else drawn[0],
            width=head.gen_image_width if drawn[1] is None else drawn[1],
            num_inference_steps=num_inference_steps,
            all_cfg_scale=guidance[0] if all_cfg_scale is None else all_cfg_scale,
            part_cfg_scale=guidance[1] if part_cfg_scale is None else part_cfg_scale,
            num_images_per_prompt=num_images_per_prompt,
            seed=secrets.randbits(31) if seed is None else seed,
            latents=None if latents is None else np.asarray(latents),
            max_new_tokens=NEW_TOKENS.get(generation_mode, 1) if max_new_tokens is None else max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            num_beams=num_beams,
            system_prompt=system_prompt,
            max_tiles=max_tiles,
            callback=callback,
            progress=progress,
        )
        options.check(self.config, len(prompt) if isinstance(prompt, list | tuple) else 1)
        requests = self.processor.process(
            prompt, image, generation_mode, system_prompt=system_prompt, max_tiles=max_tiles
        )
        visual, first = self._see(requests)
        if generation_mode == "text":
            return self._text(self._write(requests, visual, first, options))
        if generation_mode == "image":
            return PipelineOutput(images=self._draw(requests, visual, first, options))
        written = self._write(requests, visual, first, options)
        images = self._draw(requests, visual, first, options, [w.context for w in written])
        return dataclasses.replace(self._text(written), images=images)

    def source_size(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) at which a source picture enters the head: a size that the checkpoint draws."""
        limits = self.config.processor.image_gen_processor_kwargs
        return smart_resize(
            image.height, image.width, factor=limits.factor, min_pixels=limits.min_pixels,
            max_pixels=limits.max_pixels, max_length=limits.max_length,
        )  # fmt: skip

    def _see(self, requests: Sequence[Request]) -> tuple[jax.Array | None, list[int]]:
        """Visual tokens of all pictures of the call, and where those of each request begin among them."""
        counts = [len(r.tiles) * self.config.vlm.tokens_per_tile for r in requests]
        first = [0, *np.cumsum(counts)[:-1].tolist()]
        tiles = np.concatenate([r.tiles for r in requests])
        if not len(tiles):
            return None, first
        return self.inference.visual_tokens(self.params["vlm"], tiles), first

    def _write(
        self, requests: Sequence[Request], visual: jax.Array | None, first: list[int], options: Options
    ) -> list[Written]:
        rows = [Row(r.cond, start) for r, start in zip(requests, first, strict=True)]
        return write(self.inference, self.params, self.processor.tokenizer, rows, visual, options)

    def _text(self, written: Iterable[Written]) -> PipelineOutput:
        tokens = [w.tokens for w in written]
        return PipelineOutput([self.processor.tokenizer.decode(t.tolist()) for t in tokens], tokens)

    def _draw(
        self,
        requests: Sequence[Request],
        visual: jax.Array | None,
        first: list[int],
        options: Options,
        reasoned: Sequence[Context | None] | None = None,
    ) -> list[Image.Image]:
        """Pictures of every request; `reasoned` contexts, from written text, stand in for the prompts' own."""
        pictures = self._pictures(requests, visual, first, reasoned)
        repeated = [p for p in pictures for _ in range(options.num_images_per_prompt)]
        grid = options.latent_grid(self.config)
        shape = (*grid, self.config.vae.z_dim)
        given = options.latents
        start = drawing.noise(options.seed, len(repeated), shape) if given is None else given
        latents = self._sample(repeated, np.asarray(start, np.float32), options)
        size = (options.width, options.height)
        return [Image.fromarray(p).resize(size, Image.Resampling.LANCZOS) for p in self._decode(latents)]

    def _pictures(
        self,
        requests: Sequence[Request],
        visual: jax.Array | None,
        first: list[int],
        reasoned: Sequence[Context | None] | None,
    ) -> list[Picture]:
        """Contexts of all branches, and latents of the sources."""
        # In image mode the processor's rows end in <img> already; after reasoning they get it here.
        end = np.array([self.processor.tokenizer.img_start] if reasoned else [], np.int32)
        rows: list[Row] = []
        for request, start in zip(requests, first, strict=True):
            ids = [] if reasoned else [request.cond]
            ids += [request.text_dropped] if request.sources and request.text_dropped is not None else []
            rows += [Row(np.concatenate([i, end]), start) for i in ids]
        contexts = iter(self._contexts(rows, visual))
        sources = iter(self._sources([s for r in requests for s in r.sources]))
        pictures = []
        for n, request in enumerate(requests):
            full = reasoned[n] if reasoned else next(contexts)
            partial = next(contexts) if request.sources else None
            assert full is not None and request.all_dropped is not None  # as both modes that draw have them
            dropped = self._dropped_context(np.concatenate([request.all_dropped, end]))
            pictures.append(Picture(full, partial, dropped, tuple(next(sources) for _ in request.sources)))
        return pictures

    def _contexts(self, rows: Sequence[Row], visual: jax.Array | None) -> list[Context]:
        """Encodes rows for the head, all in one batch."""
        if not rows:
            return []
        tokenizer, head = self.processor.tokenizer, self.config.generation_decoder
        batch = pack(rows, tokenizer)
        states = self.inference.hidden_states(
            self.params["vlm"],
            batch.ids,
            np.array(tokenizer.special_table_ids),
            visual if batch.visual_index is not None else None,
            batch.visual_index,
        )
        starts = [context_start(row.ids, tokenizer) for row in rows]
        lengths = [head.context_length(len(row.ids) - start) for row, start in zip(rows, starts, strict=True)]
        index = np.array(starts)[:, None] + np.arange(bucket(max(lengths)))
        tokens = np.asarray(self.inference.context(self.params["head"], states, index))
        return [
            Context(
                tokens[i, :length],
                context_runs(row.ids[start : start + length] == tokenizer.img_context, self.config.vlm.tokens_per_tile),
            )
            for i, (row, start, length) in enumerate(zip(rows, starts, lengths, strict=True))
        ]

    def _dropped_context(self, ids: np.ndarray) -> Context:
        """The context of an all-dropped prompt. It depends on the system text alone, so it is kept."""
        key = ids.tobytes()
        if key not in self._dropped:
            if len(self._dropped) >= _KEPT_CONTEXTS:
                self._dropped.pop(next(iter(self._dropped)))
            self._dropped[key] = self._contexts([Row(ids)], None)[0]
        return self._dropped[key]

    def _sources(self, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Normalised latents of source pictures, those of one size in one batch."""
        latents: dict[int, np.ndarray] = {}
        for shape in dict.fromkeys(p.shape for p in pixels):
            members = [i for i, p in enumerate(pixels) if p.shape == shape]
            batch = np.asarray(
                self.inference.source_latents(self.params["vae"], np.stack([pixels[i] for i in members]))
            )
            latents.update(zip(members, batch, strict=True))
        return [latents[i] for i in range(len(pixels))]

    def _sample(self, pictures: Sequence[Picture], start: np.ndarray, options: Options) -> np.ndarray:
        """Latents of all pictures; those whose sources have the same sizes are drawn together."""
        kinds: dict[tuple, list[int]] = {}
        for i, picture in enumerate(pictures):
            kinds.setdefault(tuple(s.shape for s in picture.sources), []).append(i)
        plan = schedule(options.num_inference_steps, self.config.generation_decoder.flow_shift)
        scales = Scales(jnp.float32(options.all_cfg_scale), jnp.float32(options.part_cfg_scale))
        total = options.num_inference_steps * len(kinds)
        latents = np.empty_like(start)
        with steps_bar(total, options.progress) as advance:
            for number, members in enumerate(kinds.values()):
                report = _reporter(options, number * options.num_inference_steps, total, advance)
                chosen = [pictures[i] for i in members]
                latents[members] = drawing.draw(
                    self.inference, self.params["head"], chosen, start[members], plan, scales, report
                )
        return latents

    def _decode(self, latents: np.ndarray) -> list[np.ndarray]:
        """8-bit pictures [Y, X, 3], as many at once as memory allows."""
        _, rows, columns, _ = latents.shape
        pixels = rows * columns * self.config.vae.downsample_factor**2
        at_once = max(1, _DECODE_PIXELS // pixels)
        parts = [latents[i : i + at_once] for i in range(0, len(latents), at_once)]
        return [p for part in parts for p in np.asarray(self.inference.pictures(self.params["vae"], part))]


def _check_attention(config: InternVLUConfig, compute: Compute) -> None:
    """Raises ValueError if the attention that was asked for cannot run, before anything is compiled."""
    vlm, head = config.vlm, config.generation_decoder
    widths = (vlm.vision_config.head_dim, vlm.llm_config.head_dim, head.decoder_config.attention_head_dim)
    for head_dim in widths:
        resolve_implementation(compute.attention, compute.dtype, head_dim, has_mask=False)


def dtype_name(dtype: Any) -> str:
    """The name of a dtype given as a name, a numpy or a JAX dtype; what is none of these is given back as text."""
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return str(dtype)


def _reporter(
    options: Options, before: int, total: int, advance: Callable[[], None] | None
) -> Callable[[jax.Array], None] | None:
    """What happens after each step; None if nothing does, so that the whole loop can be one program."""
    if options.callback is None and advance is None:
        return None
    done = before

    def report(latents: jax.Array) -> None:
        nonlocal done
        done += 1
        if options.callback is not None:
            options.callback(done, total, np.asarray(latents))
        if advance is not None:
            jax.block_until_ready(latents)
            advance()

    return report
