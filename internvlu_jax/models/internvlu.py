"""InternVL-U put together: the one place that knows how its parts meet.

    pixels --vision encoder--> projector --> visual tokens --+
    text ----------------------> embedding ------------------+--> language model --> hidden states --> text
                                                                                         |
                                                             context (selected layers, the user's turn)
    source picture --encode--> latents --> condition <-----------------------------------+
    noise -------------------> noisy latents --> velocity(condition) --> solver --> latents --decode--> picture

Parameters are a dict with the keys `vlm`, `head` and `vae`; a method needs only those that it names. Pictures come in
and go out as 8-bit pixels. What stands in the three slots is `models.slots`' affair.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from internvlu_jax.config import Compute, InternVLUConfig, Quantization
from internvlu_jax.models import slots
from internvlu_jax.models.head import Condition
from internvlu_jax.models.lora import adapted
from internvlu_jax.models.mmdit import context_shares
from internvlu_jax.models.pixels import codec_values, to_bytes, vision_values
from internvlu_jax.models.quantization import quantized
from internvlu_jax.models.qwen3 import KVCache, Qwen3Output
from internvlu_jax.models.vlm import VLM

Params = dict[str, Any]


@dataclass(frozen=True)
class InternVLU:
    """The whole model: static itself, every method a pure function of (params, arrays).

    Hashable, so that it is a static argument of what is jitted: equal models share compiled programs.

    special_ids: ids of the tokens with embeddings of their own (`Tokenizer.special_table_ids`).
    adapter_scale: of low-rank adapters in the parameters (`models.lora`); None if there are none.
    quantization: of the parameters that are in 8 bits (`models.quantization`); None if none is.
    """

    cfg: InternVLUConfig
    special_ids: tuple[int, ...]
    compute: Compute = Compute()
    adapter_scale: float | None = None
    quantization: Quantization | None = None

    # Pictures

    def visual_tokens(self, params: Params, tiles: UInt8[Array, "k p q 3"]) -> Float[Array, "k s d"]:
        """What the language model sees of each tile: vision encoder, pixel shuffle, projector."""
        pixels = vision_values(tiles, self.cfg.processor.image_processor_kwargs)
        return self._apply("vlm", params, pixels, method="visual_tokens")

    def encode(self, params: Params, pixels: UInt8[Array, "b Y X 3"]) -> Float[Array, "b y x c"]:
        """Pictures to normalised latents, float32."""
        values = codec_values(pixels, self.cfg.processor.image_gen_processor_kwargs)
        return self._apply("vae", params, values, method="encode_latents").astype(jnp.float32)

    def decode(self, params: Params, latents: Float[Array, "b y x c"]) -> UInt8[Array, "b Y X 3"]:
        """Normalised latents to pictures."""
        return to_bytes(self._apply("vae", params, latents, method="decode_latents"))

    # The language model

    def embed(
        self,
        params: Params,
        ids: Int[Array, "b s"],
        visual: Float[Array, "*r k d"] | None = None,
        visual_index: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b s d"]:
        """Embeds prompts: rows of the special-token table for special tokens, visual tokens where pictures stand.

        Args:
            visual: [k, d], one list for all rows, or [b, k, d], each row's own, which then stay with their row on a
                sharded mesh.
            visual_index: which entry a position shows, -1 where it shows none.
        """
        special = jnp.asarray(self.special_ids)
        if visual is None or visual_index is None or visual.ndim == 2:
            return self._apply("vlm", params, ids, special, visual, visual_index, method="embed_prompt")

        def one(row: Array, own: Array, index: Array) -> Array:
            return self._apply("vlm", params, row[None], special, own, index[None], method="embed_prompt")[0]

        return jax.vmap(one)(ids, visual, visual_index)

    def embed_written(self, params: Params, ids: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """Embeds tokens while they are written; see `VLM.embed_written` for how that differs from a prompt."""
        return self._apply("vlm", params, ids, method="embed_written")

    def read(
        self,
        params: Params,
        x: Float[Array, "b s d"],
        positions: Int[Array, "b s"] | None = None,
        *,
        segments: Int[Array, "b s"] | None = None,
        cache: KVCache | None = None,
        return_kv: bool = False,
        capture: bool = False,
    ) -> Qwen3Output:
        """The language model over embedded rows: whole prompts, packed samples, or more tokens after a cache.

        Args:
            positions: of each token in its row or sample; None is 0, 1, 2, ...
            segments: tokens attend within equal numbers; None where a row is one sample.
            cache, return_kv: as for `Qwen3.__call__`.
            capture: whether to give the hidden states that condition the head.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        layers = self.cfg.generation_decoder.vlm_select_layer if capture else ()
        return self._apply(
            "vlm", params, x, positions, segments=segments, cache=cache, return_kv=return_kv, capture=layers
        )  # fmt: skip

    def logits(self, params: Params, last: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        """Scores of the next token, float32, from `Qwen3Output.last`."""
        return self._apply("vlm", params, last, method="logits")

    # The head

    def context(self, states: Float[Array, "b s e"], index: Int[Array, "b t"]) -> Float[Array, "b t e"]:
        """Of the captured hidden states of whole rows those that condition the head.

        index: `Layout.span` of each row, padded on the right; entries past a row's length may be anything.
        """
        return jnp.take_along_axis(states, index[..., None], axis=1, mode="clip")

    def condition(
        self,
        params: Params,
        context: Float[Array, "b t e"],
        lengths: Int[Array, "b"],
        positions: Float[Array, "b n 3"],
        sources: tuple[Float[Array, "b _ _ c"], ...] = (),
    ) -> Any:
        """All that a picture is drawn from, as a tree that leads with b and that no step of the sampler changes.

        Args:
            context: hidden states, see `context`; `lengths` of each row are real.
            positions: `Layout.positions` of each row.
            sources: normalised latents of source pictures.
        """
        return self._apply("head", params, context, lengths, positions, sources, method="condition")

    def velocity(
        self, params: Params, x: Float[Array, "b y x c"], timestep: Float[Array, "*b"], condition: Any
    ) -> Float[Array, "b y x c"]:
        """Velocity `noise - clean`, float32, of latents x at noise level timestep / 1000: one, or one for each row."""
        timestep = jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), x.shape[:1])
        return self._apply("head", params, x, timestep, condition, method="velocity")

    def attention_maps(
        self, params: Params, x: Float[Array, "b y x c"], timestep: Float[Array, "b"], condition: Condition
    ) -> Float[Array, "b l n i t"]:
        """Of the released head, in `velocity`: `mmdit.context_shares` of its layers l and heads n."""
        _, kept = self._apply(
            "head", params, x, timestep, condition, method="velocity", mutable=["intermediates"]
        )  # fmt: skip
        noisy = prod(x.shape[1:3]) // self.cfg.generation_decoder.latent_multiple**2
        pictures = condition.rope[0].shape[1] - condition.context.shape[1]
        return context_shares(kept["intermediates"]["mmdit"], noisy, pictures, condition.lengths)

    def _apply(
        self, part: str, params: Params, *args: Any, method: str | Callable[..., Any] | None = None, **kwargs: Any
    ) -> Any:
        with (
            _exact(self.compute.dtype),
            nullcontext() if self.adapter_scale is None else adapted(self.adapter_scale),
            nullcontext() if self.quantization is None else quantized(self.quantization),
        ):
            module = modules(self.cfg, self.compute)[part]
            return module.apply({"params": params[part]}, *args, method=method, **kwargs)


def _exact(dtype: str) -> AbstractContextManager[Any]:
    """Products of float32 in all its bits, of which accelerators take fewer unless they are told to."""
    chosen = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
    return jax.default_matmul_precision("highest") if dtype == "float32" and not chosen else nullcontext()


def modules(cfg: InternVLUConfig, compute: Compute = Compute()) -> dict[str, nn.Module]:
    """The three parts by name; `apply` of each with `{"params": params[name]}`."""
    return {
        "vlm": VLM(cfg.vlm, compute),
        "head": slots.module(cfg.generation_decoder, compute),
        "vae": slots.module(cfg.vae, compute),
    }


def init_params(cfg: InternVLUConfig, key: jax.Array) -> Params:
    """Random float32 parameters of all parts."""
    parts = modules(cfg)
    keys = jax.random.split(key, len(parts))
    return {
        name: module.init(part_key, method="build")["params"]
        for part_key, (name, module) in zip(keys, parts.items(), strict=True)
    }


def param_shapes(cfg: InternVLUConfig) -> Params:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`, without allocating anything."""
    return jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))
