"""InternVLUPipeline: prompts and PIL pictures in, text and PIL pictures out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
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
from internvlu_jax.inference.arguments import (
    Given,
    changed_latents,
    check_streams,
    check_together,
    given_to,
    options_of,
)
from internvlu_jax.inference.chat import ChatCache, WithChat
from internvlu_jax.inference.drawing import Branch, PictureInputs, Report, Then, resized
from internvlu_jax.inference.encoding import PromptEmbeds, source_size
from internvlu_jax.inference.layers import layers_of, listed
from internvlu_jax.inference.options import Options
from internvlu_jax.inference.outputs import PipelineOutput, SourceSize, by_size, collected, sized
from internvlu_jax.inference.stream import TextStream, Writing, pieces
from internvlu_jax.models.internvlu import InternVLU
from internvlu_jax.models.quantization import check_quantization, placed, spread
from internvlu_jax.ops.attention import resolve_implementation
from internvlu_jax.parallel.placement import OneDevice, Placement, placement
from internvlu_jax.processing.images import entering_size
from internvlu_jax.processing.positions import Grid
from internvlu_jax.processing.processor import ProcessedPrompt, Processor
from internvlu_jax.utils.compilation import enable_cache
from internvlu_jax.utils.devices import prepare_cpu
from internvlu_jax.utils.progress import steps_bar
from internvlu_jax.utils.seeds import any_seed


class InternVLUPipeline(WithChat, WithAdapters):
    """Understands, draws and edits pictures, and reasons before it draws.

    Calls with the same shapes share compiled programs; text lengths are padded to buckets, so new prompts seldom
    compile. The object holds parameters, where `devices` has them, and nothing of earlier calls but the states of the
    dropped prompts, which never change, and the cache of the last conversation (`chat`), which changes no answer.
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
        self.on = on or OneDevice()
        self.config = config
        self.params = params
        self.processor = processor
        self.model = InternVLU(config, processor.tokenizer.special_table_ids, compute, quantization=quantization)
        self._kept: dict[tuple[bytes, Grid], Branch] = {}
        self._conversation = ChatCache()
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        dtype: Any = None,
        attention: str = "auto",
        devices: str | None = None,
        quantize: Quantization | None = None,
        time: Any = None,
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
            time: what the head's time is rounded to, "float32" or "bfloat16". None: what a run trained with; of another
                checkpoint `dtype`, as the released code has it, whose weights were trained with "bfloat16".

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
        rounded = None if time is None else dtype_name(time)
        compute = Compute(default if dtype is None else dtype_name(dtype), attention, time=rounded)
        place = on.place if quantize is None else partial(placed, quantize, on.place)
        model = loading.load(path, max_dtype=compute.dtype, place=place, finish=partial(_finished, on))
        _check_attention(model.config, compute)
        processor = Processor(model.config.processor, model.tokenizer)
        compute = dataclasses.replace(compute, layers=layers_of(model.params), time=rounded or model.time)
        return cls(model.config, model.params, processor, compute, on, quantize)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        generation_mode: str = "text",
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | np.ndarray | None = None,
        timesteps: Sequence[float] | np.ndarray | None = None,
        flow_shift: float | None = None,
        all_cfg_scale: float | None = None,
        guidance_scale: float | None = None,
        part_cfg_scale: float | None = None,
        num_images_per_prompt: int = 1,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: PromptEmbeds | None = None,
        seed: int | Sequence[int] | None = None,
        generator: Any = None,
        noise: Noise | None = None,
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
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[[int, int, np.ndarray], None] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        progress: bool = False,
    ) -> PipelineOutput:
        """Runs the model on one prompt or a list of them.

        Args:
            prompt: text; `<image>` marks where a picture stands, and marks that are missing are put in front.
            image: None, a picture, or a list with one entry per prompt: a picture, a list of pictures, or None. A
                picture is a PIL one, the name of a file, or an array of whole numbers to 255 or floats to 1 [y, x, 3].
            generation_mode: "text" answers; "image" draws, or edits where there are pictures; "text_image" reasons in
                words first.
            height, width: pixels of the picture; None takes the checkpoint's default, or for an edit the size of its
                first source, as far as the checkpoint draws such. Prompts of several sizes are drawn one size after
                the other.
            num_inference_steps: steps of the sampler, by default 20. sigmas: its noise levels instead, that fall from
                at most 1 and are taken as they are (a last 0 is added); or timesteps, 1000 times those.
            flow_shift: of the noise levels (`flow.path.shift_sigma`); None is the checkpoint's, that of its training.
            all_cfg_scale, part_cfg_scale: guidance by everything, and by the source pictures alone; by default 4.5 and
                2.0, with reasoning 3.5 and 1.5. guidance_scale: another name of the first.
            negative_prompt: what guidance leads away from, one for all or one for each prompt, in place of the dropped
                prompt: of that without text and, for an edit, of that with the pictures alone, too.
            prompt_embeds: what `encode_prompt` made of prompts and pictures, in place of these.
            seed: of the starting noise and of sampled text; None draws one. A list has one for each picture (for each
                prompt in text mode): each is what it is alone. generator: another name, which takes JAX keys, too:
                jax.random.key(3) is seed 3 with the noise "jax".
            noise: whose noise a seed stands for: "torch-cpu" (the default) and "torch-cuda" are that of the released
                code with `torch.Generator("cpu" or "cuda").manual_seed(seed)` (`flow.torch_noise`); "jax" that of
                JAX's keys.
            latents: starting noise instead, float32 [images, height/8, width/8, channels]. An edit without a size then
                has the checkpoint's.
            max_new_tokens: most tokens of text; by default 512, with reasoning 200.
            do_sample, temperature, top_k, top_p: draw tokens at random, from the so many best (None: from all) and of
                them from those that together have this probability. num_beams: beam search. Otherwise greedy.
            repetition_penalty: over 1 makes tokens that were written less probable, whatever way they are chosen.
            stop_strings: end a text, too; what was written up to there stays, the string included.
            system_prompt: replaces the system text.
            max_tiles: most tiles that a large picture is cut into for the vision encoder.
            output_type: of `images`: "pil"; "np", float32 [images, y, x, 3] from 0 to 1; "latent", normalised latents
                as `latents` takes them. Arrays of several sizes come in a list.
            return_dict: whether to give a `PipelineOutput`, or the tuple (images, text) without what there is not.
            callback: called as (step, total, latents [b, y, x, c]) after each step of the sampler. Prompts of several
                sizes, or whose source pictures differ in size or number, are drawn one group after the other, and steps
                count through them.
            callback_on_step_end: called as (pipe, step, timestep, {"latents": latents}) after each step, as in
                diffusers, steps counted from 0 in each such group. Latents [b, y, x, c] in what it returns take the
                place of those; None changes nothing. With `pipe._interrupt = True` the steps that are left are not
                made: the pictures are decoded as they are. What it raises comes through.
            progress: show a bar on standard error.

        Raises:
            ValueError: an argument cannot be used; before anything is computed.
        """
        given = dict(locals())
        del given["self"]
        options, prompts = self._prepared(given)
        self._interrupt = False
        return self._given(self._answer(prompts, options, prompt_embeds), given, options[0])

    def stream(
        self, prompt: str, image: Any = None, generation_mode: str = "text", **options: Any
    ) -> TextStream[PipelineOutput]:
        """The same with one prompt, whose text comes in pieces as it is written: see `TextStream`.

        Args are those of a call. In "text_image" the picture is drawn when the result is asked for.

        Raises:
            ValueError: as in a call, or there are beams, whose texts are not settled before their end.
            TypeError: there is no such argument.
        """
        given = given_to(type(self).__call__, self, prompt, image, generation_mode, **options)
        check_streams(given)
        (checked,), (one,) = self._prepared(given)
        self._interrupt = False
        return TextStream(self._streamed(one, checked, given))

    def _streamed(self, prompt: ProcessedPrompt, options: Options, given: Given) -> Writing[PipelineOutput]:
        visual, (row,) = self._see([prompt])
        text = yield from pieces(self._stream(row, visual, options), self.processor.tokenizer)
        tokens = text.tokens  # what is given back may be held for long, and must not hold the cache
        if options.mode == "text":
            return lambda: self._given(self._text(tokens), given, options)
        grid = options.latent_grid(self.config)
        cond = self._branches_after([row], text, [self._source_grids(prompt)], grid)

        def finish() -> PipelineOutput:
            with self._counting([options], [self._kind(prompt)]) as (own,):
                images = self._draw(self._pictures([prompt], [row], cond, visual, grid), own)
            return self._given(dataclasses.replace(self._text(tokens), images=images), given, options)

        return finish

    def _prepared(self, given: Given) -> tuple[list[Options], list[ProcessedPrompt]]:
        """The options of each prompt of a call, with the size in which it is drawn, and the prompts, checked."""
        check_together(given)
        options = options_of(given, self.config, lambda: self.on.agreed(any_seed()))
        prompt, embeds = given["prompt"], given["prompt_embeds"]
        if embeds is not None:
            options.check(self.config, len(embeds))
            return self._sized(options, embeds.sources, given), []
        options.check(self.config, len(prompt) if isinstance(prompt, list | tuple) else 1)
        prompts = self.processor.process(
            prompt, given["image"], options.mode, system_prompt=options.system_prompt, max_tiles=options.max_tiles,
            negative_prompt=given["negative_prompt"],
        )  # fmt: skip
        return self._sized(options, [source_size(p) for p in prompts], given), prompts

    def _sized(self, options: Options, sources: Sequence[SourceSize | None], given: Given) -> list[Options]:
        """The options of each prompt. Raises ValueError if the checkpoint draws no picture as large."""
        if options.mode == "text":
            return [options] * len(sources)
        limits, asked = self.config.processor.image_gen_processor_kwargs, (given["height"], given["width"])
        own = [options if options.latents is not None else sized(options, source, asked, limits) for source in sources]
        for one in own:
            one.check_area(self.config)
        return own

    def _answer(
        self, prompts: Sequence[ProcessedPrompt], options: Sequence[Options], embeds: PromptEmbeds | None
    ) -> PipelineOutput:
        """Of prompts, or of what they were encoded to."""

        def run(members: Sequence[int], own: Options) -> PipelineOutput:
            if embeds is None:
                return self._run([prompts[n] for n in members], own)
            patch = self.config.generation_decoder.latent_multiple
            chosen = [embeds.pictures[n] for n in members]
            return PipelineOutput(images=self._draw(resized(chosen, own.latent_grid(self.config), patch), own))

        if options[0].mode == "text":
            return run(range(len(prompts)), options[0])
        kinds = [self._kind(p) for p in prompts] if embeds is None else [p.kind for p in embeds.pictures]
        with self._counting(options, kinds) as own:
            return by_size(run, own)

    @contextmanager
    def _counting(self, options: Sequence[Options], kinds: Sequence[Hashable]) -> Iterator[list[Options]]:
        """The options of prompts that `_sample` draws size by size and kind by kind; their steps count through all."""
        first, drawings = options[0], set(zip((own.sizes for own in options), kinds, strict=True))
        total = first.num_inference_steps * len(drawings)
        with steps_bar(total, first.progress) as advance:
            on_step = drawing.counted(first.callback, total, advance)
            yield [dataclasses.replace(own, on_step=on_step) for own in options]

    def _run(self, prompts: Sequence[ProcessedPrompt], options: Options) -> PipelineOutput:
        """Of prompts whose pictures have one size."""
        grid = options.latent_grid(self.config)
        if options.mode == "image":
            return PipelineOutput(images=self._draw(self._encode(prompts, grid), options))
        visual, rows = self._see(prompts)
        if options.mode == "text":
            return self._text(self._write(rows, visual, options).tokens)
        tokens, cond = self._reason(rows, visual, options, [self._source_grids(p) for p in prompts], grid)
        images = self._draw(self._pictures(prompts, rows, cond, visual, grid), options)
        return dataclasses.replace(self._text(tokens), images=images)

    def _given(self, out: PipelineOutput, given: Given, options: Options) -> Any:
        """The output as it was asked for."""
        seed = next((given[name] for name in ("seed", "generator") if given[name] is not None), options.seed)
        images = out.images if options.output_type == "pil" or out.images is None else collected(out.images)
        whole = dataclasses.replace(out, images=images, seed=seed)
        return whole if given["return_dict"] else whole.to_tuple()

    def parameters(self) -> dict[str, Any]:
        """The parameters in their own shapes: under `pmap` `params` holds a copy for each device."""
        return self.on.parameters(self.params)

    def source_size(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) at which a source picture enters the head: a size that the checkpoint draws."""
        return entering_size(image.height, image.width, self.config.processor.image_gen_processor_kwargs)

    def _text(self, tokens: list[np.ndarray]) -> PipelineOutput:
        return PipelineOutput([self.processor.tokenizer.decode(t.tolist()) for t in tokens], tokens)

    def _draw(self, pictures: Sequence[PictureInputs], options: Options) -> list[Any]:
        """So many pictures of each as are asked for."""
        repeated = [p for p in pictures for _ in range(options.num_images_per_prompt)]
        given = options.latents
        shape = (*options.latent_grid(self.config), self.config.vae.z_dim)
        start = starting_noise(options.noise, options.seed, len(repeated), shape) if given is None else given
        latents = self._sample(repeated, np.asarray(start, np.float32), options)
        if options.output_type == "latent":
            return list(latents)
        height, width = options.returned or (options.height, options.width)
        decoded = map(Image.fromarray, self._decode(latents))
        drawn = [picture.resize((width, height), Image.Resampling.LANCZOS) for picture in decoded]
        return [np.asarray(p, np.float32) / 255 for p in drawn] if options.output_type == "np" else drawn

    def _sample(self, pictures: Sequence[PictureInputs], start: np.ndarray, options: Options) -> np.ndarray:
        """Latents of all pictures; those of one kind are drawn together."""
        kinds: dict[Hashable, list[int]] = {}
        for i, picture in enumerate(pictures):
            kinds.setdefault(picture.kind, []).append(i)
        plan = options.schedule or schedule(options.num_inference_steps, options.flow_shift)
        scales = Scales(options.all_cfg_scale, options.part_cfg_scale)
        report = drawing.reporter(options.on_step, self._on_step_end(options))
        latents = start.copy()
        for members in kinds.values():
            if self._interrupt:
                break
            chosen = [pictures[i] for i in members]
            latents[members] = drawing.draw(
                self.on, self.model, self.params, chosen, start[members], plan, scales, report
            )
        return latents

    def _on_step_end(self, options: Options) -> Report | None:
        """`callback_on_step_end`, as the sampler calls it."""
        callback = options.callback_on_step_end
        if callback is None:
            return None

        def report(step: int, timestep: int, latents: np.ndarray) -> Then:
            returned = callback(self, step, timestep, {"latents": latents})
            return Then(changed_latents(returned, latents), self._interrupt)

        return report

    def _decode(self, latents: np.ndarray) -> np.ndarray:
        """8-bit pictures [b, Y, X, 3]."""
        _, rows, columns, _ = latents.shape
        return self._coded(programs.decode, latents, rows * columns * self.config.vae.downsample_factor**2)


def _finished(on: Placement, part: str, params: Params) -> Params:
    """A part of a model that is read, as it is served."""
    params = spread(params)
    return listed(params) if part == "vlm" and isinstance(on, OneDevice) else params


def _check_attention(config: InternVLUConfig, compute: Compute) -> None:
    """Raises ValueError if the attention that was asked for cannot run, before anything is compiled."""
    for head_dim in config.attention_widths:
        resolve_implementation(compute.attention, compute.dtype, head_dim)


def dtype_name(dtype: Any) -> str:
    """The name of a dtype given as a name, a numpy or a JAX dtype; what is none of these is given back as text."""
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return str(dtype)
