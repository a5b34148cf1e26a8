"""The released generation head: context projector, learned padding token and gated MMDiT.

What stays the same over all steps of the sampler is worked out once, as a `Condition`; a step is then
`velocity(latents, timestep, condition)`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from internvlu_jax.config import Compute, HeadConfig
from internvlu_jax.models.layers import linear_activation_linear
from internvlu_jax.models.mmdit import MMDiT
from internvlu_jax.ops.msrope import msrope_table
from internvlu_jax.ops.rope import Table


class Condition(NamedTuple):
    """What a picture is drawn from, as the head reads it at every step; all arrays lead with the batch b.

    context: [b, t, d], tokens of the text stream, padded on the right. lengths: int [b], real ones of each row.
    rope: (cos, sin), each float32 [b, n, h/2], of all tokens: noisy latents, source latents, context.
    sources: float32 [b, y, x, c] each, normalised latents of source pictures; every row has all of them.
    """

    context: Array
    lengths: Array
    rope: Table
    sources: tuple[Array, ...] = ()


class ContextProjector(nn.Module):
    """`decoder_projector` of type mlp2x_gelu, which despite its name is Linear, SiLU, Linear with a 3x hidden width."""

    width: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b t e"]) -> Float[Array, "b t f"]:
        return linear_activation_linear(x, 3 * self.width, self.width, nn.silu, self.compute)


class GenerationHead(nn.Module):
    """A member of the slot `generation_decoder` (`models.slots`).

    Contexts are padded on the right and padding never takes part in attention, so the padding token has no effect on
    the output; it is kept because the released checkpoint has it.
    """

    cfg: HeadConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        self.padding_token = self.param("padding_token", nn.initializers.zeros, (self.cfg.input_hidden_size,))
        if self.cfg.decoder_projector_type == "mlp2x_gelu":
            self.projector = ContextProjector(self.cfg.output_hidden_size, self.compute)
        self.mmdit = MMDiT(self.cfg.decoder_config, self.compute)

    def condition(
        self,
        context: Float[Array, "b t e"],
        lengths: Int[Array, "b"],
        positions: Float[Array, "b n 3"],
        sources: tuple[Float[Array, "b _ _ c"], ...] = (),
    ) -> Condition:
        """What does not depend on time: hidden states of the language model as tokens of the text stream, and tables.

        positions: of noisy latents, sources and context in this order (`processing.layout`).
        """
        if self.cfg.decoder_projector_type == "mlp2x_gelu":
            context = self.projector(context)
        rope = msrope_table(positions, self.cfg.decoder_config.axes_dims_rope)
        return Condition(self.mmdit.embed_context(context), lengths, rope, sources)

    def velocity(
        self, latents: Float[Array, "b y x c"], timestep: Float[Array, "b"], condition: Condition
    ) -> Float[Array, "b y x c"]:
        """Velocity `noise - clean` of noisy latents, float32; timestep in [0, 1000]."""
        return self.mmdit(latents, timestep, condition.context, condition.lengths, condition.rope, condition.sources)

    def build(self) -> None:
        """Touches every parameter once; used to initialise."""
        dit = self.cfg.decoder_config
        context = jnp.zeros((1, 1, self.cfg.input_hidden_size))
        condition = self.condition(context, jnp.ones((1,), jnp.int32), jnp.zeros((1, 2, 3)))
        self.velocity(jnp.zeros((1, dit.patch_size, dit.patch_size, dit.out_channels)), jnp.zeros((1,)), condition)
