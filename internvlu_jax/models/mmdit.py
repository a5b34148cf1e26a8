"""Gated dual-stream diffusion transformer: the generation head's body (InternVL-U, arXiv 2603.09877, section 3).

Tokens of a sample: noisy latents, condition latents of picture 1, 2, ..., context (padded on the right). Latents, noisy
and condition, go through the image stream's weights, the context through the text stream's; all attend to all. With
s1, c1, g1, s2, c2, g2 = Linear(SiLU(time)) of the token's stream and LN a LayerNorm without weights, a block is

    x <- x + g1 * sigmoid(gate) * Out(Attention(RMS(q), RMS(k), v)),    q, gate, k, v from LN(x) (1 + c1) + s1
    x <- x + g2 * MLP(LN(x) (1 + c2) + s2)

Studies leave out the gate, sigmoid(gate), or the norm of the context (`MMDiTConfig.gate`, `context_norm`); then the
parameters of these do not exist.

The head returns the velocity of the noisy latents only, so the last block computes queries, output and MLP for these
alone: there condition and context tokens give keys and values.

Axes: b batch, i image tokens, t context tokens, s all tokens, d width, e context width, n heads, h head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from internvlu_jax.config import Compute, MMDiTConfig
from internvlu_jax.models.layers import MLP, RMSNorm, rows_first, stacked
from internvlu_jax.ops.attention import attention
from internvlu_jax.ops.attention.plain import MASKED
from internvlu_jax.ops.norms import layer_norm
from internvlu_jax.ops.patches import patchify, unpatchify
from internvlu_jax.ops.rope import Table, apply_interleaved
from internvlu_jax.ops.timestep import timestep_sinusoid

_EPS = 1e-6
_MLP_RATIO = 4


class Modulation(NamedTuple):
    """What time does to the tokens of one stream in one block; each [b, 1, d], broadcast over tokens."""

    shift1: Array
    scale1: Array
    gate1: Array
    shift2: Array
    scale2: Array
    gate2: Array


class TokenStream(nn.Module):
    """The weights of a block for one kind of token."""

    cfg: MMDiTConfig
    compute: Compute

    def setup(self) -> None:
        width, heads, head_dim = self.cfg.hidden_size, self.cfg.num_attention_heads, self.cfg.attention_head_dim
        dtype = self.compute.dtype
        self.mod = nn.DenseGeneral((6, width), dtype=dtype)
        self.q = nn.DenseGeneral((heads, 2 * head_dim if self.cfg.gate else head_dim), dtype=dtype)
        self.k = nn.DenseGeneral((heads, head_dim), dtype=dtype)
        self.v = nn.DenseGeneral((heads, head_dim), dtype=dtype)
        self.q_norm = RMSNorm()
        self.k_norm = RMSNorm()
        self.out = nn.DenseGeneral(width, axis=(-2, -1), dtype=dtype)
        self.mlp = MLP(_MLP_RATIO * width, width, nn.gelu, self.compute)

    def modulation(self, time: Float[Array, "b d"]) -> Modulation:
        """`time` is the time embedding after its SiLU."""
        return Modulation(*rearrange(self.mod(time), "b six d -> six b 1 d"))

    def queries(self, x: Float[Array, "b s d"]) -> tuple[Float[Array, "b s n h"], Float[Array, "b s d"] | None]:
        """Normalised queries, and the gate of the attention output before its sigmoid, where there is one."""
        if not self.cfg.gate:
            return self.q_norm(self.q(x)), None
        query, gate = jnp.split(self.q(x), 2, axis=-1)
        return self.q_norm(query), rows_first(rearrange(gate, "b s n h -> b s (n h)"))

    def keys_values(self, x: Float[Array, "b s d"]) -> tuple[Float[Array, "b s n h"], Float[Array, "b s n h"]]:
        return self.k_norm(self.k(x)), self.v(x)

    def update(
        self,
        x: Float[Array, "b s d"],
        attended: Float[Array, "b s n h"],
        gate: Float[Array, "b s d"] | None,
        mod: Modulation,
    ) -> Float[Array, "b s d"]:
        """Both residual updates of the tokens x. The gate acts after the output projection, entry by entry."""
        x = x + (mod.gate1 if gate is None else mod.gate1 * jax.nn.sigmoid(gate)) * self.out(attended)
        return rows_first(x + mod.gate2 * self.mlp(modulate(x, mod.scale2, mod.shift2)))


def modulate(x: Float[Array, "b s d"], scale: Float[Array, "b 1 d"], shift: Float[Array, "b 1 d"]) -> Array:
    """LN(x) (1 + scale) + shift in float32, in the dtype of x."""
    normalised = layer_norm(x.astype(jnp.float32), eps=_EPS)
    return (normalised * (1 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)).astype(x.dtype)


class Block(nn.Module):
    """One block: the same weights whether it is the last one or not."""

    cfg: MMDiTConfig
    compute: Compute

    def setup(self) -> None:
        self.image = TokenStream(self.cfg, self.compute)
        self.text = TokenStream(self.cfg, self.compute)

    def __call__(
        self,
        tokens: tuple[Float[Array, "b i d"], Float[Array, "b t d"]],
        time: Float[Array, "b d"],
        rope: Table,
        key_lengths: Int[Array, "b"],
        noisy: int | None = None,
    ) -> tuple[tuple[Array, Array], None]:
        """(image tokens, context tokens) -> the same, and None because a scan carries the tokens.

        The first `key_lengths` tokens of each row are seen. `noisy` marks the last block: only the first `noisy` image
        tokens are updated and returned.
        """
        image, text = tokens
        image_mod, text_mod = self.image.modulation(time), self.text.modulation(time)
        image_in = modulate(image, image_mod.scale1, image_mod.shift1)
        text_in = modulate(text, text_mod.scale1, text_mod.shift1)
        image_k, image_v = self.image.keys_values(image_in)
        text_k, text_v = self.text.keys_values(text_in)
        k = apply_interleaved(jnp.concatenate([image_k, text_k], axis=1), rope)
        v = jnp.concatenate([image_v, text_v], axis=1)
        if noisy is not None and not self.is_initializing():  # initialisation goes through all weights
            q, gate = self.image.queries(image_in[:, :noisy])
            attended = self._attend(q, k, v, rope, key_lengths)
            return (self.image.update(image[:, :noisy], attended, gate, image_mod), text), None
        image_q, image_gate = self.image.queries(image_in)
        text_q, text_gate = self.text.queries(text_in)
        attended = self._attend(jnp.concatenate([image_q, text_q], axis=1), k, v, rope, key_lengths)
        split = image.shape[1]
        image = self.image.update(image, attended[:, :split], image_gate, image_mod)
        text = self.text.update(text, attended[:, split:], text_gate, text_mod)
        return (image, text), None

    def _attend(self, q: Array, k: Array, v: Array, rope: Table, key_lengths: Array) -> Float[Array, "b s n h"]:
        """Attention of the queries, which are the first tokens of the sequence; k is turned already."""
        cos, sin = (part[:, : q.shape[1]] for part in rope)
        q = apply_interleaved(q, (cos, sin))
        self.sow("intermediates", "queries", q)  # for `context_shares`; nothing where nobody asks for it
        self.sow("intermediates", "keys", k)
        return attention(q, k, v, key_lengths=key_lengths, implementation=self.compute.attention)


def context_shares(
    sown: dict[str, Any], noisy: int, pictures: int, context_lengths: Int[Array, "b"]
) -> Float[Array, "b l n i t"]:
    """What share of its attention each noisy token gives to each token of the context, by layer l; float32.

    Args:
        sown: "intermediates" of an `MMDiT` call. noisy: tokens of the latents; pictures: of these and the conditions.
        context_lengths: as in the call; padding gets 0.
    """
    last = sown["last_block"]
    queries, keys = (last[name][0][None] for name in ("queries", "keys"))
    if "blocks" in sown:  # which have queries of all tokens
        queries = jnp.concatenate([sown["blocks"]["queries"][0][:, :, :noisy], queries])
        keys = jnp.concatenate([sown["blocks"]["keys"][0], keys])
    scores = jnp.einsum("lbinh,lbsnh->blnis", queries, keys, preferred_element_type=jnp.float32)
    seen = jnp.arange(keys.shape[2]) < (pictures + context_lengths)[:, None]
    scores = jnp.where(seen[:, None, None, None], scores * queries.shape[-1] ** -0.5, MASKED)
    return jax.nn.softmax(scores, axis=-1)[..., pictures:]


class MMDiT(nn.Module):
    """The transformer over noisy latents, condition latents and context (module docstring)."""

    cfg: MMDiTConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        width, dtype = self.cfg.hidden_size, self.compute.dtype
        self.time_embed = MLP(width, width, nn.silu, self.compute)
        if self.cfg.context_norm:
            self.context_norm = RMSNorm()
        self.context_in = nn.Dense(width, dtype=dtype)
        self.latent_in = nn.Dense(width, dtype=dtype)
        if self.cfg.num_layers > 1:
            blocks = stacked(Block, self.cfg.num_layers - 1, self.compute, in_axes=nn.broadcast)
            self.blocks = blocks(self.cfg, self.compute)
        # Not rematerialised: its backward pass comes first, so keeping what it computed costs no memory at the peak.
        self.last_block = Block(self.cfg, self.compute)
        self.norm_out = nn.DenseGeneral((2, width), dtype=dtype)
        self.proj_out = nn.Dense(self.cfg.out_channels * self.cfg.patch_size**2, dtype=dtype)

    def embed_context(self, context: Float[Array, "b t e"]) -> Float[Array, "b t d"]:
        """Context -> tokens of the text stream. Does not depend on time, so it is done once per picture."""
        return self.context_in(self.context_norm(context) if self.cfg.context_norm else context)

    def __call__(
        self,
        latents: Float[Array, "b y x c"],
        timestep: Float[Array, "b"],
        context: Float[Array, "b t d"],
        context_lengths: Int[Array, "b"],
        rope: Table,
        conditions: tuple[Float[Array, "b _ _ c"], ...] = (),
    ) -> Float[Array, "b y x c"]:
        """Velocity `noise - clean` of the noisy latents, float32.

        latents: at noise level `timestep / 1000`, with timestep in [0, 1000].
        context: from `embed_context`, right padded; `context_lengths` tokens of each row are real.
        rope: (cos, sin), each [b or 1, i + t, h/2], of all tokens in order (`ops.msrope`).
        conditions: clean latents of condition pictures, of any sizes; every row has all of them.

        Raises ValueError if the sides do not divide into patches, or rope has not one entry per token.
        """
        pictures = [patchify(picture, self.cfg.patch_size) for picture in (latents, *conditions)]
        sizes = [picture.shape[1] for picture in pictures]
        tokens = sum(sizes) + context.shape[1]
        if rope[0].shape[1] != tokens:
            raise ValueError(f"rope has {rope[0].shape[1]} positions; latents, conditions and context have {tokens}")
        key_lengths = sum(sizes) + context_lengths
        rounded_to = self.compute.time or self.compute.dtype
        time = nn.silu(self.time_embed(timestep_sinusoid(timestep, rounded_to)))
        image = self.latent_in(jnp.concatenate(pictures, axis=1))
        state = rows_first(image), rows_first(context.astype(self.compute.dtype))
        if self.cfg.num_layers > 1:
            state, _ = self.blocks(state, time, rope, key_lengths)
        (noisy, _), _ = self.last_block(state, time, rope, key_lengths, sizes[0])
        scale, shift = rearrange(self.norm_out(time), "b two d -> two b 1 d")
        patches = self.proj_out(modulate(noisy[:, : sizes[0]], scale, shift)).astype(jnp.float32)
        patch = self.cfg.patch_size
        return unpatchify(patches, (latents.shape[1] // patch, latents.shape[2] // patch), patch)
