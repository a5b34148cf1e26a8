"""What the pipeline runs for one case, as functions and the shapes they get: nothing is computed or allocated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.costs import Case
from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.decode.generate import generate
from internvlu_jax.decode.model import Prompt, prefill
from internvlu_jax.flops import count_flops
from internvlu_jax.flow.guidance import Scales
from internvlu_jax.flow.sampler import Group
from internvlu_jax.flow.solver import Steps
from internvlu_jax.inference import Inference
from internvlu_jax.models.internvlu import NUM_SPECIAL_TOKENS, param_shapes
from internvlu_jax.processing.batch import bucket

Shape: Any = jax.ShapeDtypeStruct  # stands where an array is expected


# Branches that run as one batch, their contexts padded to one length (`flow.sampler`).
GROUPS: dict[str, list[tuple[str, ...]]] = {
    "t2i": [("full", "dropped")],
    "edit": [("full", "partial"), ("dropped",)],
}


class Part(NamedTuple):
    """A function of arrays, the shapes of its arguments, and the rounds of its `while` loop if it has one."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    rounds: int | None = None

    def flops(self) -> int:
        return count_flops(self.function, *self.arguments, while_rounds=self.rounds)


def ran(cfg: InternVLUConfig, case: Case) -> dict[str, int]:
    """Operations of each part of the pipeline, padding to buckets included; names as in `costs.minimum`."""
    return {name: part.flops() for name, part in Traced(cfg, case).parts().items()}


class Traced:
    """The parts of one case on a batch of one prompt."""

    def __init__(self, cfg: InternVLUConfig, case: Case) -> None:
        self.cfg, self.case = cfg, case
        # Attention by XLA, because the jaxpr of a cuDNN call does not show its products; both compute the same ones.
        self.inference = Inference(cfg, Compute(attention="xla"))
        self.params = param_shapes(cfg)

    def parts(self) -> dict[str, Part]:
        tasks = {"t2i": self._text_to_image, "edit": self._edit, "text": self._text}
        return tasks[self.case.task]()

    def _text_to_image(self) -> dict[str, Part]:
        return {
            "prompt": self._prompt(),
            "context": self._context(),
            "denoise": self._denoise(),
            "vae_decode": self._vae_decode(),
        }

    def _edit(self) -> dict[str, Part]:
        return {
            "vision": self._vision(),
            "prompt": self._prompt(),
            "context": self._context(),
            "vae_encode": Part(self.inference.source_latents, (self.params["vae"], self._picture())),
            "denoise": self._denoise(),
            "vae_decode": self._vae_decode(),
        }

    def _text(self) -> dict[str, Part]:
        llm, new = self.cfg.vlm.llm_config, self.case.new_tokens
        length = bucket(self.case.system + self.case.turns[0])
        model = self.inference.language_model(capture=False)
        prompt = floats(1, length, llm.hidden_size)
        read = partial(prefill, model, capacity=length + new)
        written: Prompt = jax.eval_shape(read, self.params["vlm"], prompt, ints(1))
        write = partial(generate, model, stop_ids=(0,), pad_id=0, max_new_tokens=new, buffer=new)
        return {
            "vision": self._vision(),
            "prompt": Part(read, (self.params["vlm"], prompt, ints(1))),
            "write": Part(write, (self.params["vlm"], written), rounds=new - 1),
        }

    def _vision(self) -> Part:
        side = self.cfg.vlm.vision_config.image_size
        return Part(self.inference.visual_tokens, (self.params["vlm"], floats(self.case.tiles, side, side, 3)))

    def _prompt(self) -> Part:
        rows, length = len(self.case.turns), bucket(self.case.system + max(self.case.turns))
        ids, special = ints(rows, length), ints(NUM_SPECIAL_TOKENS)
        tokens = self.case.tiles * self.cfg.vlm.tokens_per_tile
        visual = floats(tokens, self.cfg.vlm.llm_config.hidden_size) if tokens else None
        seen = ids if tokens else None
        return Part(self.inference.hidden_states, (self.params["vlm"], ids, special, visual, seen))

    def _context(self) -> Part:
        rows, length = len(self.case.turns), bucket(max(self.case.turns))
        encoded = bucket(self.case.system + max(self.case.turns))
        states = floats(rows, encoded, self.cfg.generation_decoder.input_hidden_size)
        return Part(self.inference.context, (self.params["head"], states, ints(rows, length)))

    def _picture(self) -> Shape:
        return floats(1, self.case.height, self.case.width, 3)

    def _latents(self) -> Shape:
        factor = self.cfg.vae.downsample_factor
        return floats(1, self.case.height // factor, self.case.width // factor, self.cfg.vae.z_dim)

    def _vae_decode(self) -> Part:
        return Part(self.inference.pictures, (self.params["vae"], self._latents()))

    def _denoise(self) -> Part:
        plan = Steps(*(floats(self.case.steps) for _ in Steps._fields))
        batches = tuple(self._group(names) for names in GROUPS[self.case.task])
        scales = Scales(*(floats() for _ in Scales._fields))
        return Part(self.inference.draw, (self.params["head"], self._latents(), plan, batches, scales))

    def _group(self, names: tuple[str, ...]) -> Group:
        every = ("full", "partial", "dropped") if self.case.task == "edit" else ("full", "dropped")
        turns = dict(zip(every, self.case.turns, strict=True))
        dit, rows, length = self.cfg.generation_decoder.decoder_config, len(names), bucket(max(turns[n] for n in names))
        conditions = () if "dropped" in names else (self._latents(),) * self.case.tiles
        tokens = self.case.height * self.case.width // self.cfg.generation_decoder.pixel_multiple**2
        table = floats(1, rows, tokens * (1 + len(conditions)) + length, dit.attention_head_dim // 2)
        return Group(names, floats(1, rows, length, dit.hidden_size), ints(1, rows), (table, table), conditions)


def floats(*shape: int) -> Shape:
    return Shape(shape, jnp.float32)


def ints(*shape: int) -> Shape:
    return Shape(shape, jnp.int32)
