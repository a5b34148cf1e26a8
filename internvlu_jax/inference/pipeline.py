"""InternVLUPipeline: prompts and PIL pictures in, text and PIL pictures out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from internvlu_jax.checkpoints import loading
from internvlu_jax.config import Compute, InternVLUConfig, Noise, Quantization
from internvlu_jax.flow.guidance import Scales
from internvlu_jax.flow.noise import starting_noise
from internvlu_jax.flow.solver import schedule
from internvlu_jax.inference import drawing, programs
from internvlu_jax.inference.adapters import WithAdapters
from internvlu_jax.inference.drawing import Branch, PictureInputs
from internvlu_jax.inference.layers import listed
from internvlu_jax.inference.options import GUIDANCE, NEW_TOKENS, Options
from internvlu_jax.inference.outputs import PipelineOutput, by_size
from internvlu_jax.inference.reasoning import reason, write
from internvlu_jax.models.internvlu import InternVLU
from internvlu_jax.models.quantization import check_quantization, placed, spread
from internvlu_jax.ops.attention import resolve_implementation
from internvlu_jax.parallel.placement import OneDevice, Placement, placement
from internvlu_jax.processing.images import smart_resize
from internvlu_jax.processing.layout import layout, takes_latents
from internvlu_jax.processing.positions import Grid
from internvlu_jax.processing.processor import ProcessedPrompt, Processor
from internvlu_jax.processing.rows import Row, bucket, pack, pad_right
from internvlu_jax.utils.compilation import enable_cache
from internvlu_jax.utils.devices import prepare_cpu
from internvlu_jax.utils.progress import steps_bar
from internvlu_jax.utils.seeds import any_seed

# Pixels that the VAE decodes at once on a device; larger batches go through it in parts.
_DECODE_PIXELS = 8 * 512 * 512
# Branches of all-dropped prompts that are kept: two system texts draw, in the sizes that somebody asks for.
_KEPT_BRANCHES = 16


class InternVLUPipeline(WithAdapters):
    """Understands, draws and edits pictures, and reasons before it draws.

    Calls with the same shapes share compiled programs; text lengths are padded to buckets, so new prompts seldom
    compile. The object holds parameters, where `devices` has them, and nothing of earlier calls but the states of the
    dropped prompts, which never change.
    """

    def __init__(
        self,
        config: InternVLUConfig,
        params: dict[str, Any],
        processor: Processor,
        compute: Compute = Compute(),
        on: Placement | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        super().__init__()
        self._on = on or OneDevice()
        self.config = config
        self.params = params
        self.processor = processor
        self.model = InternVLU(config, processor.tokenizer.special_table_ids, compute, quantization=quantization)
        self._kept: dict[tuple[bytes, Grid], Branch] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        dtype: Any = None,
        attention: str = "auto",
        devices: str | None = None,
        quantize: Quantization | None = None,
    ) -> InternVLUPipeline:
        """Loads a checkpoint: a directory in the released layout, one that `convert` wrote, or a run's; or a Hub id.

        Args:
            path: None is the small model in the box, which draws coloured shapes at 64 x 64.
            dtype: of the computation, by name or as a dtype. None: float32 on a CPU, bfloat16 on an accelerator.
                Parameters keep the dtype of the checkpoint unless that is wider.
            attention: "auto", "xla", "chunked", "cudnn" or "splash", see `ops.attention`.
            devices: that share out the prompts of a call. None: one, the first. "all": all of them, each with all
                parameters. "pmap": the same under `jax.pmap`, on one process. "data=4,tensor=2": a mesh (`parallel`);
                along fsdp and tensor the parameters are shared out too. On several processes, joined by
                `parallel.mesh.initialise`, all make the same calls, each works on its share, and all get everything.
            quantize: the weights of the large linear maps while they are read: "int8" rounds weights alone, "int8xint8"
                and "fp8" activations too (`models.quantization`). Of the 4B model 4.6 GB are left.

        Raises:
            ValueError: the checkpoint does not exist, is incomplete, or is of another model; everything that is wrong
                with it is named. Or there are no such devices, or they cannot compute with such weights.
        """
        prepare_cpu()
        on = placement(devices)
        if quantize is not None:
            check_quantization(quantize, jax.devices()[0])
        enable_cache()
        default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        compute = Compute(default if dtype is None else dtype_name(dtype), attention)
        place = on.place if quantize is None else partial(placed, quantize, on.place)
        model = loading.load(path, max_dtype=compute.dtype, place=place)
        model = dataclasses.replace(model, params=spread(model.params))
        _check_attention(model.config, compute)
        processor = Processor.from_pretrained(model.assets, model.config.processor)
        if isinstance(on, OneDevice):
            compute = listed(compute, model.params)
        return cls(model.config, model.params, processor, compute, on, quantize)

    def __call__(
        self,
        prompt: str | list[str],
        image: Any = None,
        generation_mode: str = "text",
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        flow_shift: float | None = None,
        all_cfg_scale: float | None = None,
        part_cfg_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        noise: Noise = "torch-cpu",
        latents: np.ndarray | jax.Array | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = 50,
        repetition_penalty: float = 1.0,
        num_beams: int = 1,
        stop_strings: str | Sequence[str] = (),
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
            height, width: pixels of the picture; None takes the checkpoint's default, or for an edit the size of its
                first source, as far as the checkpoint draws such. Prompts of several sizes are drawn one size after
                the other.
            num_inference_steps: steps of the sampler. flow_shift: of its noise levels (`flow.path.shift_sigma`); None
                is the checkpoint's, that of its training.
            all_cfg_scale, part_cfg_scale: guidance by everything, and by the source pictures alone; by default 4.5 and
                2.0, with reasoning 3.5 and 1.5.
            seed: of the starting noise and of sampled text; None draws one. A list has one for each picture (for each
                prompt in text mode): each is what it is alone.
            noise: whose noise a seed stands for: "torch-cpu" and "torch-cuda" are that of the released code with
                `torch.Generator("cpu" or "cuda").manual_seed(seed)`, the second unverified (`flow.torch_noise`); "jax"
                that of JAX's keys.
            latents: starting noise instead, float32 [images, height/8, width/8, channels].
            max_new_tokens: most tokens of text; by default 512, with reasoning 200.
            do_sample, temperature, top_k, top_p: draw tokens at random, from the so many best (None: from all) and of
                them from those that together have this probability. num_beams: beam search. Otherwise greedy.
            repetition_penalty: over 1 makes tokens that were written less probable, whatever way they are chosen.
            stop_strings: end a text, too; what was written up to there stays, the string included.
            system_prompt: replaces the system text.
            max_tiles: most tiles that a large picture is cut into for the vision encoder.
            callback: called as (step, total, latents [b, y, x, c]) after each step of the sampler. Prompts whose source
                pictures differ in size or number are drawn one group after the other, and steps count through them.
            progress: show a bar on standard error.

        Raises:
            ValueError: an argument cannot be used; before anything is computed.
        """
        seed = self._on.agreed(any_seed()) if seed is None else seed
        drawn = (height, width) if generation_mode in GUIDANCE else (None, None)
        head = self.config.generation_decoder
        guidance = GUIDANCE.get(generation_mode, (0.0, 0.0))
        options = Options(
            mode=generation_mode,
            height=head.gen_image_height if drawn[0] is None else drawn[0],
            width=head.gen_image_width if drawn[1] is None else drawn[1],
            num_inference_steps=num_inference_steps,
            flow_shift=head.flow_shift if flow_shift is None else flow_shift,
            all_cfg_scale=guidance[0] if all_cfg_scale is None else all_cfg_scale,
            part_cfg_scale=guidance[1] if part_cfg_scale is None else part_cfg_scale,
            num_images_per_prompt=num_images_per_prompt,
            seed=tuple(seed) if isinstance(seed, Sequence) else seed,
            noise=noise,
            latents=None if latents is None else np.asarray(latents),
            max_new_tokens=NEW_TOKENS.get(generation_mode, 1) if max_new_tokens is None else max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            num_beams=num_beams,
            stop_strings=[stop_strings] if isinstance(stop_strings, str) else stop_strings,
            system_prompt=system_prompt,
            max_tiles=max_tiles,
            callback=callback,
            progress=progress,
        )
        options.check(self.config, len(prompt) if isinstance(prompt, list | tuple) else 1)
        prompts = self.processor.process(
            prompt, image, generation_mode, system_prompt=system_prompt, max_tiles=max_tiles
        )
        if generation_mode == "text" or latents is not None:
            return dataclasses.replace(self._run(prompts, options), seed=seed)
        limits = self.config.processor.image_gen_processor_kwargs
        return dataclasses.replace(by_size(self._run, prompts, options, (height, width), limits), seed=seed)

    def _run(self, prompts: Sequence[ProcessedPrompt], options: Options) -> PipelineOutput:
        """Of prompts whose pictures have one size."""
        visual, rows = self._see(prompts)
        parts = self._on, self.model, self.params, self.processor.tokenizer
        if options.mode == "text":
            return self._text(write(*parts, rows, visual, options))
        sources, grid = [self._source_grids(p) for p in prompts], options.latent_grid(self.config)
        if options.mode == "image":
            cond = self._branches(rows, sources, grid, visual)
            return PipelineOutput(images=self._draw(prompts, rows, cond, visual, options))
        reasoned = reason(*parts, rows, visual, options, sources, grid)
        images = self._draw(prompts, rows, [r.branch for r in reasoned], visual, options)
        return dataclasses.replace(self._text([r.tokens for r in reasoned]), images=images)

    def parameters(self) -> dict[str, Any]:
        """The parameters in their own shapes: under `pmap` `params` holds a copy for each device."""
        return self._on.parameters(self.params)

    def source_size(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) at which a source picture enters the head: a size that the checkpoint draws."""
        limits = self.config.processor.image_gen_processor_kwargs
        return smart_resize(
            image.height, image.width, factor=limits.factor, min_pixels=limits.min_pixels,
            max_pixels=limits.max_pixels, max_length=limits.max_length,
        )  # fmt: skip

    def _see(self, prompts: Sequence[ProcessedPrompt]) -> tuple[np.ndarray | jax.Array | None, list[Row]]:
        """Visual tokens of all pictures of the call, and the prompts as rows that know where theirs begin."""
        counts = [len(p.tiles) * self.config.vlm.tokens_per_tile for p in prompts]
        rows = [Row(p.cond, first) for p, first in zip(prompts, [0, *np.cumsum(counts)[:-1].tolist()], strict=True)]
        tiles = np.concatenate([p.tiles for p in prompts])
        if not len(tiles):
            return None, rows
        tokens = self._rows(programs.visual_tokens, tiles)
        return tokens.reshape(-1, tokens.shape[-1]), rows

    def _text(self, tokens: list[np.ndarray]) -> PipelineOutput:
        return PipelineOutput([self.processor.tokenizer.decode(t.tolist()) for t in tokens], tokens)

    def _draw(
        self,
        prompts: Sequence[ProcessedPrompt],
        rows: Sequence[Row],
        cond: Sequence[Branch],
        visual: np.ndarray | jax.Array | None,
        options: Options,
    ) -> list[Image.Image]:
        """Pictures of every prompt, of which `cond` are the branches with all of the condition."""
        grid = options.latent_grid(self.config)
        pictures = self._pictures(prompts, rows, cond, visual, grid)
        repeated = [p for p in pictures for _ in range(options.num_images_per_prompt)]
        given = options.latents
        shape = (*grid, self.config.vae.z_dim)
        start = starting_noise(options.noise, options.seed, len(repeated), shape) if given is None else given
        latents = self._sample(repeated, np.asarray(start, np.float32), options)
        height, width = options.returned or (options.height, options.width)
        return [Image.fromarray(p).resize((width, height), Image.Resampling.LANCZOS) for p in self._decode(latents)]

    def _pictures(
        self,
        prompts: Sequence[ProcessedPrompt],
        rows: Sequence[Row],
        cond: Sequence[Branch],
        visual: np.ndarray | jax.Array | None,
        grid: Grid,
    ) -> list[PictureInputs]:
        """All branches of guidance, and latents of the sources."""
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
        ids, index, places = self._on.put((batch.ids, index, batch.visual_index))
        made = self._on.run(programs.contexts, self.model, self.params, ids, index, shown, places)
        contexts = np.asarray(self._on.get(made, len(rows)))
        return [Branch(context[: len(own.span)], own) for context, own in zip(contexts, layouts, strict=True)]

    def _uncond(self, ids: np.ndarray, grid: Grid) -> Branch:
        """The branch of an all-dropped prompt. It depends on the system text and the size alone, so it is kept."""
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
            batch = self._rows(programs.encode, np.stack([pixels[i] for i in members]))
            latents.update(zip(members, np.asarray(batch), strict=True))
        return [latents[i] for i in range(len(pixels))]

    def _sample(self, pictures: Sequence[PictureInputs], start: np.ndarray, options: Options) -> np.ndarray:
        """Latents of all pictures; those whose sources have the same sizes are drawn together."""
        kinds: dict[tuple, list[int]] = {}
        for i, picture in enumerate(pictures):
            kinds.setdefault(tuple(s.shape for s in picture.sources), []).append(i)
        plan = schedule(options.num_inference_steps, options.flow_shift)
        scales = Scales(options.all_cfg_scale, options.part_cfg_scale)
        total = options.num_inference_steps * len(kinds)
        latents = np.empty_like(start)
        with steps_bar(total, options.progress) as advance:
            for number, members in enumerate(kinds.values()):
                before = number * options.num_inference_steps
                report = drawing.reporter(options.callback, before, total, advance)
                chosen = [pictures[i] for i in members]
                latents[members] = drawing.draw(
                    self._on, self.model, self.params, chosen, start[members], plan, scales, report
                )
        return latents

    def _decode(self, latents: np.ndarray) -> list[np.ndarray]:
        """8-bit pictures [Y, X, 3], as many at once as memory allows."""
        _, rows, columns, _ = latents.shape
        pixels = rows * columns * self.config.vae.downsample_factor**2
        at_once = max(1, _DECODE_PIXELS // pixels) * self._on.shards
        parts = [latents[i : i + at_once] for i in range(0, len(latents), at_once)]
        return [p for part in parts for p in np.asarray(self._rows(programs.decode, part))]

    def _rows(self, program: Callable[..., jax.Array], rows: np.ndarray) -> np.ndarray | jax.Array:
        """What a program of the model gives for each row of an array."""
        made = self._on.run(program, self.model, self.params, self._on.put(rows))
        return self._on.get(made, len(rows))


def _check_attention(config: InternVLUConfig, compute: Compute) -> None:
    """Raises ValueError if the attention that was asked for cannot run, before anything is compiled."""
    for head_dim in config.attention_widths:
        resolve_implementation(compute.attention, compute.dtype, head_dim, has_mask=False)


def dtype_name(dtype: Any) -> str:
    """The name of a dtype given as a name, a numpy or a JAX dtype; what is none of these is given back as text."""
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return str(dtype)
