"""InternViT, the vision encoder, and the projector to the width of the language model.

Axes: b tiles, y x c picture, s tokens, i patches, d model width, n heads, h head width.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from internvlu_jax.config import Compute, VisionConfig
from internvlu_jax.models.layers import (
    MLP,
    LayerNorm,
    exact_gelu,
    linear,
    linear_activation_linear,
    merge_heads,
    rows_first,
    stacked,
)
from internvlu_jax.ops.attention import attention
from internvlu_jax.ops.patches import interpolate_positions, patchify


class SelfAttention(nn.Module):
    """Full attention within a tile, with one projection for queries, keys and values."""

    cfg: VisionConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        cfg = self.cfg
        heads = (3, cfg.num_attention_heads, cfg.head_dim)
        qkv = linear(heads, self.compute, bias=cfg.qkv_bias, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        out = attention(q, k, v, implementation=self.compute.attention)
        return merge_heads(cfg.hidden_size, self.compute, name="out")(out)


class Block(nn.Module):
    """x += ls1 * attention(norm1(x)); x += ls2 * mlp(norm2(x)); the carry of the scan over layers."""

    cfg: VisionConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> tuple[Float[Array, "b s d"], None]:
        cfg = self.cfg
        scale1, scale2 = (self.param(name, nn.initializers.ones, (cfg.hidden_size,)) for name in ("ls1", "ls2"))
        out = SelfAttention(cfg, self.compute, name="attn")(LayerNorm(cfg.layer_norm_eps, name="norm1")(x))
        x = x + scale1.astype(x.dtype) * out
        mlp = MLP(cfg.intermediate_size, cfg.hidden_size, exact_gelu, self.compute, name="mlp")
        x = x + scale2.astype(x.dtype) * mlp(LayerNorm(cfg.layer_norm_eps, name="norm2")(x))
        return rows_first(x), None


class VisionTransformer(nn.Module):
    """InternViT: patches, class token, learned positions, blocks; there is no norm at the end."""

    cfg: VisionConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg = self.cfg
        table = (1 + (cfg.image_size // cfg.patch_size) ** 2, cfg.hidden_size)
        self.patch_embed = linear(cfg.hidden_size, self.compute, name="patch_embed")
        self.class_token = self.param("class_token", nn.initializers.normal(0.02), (cfg.hidden_size,))
        self.position_embedding = self.param("position_embedding", nn.initializers.normal(0.02), table)
        self.layers = stacked(Block, cfg.num_hidden_layers, self.compute)(cfg, self.compute, name="layers")

    def patches(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b i e"]:
        """What is embedded of each patch, row by row."""
        return patchify(pixels, self.cfg.patch_size)

    def embed(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b s d"]:
        """The tokens that enter the first block, the class token first."""
        grid = (pixels.shape[1] // self.cfg.patch_size, pixels.shape[2] // self.cfg.patch_size)
        x = self.patch_embed(self.patches(pixels))
        table = self.position_embedding
        positions = interpolate_positions(table[1:], grid).astype(x.dtype)
        first = jnp.broadcast_to((self.class_token + table[0]).astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        return jnp.concatenate([first, x + positions], axis=1)

    def __call__(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b i d"]:
        """Normalised pixels of tiles -> what the last block gives for every patch, row by row.

        The class token is dropped. A tile of another size than `cfg.image_size` gets interpolated positions. Raises
        ValueError if a side is not a multiple of the patch size.
        """
        x, _ = self.layers(rows_first(self.embed(pixels)))
        return x[:, 1:]


class Projector(nn.Module):
    """`mlp1`: gathered patches to visual tokens. LayerNorm, linear, exact GELU, linear."""

    features: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b s e"]) -> Float[Array, "b s d"]:
        x = LayerNorm(1e-5, name="norm")(x.astype(self.compute.dtype))
        return linear_activation_linear(x, self.features, self.features, exact_gelu, self.compute)
