"""The arguments of a call, among them those that diffusers' users know, brought to `Options`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.flow.solver import Schedule, schedule_of_sigmas, schedule_of_timesteps
from internvlu_jax.inference.encoding import PromptEmbeds
from internvlu_jax.inference.options import GUIDANCE, NEW_TOKENS, STEPS, Options
from internvlu_jax.utils.seeds import is_key

Given = Mapping[str, Any]
"""The arguments of `InternVLUPipeline.__call__` by name, all of them."""

# What says something of drawing alone, and what leaves it unsaid.
_OF_DRAWING: dict[str, Any] = {
    "guidance_scale": None,
    "negative_prompt": None,
    "sigmas": None,
    "timesteps": None,
    "prompt_embeds": None,
    "output_type": "pil",
    "callback_on_step_end": None,
}
# What `prompt_embeds` already holds.
_ENCODED: dict[str, Any] = {
    "prompt": None,
    "image": None,
    "negative_prompt": None,
    "system_prompt": None,
    "max_tiles": 1,
}
# Two names for one thing.
_EITHER = (
    ("all_cfg_scale", "guidance_scale"),
    ("seed", "generator"),
    ("sigmas", "timesteps"),
    ("sigmas", "flow_shift"),
    ("timesteps", "flow_shift"),
    ("callback", "callback_on_step_end"),
)


def given_to(call: Callable[..., Any], *arguments: Any, **options: Any) -> Given:
    """What a call of `InternVLUPipeline.__call__`, the pipeline first, would be given, defaults included.

    Raises:
        TypeError: there is no such argument.
    """
    bound = inspect.signature(call).bind(*arguments, **options)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name != "self"}


def check_together(given: Given) -> None:
    """Raises ValueError if arguments contradict each other, or say what has no meaning in the mode."""
    for one, other in _EITHER:
        if given[one] is not None and given[other] is not None:
            raise ValueError(f"{one} and {other} are given; expected one of them")
    mode = given["generation_mode"]
    if mode == "text":
        for name, unsaid in _OF_DRAWING.items():
            if _is_said(given[name], unsaid):
                raise ValueError(f"{name} is given and generation_mode is 'text', in which nothing is drawn")
    if given["prompt_embeds"] is None:
        return
    if not isinstance(given["prompt_embeds"], PromptEmbeds):
        kind = type(given["prompt_embeds"]).__name__
        raise ValueError(f"prompt_embeds is a {kind}; expected what encode_prompt gives")
    if mode != "image":
        raise ValueError(f"prompt_embeds are given and generation_mode is {mode!r}; expected 'image'")
    for name, unsaid in _ENCODED.items():
        if _is_said(given[name], unsaid):
            raise ValueError(f"prompt_embeds and {name} are given; expected it in the call of encode_prompt")


def _is_said(value: Any, unsaid: Any) -> bool:
    return value is not None and not (isinstance(value, type(unsaid)) and value == unsaid)


def check_streams(given: Given) -> None:
    """Raises ValueError if a call cannot be streamed."""
    if not isinstance(given["prompt"], str):
        raise ValueError(f"the prompt is a {type(given['prompt']).__name__}; a stream has one, expected a string")
    if given["generation_mode"] == "image":
        raise ValueError("generation_mode is 'image', in which no text is written; expected 'text' or 'text_image'")
    if given["num_beams"] != 1:
        raise ValueError(f"num_beams is {given['num_beams']}; a stream cannot show beams before they end, expected 1")


def changed_latents(returned: Any, latents: np.ndarray) -> np.ndarray | None:
    """What `callback_on_step_end` puts in the place of latents, if anything.

    Raises:
        ValueError: it returned what cannot stand there.
    """
    if returned is not None and not isinstance(returned, Mapping):
        raise ValueError(f"callback_on_step_end returned {returned!r}; expected a dict with latents, or None")
    new = latents if returned is None else returned.get("latents", latents)
    if new is latents:
        return None
    array = np.asarray(new)
    if array.shape != latents.shape or array.dtype.kind != "f":
        raise ValueError(
            f"callback_on_step_end returned latents of shape {array.shape} and dtype {array.dtype}; expected "
            f"{latents.shape}, float32"
        )
    return array.astype(np.float32)


def options_of(given: Given, config: InternVLUConfig, any_seed: Callable[[], int]) -> Options:
    """The options of a call, of which `check_together` holds; not yet checked one by one.

    any_seed: draws one, where none is given.
    """
    mode, head = given["generation_mode"], config.generation_decoder
    draws = mode in GUIDANCE
    plan = _schedule(given) if draws else None
    guidance = GUIDANCE.get(mode, (0.0, 0.0))
    seed = any_seed() if given["seed"] is None and given["generator"] is None else _seed(given)
    noise, stops, limit = given["noise"], given["stop_strings"], given["max_new_tokens"]
    same = (
        "num_images_per_prompt", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "num_beams",
        "system_prompt", "max_tiles", "callback", "progress", "output_type", "callback_on_step_end",
    )  # fmt: skip
    return Options(
        mode=mode,
        height=_chosen(given["height"] if draws else None, head.gen_image_height),
        width=_chosen(given["width"] if draws else None, head.gen_image_width),
        num_inference_steps=len(plan.timesteps) if plan else _chosen(given["num_inference_steps"], STEPS),
        flow_shift=_chosen(given["flow_shift"], head.flow_shift),
        schedule=plan,
        all_cfg_scale=_chosen(_chosen(given["all_cfg_scale"], given["guidance_scale"]), guidance[0]),
        part_cfg_scale=_chosen(given["part_cfg_scale"], guidance[1]),
        seed=seed,
        noise=_chosen(noise, "jax" if any(map(is_key, seed if isinstance(seed, tuple) else [seed])) else "torch-cpu"),
        latents=None if given["latents"] is None else np.asarray(given["latents"]),
        max_new_tokens=_chosen(limit, NEW_TOKENS.get(mode, 1)),
        stop_strings=[stops] if isinstance(stops, str) else stops,
        **{name: given[name] for name in same},
    )


def _chosen(given: Any, default: Any) -> Any:
    return default if given is None else given


def _seed(given: Given) -> Any:
    """An int, a key, or a tuple with one for each; what is none of these is left for `Options.check`."""
    if given["generator"] is None:
        seed = given["seed"]
        return tuple(seed) if isinstance(seed, Sequence) else seed
    generator = given["generator"]
    if isinstance(generator, list | tuple):
        return tuple(map(_generator, generator))
    if isinstance(generator, jax.Array) and generator.ndim == 1 and not _is_raw_key(generator):
        return tuple(map(_generator, generator))
    return _generator(generator)


def _generator(value: Any) -> Any:
    if _is_raw_key(value):
        return jax.random.wrap_key_data(value)
    kind = type(value)
    if kind.__module__.partition(".")[0] == "torch":
        raise ValueError(
            f"generator is a torch.{kind.__name__}; expected an int, a JAX key, or a list of them. "
            "generator=torch_generator.initial_seed() draws with the noise of a fresh one on a CPU"
        )
    if not (is_key(value) or isinstance(value, int | np.integer)):
        raise ValueError(f"generator is a {kind.__name__}; expected an int, a JAX key, or a list of them")
    return value


def _is_raw_key(value: Any) -> bool:
    """As `jax.random.PRNGKey` makes them."""
    return isinstance(value, jax.Array) and value.dtype == jnp.uint32 and value.shape == (2,)


def _schedule(given: Given) -> Schedule | None:
    """Through the noise levels that are given, if any are."""
    for name, make in (("sigmas", schedule_of_sigmas), ("timesteps", schedule_of_timesteps)):
        levels = given[name]
        if levels is None:
            continue
        values = np.asarray(levels)
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            raise ValueError(f"{name} is {levels!r}; expected a list of numbers")
        steps = given["num_inference_steps"]
        if steps is not None and steps != len(values):
            raise ValueError(f"num_inference_steps is {steps} and {name} has {len(values)} entries; give one of them")
        return make(values.tolist())
    return None
