"""The options of one pipeline call, checked before anything is computed or compiled."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from internvlu_jax.config import CodeHead, InternVLUConfig, Noise
from internvlu_jax.decode.sampling import SMALLEST
from internvlu_jax.flow.solver import Schedule, schedule
from internvlu_jax.processing.chat import MODES
from internvlu_jax.utils.seeds import Seed, check_seed, is_key

# Guidance (all, part) by mode; the released code's keyword defaults.
GUIDANCE = {"image": (4.5, 2.0), "text_image": (3.5, 1.5)}
# The released code leaves `text` to its library's default of 20 tokens, too short for an answer; reasoning has 200.
NEW_TOKENS = {"text": 512, "text_image": 200}
STEPS = 20  # of the sampler
OUTPUT_TYPES = ("pil", "np", "latent")


@dataclass(frozen=True)
class Options:
    """Everything but prompts and pictures; the fields are those of `InternVLUPipeline.__call__`.

    schedule: noise levels in place of those that steps and shift choose.
    returned: (height, width) that pictures are resized to, where it is not what was asked for.
    on_step: hears of the latents after every step: made of `callback` and `progress` for all that a call draws.
    """

    mode: str
    height: int
    width: int
    num_inference_steps: int
    flow_shift: float
    all_cfg_scale: float
    part_cfg_scale: float
    num_images_per_prompt: int
    seed: Seed | tuple[Seed, ...]
    noise: Noise
    latents: np.ndarray | None
    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int | None
    repetition_penalty: float
    num_beams: int
    stop_strings: Sequence[str]
    system_prompt: str | None
    max_tiles: int
    callback: Callable[[int, int, Any], None] | None
    progress: bool
    output_type: str = "pil"
    callback_on_step_end: Callable[..., Any] | None = None
    schedule: Schedule | None = None
    returned: tuple[int, int] | None = None
    on_step: Callable[[np.ndarray], None] | None = None

    @property
    def sizes(self) -> Hashable:
        """Equal for prompts that are read together."""
        return self.height, self.width, self.returned

    def latent_grid(self, config: InternVLUConfig) -> tuple[int, int]:
        """(rows, columns) of the latents."""
        return config.generation_decoder.latent_grid(self.height, self.width)

    def check(self, config: InternVLUConfig, num_prompts: int) -> None:
        """Raises ValueError naming the first option that cannot be used, what was expected, and what to do."""
        if self.mode not in MODES:
            raise ValueError(f"generation_mode is {self.mode!r}; expected one of {', '.join(map(repr, MODES))}")
        if self.mode != "text" and isinstance(config.generation_decoder, CodeHead):
            raise ValueError(
                f"generation_mode is {self.mode!r}, and the checkpoint has no generation head: its language model "
                "draws code after code, as studies alone do it. Ask for text"
            )
        self._check_text()
        if self.mode != "text":
            self._check_size(config)
            self._check_image()
            self._check_latents(config, num_prompts)
        self._check_seed(num_prompts * (1 if self.mode == "text" else self.num_images_per_prompt))

    def _check_text(self) -> None:
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        _at_least("num_beams", self.num_beams, 1)
        _at_least("max_tiles", self.max_tiles, 1)
        if self.num_beams > 1 and self.do_sample:
            raise ValueError(
                f"num_beams is {self.num_beams} and do_sample is True; beam search is deterministic. Use one of the two"
            )
        if not (_is_number(self.temperature) and self.temperature >= SMALLEST):
            raise ValueError(
                f"temperature is {self.temperature!r}; expected a number from {SMALLEST} on (greedy: do_sample=False)"
            )
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p is {self.top_p!r}; expected a number over 0 and at most 1")
        if self.top_k is not None:
            _at_least("top_k", self.top_k, 1)
        if not (_is_number(self.repetition_penalty) and self.repetition_penalty >= SMALLEST):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty!r}; expected a number from {SMALLEST} on (1 is none)"
            )
        if not isinstance(self.stop_strings, list | tuple):
            raise ValueError(f"stop_strings is {self.stop_strings!r}; expected a string or a list of strings")
        for string in self.stop_strings:
            if not (isinstance(string, str) and string.encode(errors="ignore").decode() == string != ""):
                raise ValueError(f"stop_strings has {string!r}; expected valid text of at least one character")
        if self.num_beams > 1 and self.stop_strings:
            raise ValueError(
                f"num_beams is {self.num_beams} and stop_strings are given; beams cannot end so. Use one of the two"
            )
        if self.system_prompt is not None and not isinstance(self.system_prompt, str):
            raise ValueError(f"system_prompt is {self.system_prompt!r}; expected a string or None")

    def _check_seed(self, expected: int) -> None:
        if self.noise not in get_args(Noise):
            raise ValueError(f"noise is {self.noise!r}; expected one of {', '.join(map(repr, get_args(Noise)))}")
        seeds = self.seed if isinstance(self.seed, tuple) else (self.seed,)
        if self.noise != "jax" and any(map(is_key, seeds)):
            raise ValueError(f"noise is {self.noise!r} and the generator is a JAX key; expected 'jax', or an int")
        if not isinstance(self.seed, tuple):
            return check_seed(self.seed)
        if len(self.seed) != expected:
            raise ValueError(f"seed has {len(self.seed)} entries; expected one for all, or {expected}, one for each")
        for number, seed in enumerate(self.seed):
            check_seed(seed, f"seed {number}")

    def text_seed(self) -> Seed | tuple[Seed, ...]:
        """Of sampled text: of several seeds for a prompt's pictures it has the first."""
        shared = 1 if self.mode == "text" else self.num_images_per_prompt
        return self.seed[::shared] if isinstance(self.seed, tuple) else self.seed

    def seeds_of(self, prompts: Sequence[int]) -> Seed | tuple[Seed, ...]:
        """Of some of the prompts, by number, and their pictures."""
        if not isinstance(self.seed, tuple):
            return self.seed
        each = 1 if self.mode == "text" else self.num_images_per_prompt
        return tuple(seed for n in prompts for seed in self.seed[n * each : (n + 1) * each])

    def _check_size(self, config: InternVLUConfig) -> None:
        smallest = config.generation_decoder.pixel_multiple
        limits = config.processor.image_gen_processor_kwargs
        for name, value in (("height", self.height), ("width", self.width)):
            _at_least(name, value, smallest)
            if limits.max_length is not None and value > limits.max_length:
                raise ValueError(
                    f"{name} is {value}; the checkpoint draws at most {limits.max_length} pixels a side. "
                    "Ask for less and resize the picture afterwards"
                )

    def check_area(self, config: InternVLUConfig) -> None:
        """Raises ValueError if a picture of this size has more pixels than the checkpoint draws.

        Apart from `check`, for a side that is not asked for is known once the source pictures are.
        """
        limits = config.processor.image_gen_processor_kwargs
        rows, columns = self.latent_grid(config)
        if rows * columns * config.generation_decoder.vae_downsample_factor**2 > limits.max_pixels:
            raise ValueError(
                f"height {self.height} x width {self.width} is over the checkpoint's limit of {limits.max_pixels} "
                "pixels. Ask for less and resize the picture afterwards"
            )

    def _check_image(self) -> None:
        _at_least("num_inference_steps", self.num_inference_steps, 1)
        _at_least("num_images_per_prompt", self.num_images_per_prompt, 1)
        for name in ("all_cfg_scale", "part_cfg_scale"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a finite number")
        if not (_is_number(self.flow_shift) and self.flow_shift > 0):
            raise ValueError(f"flow_shift is {self.flow_shift!r}; expected a number over 0 (1 shifts nothing)")
        if self.schedule is None:
            schedule(self.num_inference_steps, self.flow_shift)
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback is {self.callback!r}; expected a function (step, total, latents)")
        if self.callback_on_step_end is not None and not callable(self.callback_on_step_end):
            raise ValueError(
                f"callback_on_step_end is {self.callback_on_step_end!r}; expected a function (pipe, step, timestep, "
                "callback_kwargs)"
            )
        if self.output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"output_type is {self.output_type!r}; expected one of {', '.join(map(repr, OUTPUT_TYPES))}"
            )

    def _check_latents(self, config: InternVLUConfig, num_prompts: int) -> None:
        if self.latents is None:
            return
        expected = (num_prompts * self.num_images_per_prompt, *self.latent_grid(config), config.vae.z_dim)
        got = np.shape(self.latents)
        if got != expected:
            raise ValueError(f"latents has shape {got}; expected {expected} [images, height/8, width/8, channels]")
        if not np.issubdtype(np.asarray(self.latents).dtype, np.floating):
            raise ValueError(f"latents has dtype {np.asarray(self.latents).dtype}; expected float32")
        if not np.isfinite(np.asarray(self.latents)).all():
            raise ValueError("latents has entries that are not finite; expected standard normal noise")


def _is_number(value: Any) -> bool:
    """Whether it is one of float32, in which all is computed."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and abs(value) <= float(np.finfo(np.float32).max)


def _at_least(name: str, value: Any, smallest: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; expected an integer")
    if value < smallest:
        raise ValueError(f"{name} is {value}; expected at least {smallest}")
