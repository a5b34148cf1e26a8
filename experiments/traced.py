"""What the pipeline runs for one case, as functions and the shapes they get: nothing is computed or allocated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.costs import Case, contexts
from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.decode.generate import generate
from internvlu_jax.decode.model import LanguageModel, Prompt, prefill
from internvlu_jax.decode.settings import TextSettings
from internvlu_jax.flow.guidance import Scales
from internvlu_jax.flow.solver import Steps
from internvlu_jax.inference import drawing, programs
from internvlu_jax.models.internvlu import InternVLU, param_shapes
from internvlu_jax.models.vlm import NUM_SPECIAL_TOKENS
from internvlu_jax.parallel.placement import OneDevice
from internvlu_jax.processing.layout import Layout, takes_latents
from internvlu_jax.processing.rows import bucket
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
        self.model = InternVLU(cfg, tuple(range(NUM_SPECIAL_TOKENS)), compute)
        self.params = jax.tree.map(lambda p: Shape(p.shape, jnp.dtype(compute.dtype)), _param_shapes(cfg))
        self.encoded = case.turns[:-1] if case.task != "text" else case.turns

    def parts(self) -> dict[str, Part]:
        tasks = {"t2i": self._text_to_image, "edit": self._edit, "text": self._text}
        return tasks[self.case.task]()

    def _text_to_image(self) -> dict[str, Part]:
        return {
            "prompt": Part(partial(programs.contexts, self.model), (self.params, *self._prompt())),
            "context": Part(self._conditions, (self.params,)),
            "denoise": self._denoise(),
            "vae_decode": Part(partial(programs.decode, self.model), (self.params, floats(1, *self._latents()))),
        }

    def _edit(self) -> dict[str, Part]:
        source = pixels(1, self.case.height, self.case.width, 3)
        seen = {"vision": self._vision()}
        if takes_latents(self.cfg):
            seen["vae_encode"] = Part(partial(programs.encode, self.model), (self.params, source))
        return seen | self._text_to_image()

    def _text(self) -> dict[str, Part]:
        model, new = LanguageModel(self.model), self.case.new_tokens
        ids, _, *shown = self._prompt()
        x = jax.eval_shape(partial(programs.embed, self.model), self.params, ids, *shown)
        read = partial(prefill, model, capacity=x.shape[1] + bucket(new))
        prompt: Prompt = jax.eval_shape(read, self.params, x, ints(1))
        settings = TextSettings(stop_ids=(-1,), pad_id=0, max_new_tokens=new, buffer=bucket(new))
        return {
            "vision": self._vision(),
            "prompt": Part(read, (self.params, x, ints(1))),
            "write": Part(partial(generate, model, settings=settings), (self.params, prompt), rounds=new - 1),
        }

    def _vision(self) -> Part:
        side = self.cfg.vlm.vision_config.image_size
        tiles = pixels(self.case.tiles, side, side, 3)
        return Part(partial(programs.visual_tokens, self.model), (self.params, tiles))

    def _prompt(self) -> tuple[Any, ...]:
        """Ids, places of the context, visual tokens and where they go."""
        ids = ints(len(self.encoded), bucket(self.case.system + max(self.encoded)))
        index = ints(len(self.encoded), bucket(max(contexts(self.cfg, self.case))))
        if not self.case.tiles:
            return ids, index, None, None
        visual = floats(self.case.tiles * self.cfg.vlm.tokens_per_tile, self.cfg.vlm.llm_config.hidden_size)
        return ids, index, visual, ids

    def _conditions(self, params: Any) -> list[Any]:
        """The conditions of the branches that are encoded anew in every call."""
        picture = self._picture()
        encoded = [branch for branch in (picture.cond, picture.text_dropped) if branch is not None]
        length = bucket(max(len(branch.context) for branch in encoded))
        sources = tuple(source[None] for source in picture.sources)
        return [drawing.condition(OneDevice(), self.model, params, [branch], length, sources) for branch in encoded]

    def _denoise(self) -> Part:
        grid = self._latents()[:2]
        groups = jax.eval_shape(
            lambda params: drawing.groups(OneDevice(), self.model, params, [self._picture()], grid), self.params
        )
        plan = Steps(*(floats(self.case.steps) for _ in Steps._fields))
        scales = Scales(*(floats() for _ in Scales._fields))
        return Part(
            partial(programs.draw, self.model), (self.params, floats(1, *self._latents()), plan, groups, scales)
        )

    def _picture(self) -> drawing.PictureInputs:
        """Zeros in the shapes of what the picture is drawn from, a few megabytes: the pipeline groups real arrays."""
        sources = (np.zeros(self._latents(), np.float32),) * (self.case.tiles if takes_latents(self.cfg) else 0)
        branches = [
            self._branch(length, sources if n < len(self.encoded) else ())
            for n, length in enumerate(contexts(self.cfg, self.case))
        ]
        text_dropped = branches[1] if self.case.task == "edit" else None
        return drawing.PictureInputs(branches[0], text_dropped, branches[-1], sources)

    def _branch(self, length: int, sources: tuple[np.ndarray, ...]) -> drawing.Branch:
        head = self.cfg.generation_decoder
        patch = head.latent_multiple
        grids = [
            (rows // patch, columns // patch) for rows, columns, _ in (self._latents(), *(s.shape for s in sources))
        ]
        side, span = self.cfg.vlm.tokens_per_side, np.arange(length, dtype=np.int32)
        layout = Layout(span, [(False, length)], tuple(grids), (side, side), 1.0, 1.0)
        return drawing.Branch(np.zeros((length, head.input_hidden_size), np.float32), layout)

    def _latents(self) -> tuple[int, int, int]:
        factor = self.cfg.vae.downsample_factor
        return self.case.height // factor, self.case.width // factor, self.cfg.vae.z_dim


@functools.cache
def _param_shapes(cfg: InternVLUConfig) -> dict[str, Any]:
    return param_shapes(cfg)


def pixels(*shape: int) -> Shape:
    return Shape(shape, jnp.uint8)


def floats(*shape: int) -> Shape:
    return Shape(shape, jnp.float32)


def ints(*shape: int) -> Shape:
    return Shape(shape, jnp.int32)
