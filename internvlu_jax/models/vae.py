"""Qwen-Image autoencoder for single pictures, in 2-D.

The released autoencoder is a video model. On one frame its causal 3-D convolutions see zeros in time, so each equals a
2-D convolution with the last temporal slice of its kernel, and its temporal resampling never runs. Pictures and latents
have channels last; latents are 8 times smaller a side.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from internvlu_jax.config import Compute, SemanticCodec, VAEConfig
from internvlu_jax.ops.attention import attention

PIXEL_CHANNELS = 3
# Attention scores held at once, in entries: the middle of a 1024 x 1024 picture would have 268 million.
_SCORES = 2**25


@dataclass(frozen=True)
class Level:
    """One resolution: res blocks from `widths_in[j]` to `width` channels, then a change of resolution or none."""

    widths_in: tuple[int, ...]
    width: int
    resamples: bool


def encoder_levels(cfg: VAEConfig) -> list[Level]:
    """From full resolution down; downsampling keeps the width."""
    widths = [cfg.base_dim * m for m in (1, *cfg.dim_mult)]
    last = len(cfg.dim_mult) - 1
    return [
        Level((widths[i], *[widths[i + 1]] * (cfg.num_res_blocks - 1)), widths[i + 1], i < last)
        for i in range(last + 1)
    ]


def decoder_levels(cfg: VAEConfig | SemanticCodec) -> list[Level]:
    """From latent resolution up; one res block more than the encoder, and upsampling halves the width."""
    widths = [cfg.base_dim * m for m in reversed(cfg.dim_mult)]
    starts = [widths[0], *[width // 2 for width in widths[:-1]]]
    last = len(widths) - 1
    return [
        Level((start, *[width] * cfg.num_res_blocks), width, i < last)
        for i, (start, width) in enumerate(zip(starts, widths, strict=True))
    ]


class ChannelNorm(nn.Module):
    """x / max(|x|, 1e-12) * sqrt(C) * gamma with the norm over the C channels.

    The result stays float32, so that the SiLU after it is float32 too; the next convolution casts.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        channels = x.shape[-1]
        gamma = self.param("gamma", nn.initializers.ones, (channels,))
        wide = x.astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True))
        return wide * (channels**0.5 / jnp.maximum(length, 1e-12)) * gamma.astype(jnp.float32)


def conv(features: int, size: int, compute: Compute, name: str) -> nn.Conv:
    """A convolution of `size` x `size` that keeps the resolution."""
    return nn.Conv(features, (size, size), padding="SAME", dtype=jnp.dtype(compute.dtype), name=name)


class ResBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3, plus the input (through a 1x1 where the widths differ).

    The sum is float32 whatever the compute dtype: in bfloat16, rounding it once a block doubles the error of a picture.
    """

    width: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x d"]:
        h = conv(self.width, 3, self.compute, "conv1")(nn.silu(ChannelNorm(name="norm1")(x)))
        h = conv(self.width, 3, self.compute, "conv2")(nn.silu(ChannelNorm(name="norm2")(h)))
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, self.compute, "shortcut")(x)
        return x.astype(jnp.float32) + h


class SpatialAttention(nn.Module):
    """One head over all positions, with a residual.

    XLA's attention throughout: the head is as wide as the stream (384), and cuDNN stops at 128.
    """

    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        batch, rows, columns, channels = x.shape
        dtype = jnp.dtype(self.compute.dtype)
        qkv = nn.Dense(3 * channels, dtype=dtype, name="qkv")(ChannelNorm(name="norm")(x))
        q, k, v = jnp.split(qkv, 3, axis=-1)
        k, v = (a.reshape(batch, rows * columns, 1, channels) for a in (k, v))

        def attend(row: Float[Array, "b x c"]) -> Float[Array, "b x c"]:
            return attention(row[:, :, None], k, v, implementation="xla")[:, :, 0]

        rows_at_once = max(1, _SCORES // (batch * columns * rows * columns))
        if rows_at_once >= rows:
            out = attend(q.reshape(batch, rows * columns, channels)).reshape(x.shape)
        else:
            out = jax.lax.map(attend, jnp.moveaxis(q, 1, 0), batch_size=rows_at_once)
            out = jnp.moveaxis(out, 0, 1)
        return x.astype(jnp.float32) + nn.Dense(channels, dtype=dtype, name="out")(out)


class Middle(nn.Module):
    width: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        x = ResBlock(self.width, self.compute, name="res_0")(x)
        x = SpatialAttention(self.compute, name="attn")(x)
        return ResBlock(self.width, self.compute, name="res_1")(x)


class Down(nn.Module):
    """Res blocks, then half the resolution: a zero row below and a zero column on the right, 3x3 with stride 2."""

    level: Level
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b _y _x d"]:
        for j in range(len(self.level.widths_in)):
            x = ResBlock(self.level.width, self.compute, name=f"res_{j}")(x)
        if not self.level.resamples:
            return x
        dtype = jnp.dtype(self.compute.dtype)
        padding = ((0, 1), (0, 1))
        return nn.Conv(self.level.width, (3, 3), 2, padding=padding, dtype=dtype, name="downsample")(x)


# For an output row of parity a: which of the 3 kernel rows meet input row t, of the two that it sees.
_FOLD = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


class Upsample(nn.Module):
    """Twice the resolution (nearest), then a 3x3 to `width` channels.

    Output pixels of one parity see only 2x2 different input pixels, so four 2x2 kernels with summed weights do the same
    at the low resolution: 16 products a pixel in place of 36, and the enlarged input is never made.
    """

    width: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b _y _x d"]:
        _, rows, columns, channels = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, channels, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        dtype = jnp.dtype(self.compute.dtype)
        folded = jnp.einsum(
            "atp,euq,pqio->tuiaeo", _FOLD, _FOLD, kernel.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        )
        folded = rearrange(folded.astype(dtype), "t u i a e o -> t u i (a e o)")
        out = jax.lax.conv_general_dilated(
            x.astype(dtype), folded, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        out = rearrange(out, "b y x (a e o) -> a e b y x o", a=2, e=2)
        by_parity = jnp.stack([out[a, e, :, a : a + rows, e : e + columns] for a in (0, 1) for e in (0, 1)])
        return rearrange(by_parity, "(a e) b y x o -> b (y a) (x e) o", a=2) + bias.astype(dtype)


class Up(nn.Module):
    """Res blocks, then twice the resolution (nearest) and a 3x3 to half the channels."""

    level: Level
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b _y _x d"]:
        for j in range(len(self.level.widths_in)):
            x = ResBlock(self.level.width, self.compute, name=f"res_{j}")(x)
        if not self.level.resamples:
            return x
        return Upsample(self.level.width // 2, self.compute, name="upsample")(x)


class Encoder(nn.Module):
    cfg: VAEConfig
    compute: Compute

    @nn.compact
    def __call__(self, pixels: Float[Array, "b Y X 3"]) -> Float[Array, "b y x c"]:
        patch = self.cfg.patch_size
        patches = rearrange(pixels, "b (y p) (x q) c -> b y x (p q c)", p=patch, q=patch)
        x = conv(self.cfg.base_dim, 3, self.compute, "conv_in")(patches)
        levels = encoder_levels(self.cfg)
        for i, level in enumerate(levels):
            x = Down(level, self.compute, name=f"down_{i}")(x)
        x = Middle(levels[-1].width, self.compute, name="mid")(x)
        return conv(2 * self.cfg.z_dim, 3, self.compute, "conv_out")(nn.silu(ChannelNorm(name="norm_out")(x)))


class Decoder(nn.Module):
    cfg: VAEConfig | SemanticCodec
    compute: Compute

    @nn.compact
    def __call__(self, z: Float[Array, "b y x c"]) -> Float[Array, "b Y X 3"]:
        levels = decoder_levels(self.cfg)
        x = conv(levels[0].widths_in[0], 3, self.compute, "conv_in")(z)
        x = Middle(levels[0].widths_in[0], self.compute, name="mid")(x)
        for i, level in enumerate(levels):
            x = Up(level, self.compute, name=f"up_{i}")(x)
        patch = self.cfg.patch_size
        x = conv(PIXEL_CHANNELS * patch**2, 3, self.compute, "conv_out")(nn.silu(ChannelNorm(name="norm_out")(x)))
        return rearrange(x, "b y x (p q c) -> b (y p) (x q) c", p=patch, q=patch)


class VAE(nn.Module):
    """Pictures <-> latents. `latents` are normalised per channel, as the generation head sees them; `z` are not."""

    cfg: VAEConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        self.encoder = Encoder(self.cfg, self.compute)
        self.decoder = Decoder(self.cfg, self.compute)
        dtype = jnp.dtype(self.compute.dtype)
        self.quant_conv = nn.Conv(2 * self.cfg.z_dim, (1, 1), dtype=dtype)
        self.post_quant_conv = nn.Conv(self.cfg.z_dim, (1, 1), dtype=dtype)

    def encode(self, pixels: Float[Array, "b Y X 3"]) -> tuple[Float[Array, "b y x c"], Float[Array, "b y x c"]]:
        """Mean and log-variance of z, float32, for pixels in [-1, 1] with sides that are multiples of 8.

        Raises:
            ValueError: a side is not a multiple.
        """
        factor = self.cfg.downsample_factor
        if pixels.shape[1] % factor or pixels.shape[2] % factor:
            raise ValueError(f"picture is {pixels.shape[1]}x{pixels.shape[2]}; expected multiples of {factor}")
        moments = self.quant_conv(self.encoder(pixels)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, logvar

    def decode(self, z: Float[Array, "b y x c"]) -> Float[Array, "b Y X 3"]:
        """Pixels in [-1, 1], float32."""
        return jnp.clip(self.decode_unclipped(z), -1.0, 1.0)

    def decode_unclipped(self, z: Float[Array, "b y x c"]) -> Float[Array, "b Y X 3"]:
        """Pixels as the decoder gives them, float32: what training compares, for clipped values have no gradient."""
        return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)

    def encode_latents(self, pixels: Float[Array, "b Y X 3"]) -> Float[Array, "b y x c"]:
        """Normalised latents of the mode of `encode`, float32."""
        mean, _ = self.encode(pixels)
        return (mean - jnp.asarray(self.cfg.latents_mean)) / jnp.asarray(self.cfg.latents_std)

    def decode_latents(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b Y X 3"]:
        """Pixels in [-1, 1], float32, of normalised latents."""
        z = latents.astype(jnp.float32) * jnp.asarray(self.cfg.latents_std) + jnp.asarray(self.cfg.latents_mean)
        return self.decode(z)

    def build(self) -> None:
        """Touches every parameter once; used to initialise."""
        side = self.cfg.downsample_factor
        self.decode_latents(self.encode_latents(jnp.zeros((1, side, side, PIXEL_CHANNELS))))
