"""The compiled functions of inference: what the pipeline calls, the benchmark times, and `experiments.flops` counts.

Every method is pure in (params, arrays); `Inference` itself only holds what is static, so two pipelines of the same
configuration share compiled programs. Lengths that vary with the prompt come in as buckets (`processing.batch`).
Writing text is `decode`'s; its `LanguageModel` is made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.decode.model import LanguageModel
from internvlu_jax.flow import sampler
from internvlu_jax.flow.guidance import Scales
from internvlu_jax.flow.sampler import Group
from internvlu_jax.flow.solver import SolverState, Steps
from internvlu_jax.models.internvlu import modules
from internvlu_jax.ops.msrope import msrope_table
from internvlu_jax.ops.rope import Table

Params = dict[str, Any]


@dataclass(frozen=True)
class Inference:
    """See, condition, draw: the computations between arrays. Methods take the parameters of the part they use."""

    cfg: InternVLUConfig
    compute: Compute = Compute()

    def apply(self, part: str, params: Params, *args: Any, method: str | None = None, **kwargs: Any) -> Any:
        """One part's method (`models.internvlu.modules`) on its parameters."""
        return modules(self.cfg, self.compute)[part].apply({"params": params}, *args, method=method, **kwargs)

    def language_model(self, *, capture: bool) -> LanguageModel:
        """The text model of `decode`; with `capture` it also gives the hidden states that condition the head."""
        vlm = modules(self.cfg, self.compute)["vlm"]
        return LanguageModel(vlm, self.cfg.generation_decoder.vlm_select_layer if capture else ())

    @partial(jax.jit, static_argnums=0)
    def visual_tokens(self, vlm: Params, tiles: Float[Array, "n y x 3"]) -> Float[Array, "k d"]:
        """Tiles of the whole call -> their visual tokens, one tile after the other."""
        tokens = self.apply("vlm", vlm, tiles, method="visual_tokens")
        return tokens.reshape(-1, tokens.shape[-1])

    @partial(jax.jit, static_argnums=0)
    def source_latents(self, vae: Params, pixels: Float[Array, "b Y X 3"]) -> Float[Array, "b y x c"]:
        """Source pictures in [-1, 1] -> normalised latents, float32."""
        return self.apply("vae", vae, pixels, method="encode_latents").astype(jnp.float32)

    @partial(jax.jit, static_argnums=0)
    def pictures(self, vae: Params, latents: Float[Array, "b y x c"]) -> UInt8[Array, "b Y X 3"]:
        """Normalised latents -> 8-bit pictures, rounded as in the released code: 128, not 127.5, then truncated."""
        pixels = self.apply("vae", vae, latents, method="decode_latents").astype(jnp.float32)
        unit = jnp.clip((127.5 * pixels + 128.0) / 255.0, 0.0, 1.0)
        return (unit * 255.0).astype(jnp.uint8)

    @partial(jax.jit, static_argnums=0)
    def embed_prompt(
        self,
        vlm: Params,
        ids: Int[Array, "b s"],
        special_ids: Int[Array, "10"],
        visual: Float[Array, "k d"] | None = None,
        visual_index: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b s d"]:
        """`VLM.embed_prompt`."""
        return self.apply("vlm", vlm, ids, special_ids, visual, visual_index, method="embed_prompt")

    @partial(jax.jit, static_argnums=0)
    def hidden_states(
        self,
        vlm: Params,
        ids: Int[Array, "b s"],
        special_ids: Int[Array, "10"],
        visual: Float[Array, "k d"] | None = None,
        visual_index: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b s e"]:
        """Prompts -> the hidden states that condition the head. No output layer, no cache."""
        x = self.embed_prompt(vlm, ids, special_ids, visual, visual_index)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        capture = self.cfg.generation_decoder.vlm_select_layer
        return self.apply("vlm", vlm, x, positions, capture=capture).captured

    @partial(jax.jit, static_argnums=0)
    def context(self, head: Params, states: Float[Array, "b s e"], index: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Picks the tokens that condition the head and embeds them in its text stream.

        Entries of `index` past a row's length may be anything: padding is never attended to.
        """
        picked = jnp.take_along_axis(states, index[..., None], axis=1, mode="clip")
        return self.apply("head", head, picked, method="embed_context")

    @partial(jax.jit, static_argnums=0)
    def rope(self, positions: Float[Array, "*n 3"]) -> Table:
        """Rotary tables of the head, which no step of the sampler changes."""
        return msrope_table(positions, self.cfg.generation_decoder.decoder_config.axes_dims_rope)

    @partial(jax.jit, static_argnums=0)
    def draw(
        self, head: Params, noise: Float[Array, "b y x c"], steps: Steps, groups: tuple[Group, ...], scales: Scales
    ) -> Float[Array, "b y x c"]:
        """Noise -> latents: all steps in one program."""
        return sampler.sample(self._velocity(head, groups, scales), noise, steps)

    @partial(jax.jit, static_argnums=0)
    def draw_step(
        self, head: Params, state: SolverState, at: Steps, groups: tuple[Group, ...], scales: Scales
    ) -> SolverState:
        """One step of `draw`, for a caller that wants to look in between."""
        return sampler.sample_step(self._velocity(head, groups, scales), state, at)

    def _velocity(self, head: Params, groups: tuple[Group, ...], scales: Scales) -> sampler.Velocity:
        apply = modules(self.cfg, self.compute)["head"].apply
        return lambda x, timestep: sampler.guided_velocity(apply, head, x, timestep, groups, scales)
