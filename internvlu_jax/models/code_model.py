"""A model whose language model reads and generates pictures as codes (`models.codes`); it has no generation head.

picture --codes--> embedded, side by side --projector--> visual tokens --> language model --> state before a token
                              ^                                                                     |
                              +------------------ codes of the token, one after another <-----------+
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, UInt8

from internvlu_jax.models.codes import codes_of, values_of
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.models.vlm import VLM


@dataclass(frozen=True)
class CodeModel(InternVLU):
    """An `InternVLU` with a `CodeVision`, a `CodeHead` and a `QuantizedCodec` in its slots, all of one codec."""

    def codes(self, params: Params, pixels: UInt8[Array, "b Y X 3"]) -> Int[Array, "b y x g"]:
        """Of pictures, those of each latent."""
        return codes_of(self.encode(params, pixels), self.cfg.vae.levels)

    def picture(self, params: Params, codes: Int[Array, "b y x g"]) -> UInt8[Array, "b Y X 3"]:
        """The pictures that codes stand for."""
        return self.decode(params, values_of(codes, self.cfg.vae.levels))

    def visual_tokens(
        self, params: Params, tiles: UInt8[Array, "k p q 3"] | Int[Array, "k y x g"]
    ) -> Float[Array, "k s d"]:
        """What the language model sees of pictures, or of their codes."""
        if tiles.dtype == jnp.uint8:
            return super().visual_tokens(params, tiles)
        return self._apply("vlm", params, tiles, method=_of_codes)

    def code_scores(
        self, params: Params, states: Float[Array, "b t e"], codes: Int[Array, "b t d"]
    ) -> Float[Array, "b t d n"]:
        """Scores of the codes of tokens, float32, each from the state before its token and the codes before it there.

        states: `Qwen3Output.captured`, where the language model has read all before the token.
        """
        return self._apply("head", params, states, codes, method="scores")

    def next_code_scores(
        self, params: Params, state: Float[Array, "b e"], codes: Int[Array, "b d"], place: Int[Array, ""]
    ) -> Float[Array, "b n"]:
        """`code_scores` of code number `place` of one token, of which codes before that are there."""
        return self._apply("head", params, state, codes, place, method="scores_at")

    def by_token(self, codes: Int[Array, "b y x g"]) -> Int[Array, "b t d"]:
        """Codes of latents as those of tokens, in the order of `visual_tokens`."""
        side = self.cfg.generation_decoder.latent_multiple
        return rearrange(codes, "b (y p) (x q) g -> b (y x) (p q g)", p=side, q=side)

    def by_latent(self, codes: Int[Array, "b t d"], rows: int) -> Int[Array, "b y x g"]:
        """The inverse of `by_token`. rows: of tokens."""
        side = self.cfg.generation_decoder.latent_multiple
        return rearrange(codes, "b (y x) (p q g) -> b (y p) (x q) g", y=rows, p=side, q=side)


def _of_codes(vlm: VLM, codes: Int[Array, "k y x g"]) -> Float[Array, "k s d"]:
    return vlm.gathered(vlm.vit.embed(codes))
