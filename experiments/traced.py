"""What the pipeline runs for one case, as functions and the shapes they get: nothing is computed or allocated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.costs import Case
from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.decode.generate import generate
from internvlu_jax.decode.model import Prompt, prefill
from internvlu_jax.flow.guidance import Scales
from internvlu_jax.flow.solver import Steps
from internvlu_jax.inference import drawing
from internvlu_jax.inference.programs import Inference
from internvlu_jax.models.internvlu import NUM_SPECIAL_TOKENS, param_shapes
from internvlu_jax.processing.batch import bucket
from internvlu_jax.utils.flops import count_flops

Shape: Any = jax.ShapeDtypeStruct  # stands where an array is expected


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
    """The parts of one call with one prompt, for one picture or one answer.

    The context of the fully dropped prompt is not among them: the pipeline keeps it from call to call.
    """

    def __init__(
        self,
        cfg: InternVLUConfig,
        case: Case,
        # Counted with attention by XLA: the jaxpr of a cuDNN call does not show its products, which are the same ones.
        compute: Compute = Compute(attention="xla"),
    ) -> None:
        self.cfg, self.case = cfg, case
        self.inference = Inference(cfg, compute)
        self.params = jax.tree.map(lambda p: Shape(p.shape, jnp.dtype(compute.dtype)), _param_shapes(cfg))
        self.encoded = case.turns[:-1] if case.task != "text" else case.turns

    def parts(self) -> dict[str, Part]:
        tasks = {"t2i": self._text_to_image, "edit": self._edit, "text": self._text}
        return tasks[self.case.task]()

    def _text_to_image(self) -> dict[str, Part]:
        return {
            "prompt": Part(self.inference.hidden_states, self._prompt()),
            "context": self._context(),
            "denoise": self._denoise(),
            "vae_decode": Part(self.inference.pictures, (self.params["vae"], floats(1, *self._latents()))),
        }

    def _edit(self) -> dict[str, Part]:
        source = floats(1, self.case.height, self.case.width, 3)
        seen = {
            "vision": self._vision(),
            "vae_encode": Part(self.inference.source_latents, (self.params["vae"], source)),
        }
        return seen | self._text_to_image()

    def _text(self) -> dict[str, Part]:
        model, new = self.inference.language_model(capture=False), self.case.new_tokens
        x = jax.eval_shape(self.inference.embed_prompt, *self._prompt())
        read = partial(prefill, model, capacity=x.shape[1] + bucket(new))
        prompt: Prompt = jax.eval_shape(read, self.params["vlm"], x, ints(1))
        write = partial(generate, model, stop_ids=(-1,), pad_id=0, max_new_tokens=new, buffer=bucket(new))
        return {
            "vision": self._vision(),
            "prompt": Part(read, (self.params["vlm"], x, ints(1))),
            "write": Part(write, (self.params["vlm"], prompt), rounds=new - 1),
        }

    def _vision(self) -> Part:
        side = self.cfg.vlm.vision_config.image_size
        return Part(self.inference.visual_tokens, (self.params["vlm"], floats(self.case.tiles, side, side, 3)))

    def _prompt(self) -> tuple[Any, ...]:
        """Parameters, ids, special ids, visual tokens and where they go."""
        ids = ints(len(self.encoded), bucket(self.case.system + max(self.encoded)))
        if not self.case.tiles:
            return self.params["vlm"], ids, ints(NUM_SPECIAL_TOKENS), None, None
        visual = floats(self.case.tiles * self.cfg.vlm.tokens_per_tile, self.cfg.vlm.llm_config.hidden_size)
        return self.params["vlm"], ids, ints(NUM_SPECIAL_TOKENS), visual, ids

    def _context(self) -> Part:
        states = jax.eval_shape(self.inference.hidden_states, *self._prompt())
        index = ints(len(self.encoded), bucket(max(self.encoded)))
        return Part(self.inference.context, (self.params["head"], states, index))

    def _denoise(self) -> Part:
        grid = self._latents()
        groups = jax.tree.map(
            lambda a: Shape(a.shape, a.dtype), drawing.groups(self.inference, [self._picture()], grid[:2])
        )
        plan = Steps(*(floats(self.case.steps) for _ in Steps._fields))
        scales = Scales(*(floats() for _ in Scales._fields))
        return Part(self.inference.draw, (self.params["head"], floats(1, *grid), plan, groups, scales))

    def _picture(self) -> drawing.Picture:
        """Zeros in the shapes of what the picture is drawn from, a few megabytes: the pipeline groups real arrays."""
        contexts = [self._zero_context(length) for length in self.case.turns]
        partial_context = contexts[1] if self.case.task == "edit" else None
        sources = (np.zeros(self._latents(), np.float32),) * self.case.tiles
        return drawing.Picture(contexts[0], partial_context, contexts[-1], sources)

    def _zero_context(self, length: int) -> drawing.Context:
        width = self.cfg.generation_decoder.decoder_config.hidden_size
        return drawing.Context(np.zeros((length, width), np.float32), [(False, length)])

    def _latents(self) -> tuple[int, int, int]:
        factor = self.cfg.vae.downsample_factor
        return self.case.height // factor, self.case.width // factor, self.cfg.vae.z_dim


@functools.cache
def _param_shapes(cfg: InternVLUConfig) -> dict[str, Any]:
    return param_shapes(cfg)


def floats(*shape: int) -> Shape:
    return Shape(shape, jnp.float32)


def ints(*shape: int) -> Shape:
    return Shape(shape, jnp.int32)
