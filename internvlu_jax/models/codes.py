"""Pictures as codes, for a language model that reads and generates them.

The codes are a finite scalar quantisation (FSQ) of a VAE's latents. Every channel of a latent is bounded and rounded to
one of a few levels; a code is the combination of the levels of some channels. There is no codebook to learn, and none
that could collapse. Rounding passes gradients on as they are (straight through). Source: Mentzer et al. 2023, arXiv
2309.15505, section 3.1 and the listing of its appendix.

A token of the language model stands for several latents, and so for several codes. On the way in they are embedded, put
side by side and projected. On the way out they are predicted one after another, each from the state of the language
model and the codes of the token before it. Side by side they would be independent of one another given the state, and
the parts of one edge would not fit together. RQ-Transformer (arXiv 2203.01941) has a small transformer for this; here
MLPs read the sum of the codes before, embedded by tables of their own, which needs no cache.

Axes: b rows, y x rows and columns of latents, c channels, g codes of a latent, t tokens, d codes of a token, n entries.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from internvlu_jax.config import CodeHead, CodeVision, Compute, QuantizedCodec
from internvlu_jax.models.layers import MLP, RMSNorm
from internvlu_jax.models.vae import VAE

_EPSILON = 1e-3  # of the source: what is bounded stays short of the ends of the outermost levels


def quantized(z: Float[Array, "*b c"], levels: tuple[int, ...]) -> Float[Array, "*b c"]:
    """Each channel at the nearest of its levels, from -1 to 1; the gradient is that of the bounded value.

    levels: of each channel. An even number of them has one more below 0 than above.
    """
    count = np.asarray(levels)
    reach = (count - 1) * (1 - _EPSILON) / 2
    offset = np.where(count % 2 == 1, 0.0, 0.5)
    bounded = jnp.tanh(z + np.tan(offset / reach)) * reach - offset
    rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
    return (rounded / (count // 2)).astype(z.dtype)


def codes_of(values: Float[Array, "*b c"], levels: tuple[int, ...]) -> Int[Array, "*b g"]:
    """Quantized values to codes, one for each len(levels) channels; the first channel of a code varies fastest."""
    count = np.asarray(levels)
    digits = jnp.round(_grouped(values, len(levels)) * (count // 2)).astype(jnp.int32) + count // 2
    return jnp.sum(digits * _places(levels), axis=-1, dtype=jnp.int32)


def values_of(codes: Int[Array, "*b g"], levels: tuple[int, ...]) -> Float[Array, "*b c"]:
    """The inverse of `codes_of`."""
    count = np.asarray(levels)
    digits = codes[..., None] // _places(levels) % count
    return rearrange((digits - count // 2) / (count // 2), "... g n -> ... (g n)").astype(jnp.float32)


def _grouped(values: Float[Array, "*b c"], count: int) -> Float[Array, "*b g n"]:
    return rearrange(values, "... (g n) -> ... g n", n=count)


def _places(levels: tuple[int, ...]) -> Int[np.ndarray, "n"]:
    return np.cumprod([1, *levels[:-1]]).astype(np.int32)


class QuantizedVAE(VAE):
    """A member of the slot `vae` (`models.slots`), with the parameters of a `VAE`; latents are quantized values."""

    cfg: QuantizedCodec

    def encode_latents(self, pixels: Float[Array, "b Y X 3"]) -> Float[Array, "b y x c"]:
        """Quantized latents of the mode of `encode`, float32, from -1 to 1."""
        return quantized(self.encode(pixels)[0], self.cfg.levels * self.cfg.codes)

    def decode_latents(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b Y X 3"]:
        """Pixels in [-1, 1], float32, of quantized latents."""
        return self.decode(latents.astype(jnp.float32))

    def codes(self, pixels: Float[Array, "b Y X 3"]) -> Int[Array, "b y x g"]:
        return codes_of(self.encode_latents(pixels), self.cfg.levels)


class _Tables(nn.Module):
    """Embeddings of several codes, each from a table of its own."""

    count: int
    entries: int
    width: int
    compute: Compute

    @nn.compact
    def __call__(self, codes: Int[Array, "*b g"]) -> Float[Array, "*b g e"]:
        table = nn.Embed(self.count * self.entries, self.width, name="table")
        return table(codes + self.entries * jnp.arange(self.count)).astype(self.compute.dtype)


class CodeEmbedder(nn.Module):
    """A member of the slot `vision_config` (`models.slots`).

    Its parameters are the embeddings and, under `codec`, the encoder of a quantized VAE without its decoder.
    """

    cfg: CodeVision
    compute: Compute = Compute()

    def setup(self) -> None:
        self.codec = QuantizedVAE(self.cfg.codec, self.compute)
        self.embedder = _Tables(self.cfg.codec.codes, self.cfg.codec.entries, self.cfg.hidden_size, self.compute)

    def embed(self, codes: Int[Array, "b y x g"]) -> Float[Array, "b y x e"]:
        """The sum of the embedded codes of each latent."""
        return jnp.sum(self.embedder(codes), axis=-2)

    def __call__(self, pixels: Float[Array, "b Y X 3"]) -> Float[Array, "b s e"]:
        return rearrange(self.embed(self.codec.codes(pixels)), "b y x e -> b (y x) e")


class CodePredictor(nn.Module):
    """A member of the slot `generation_decoder` for models without a head (`models.slots`)."""

    cfg: CodeHead
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, entries, width = self.cfg, self.cfg.codec.entries, self.cfg.input_hidden_size
        small = nn.initializers.normal(0.02)
        self.embedder = _Tables(cfg.codes, entries, width, self.compute)
        self.places = self.param("places", small, (cfg.codes, width))
        self.norms = [RMSNorm() for _ in range(cfg.num_layers + 1)]
        self.mlps = [MLP(cfg.intermediate_size, width, nn.silu, self.compute) for _ in range(cfg.num_layers)]
        self.out_kernel = self.param("out_kernel", small, (cfg.codes, width, entries))

    def scores(self, states: Float[Array, "b t e"], codes: Int[Array, "b t d"]) -> Float[Array, "b t d n"]:
        """Scores of every code of a token, float32, from the state before the token and the codes before it there.

        A code changes the scores of those that come after it in its token alone.
        """
        dtype = jnp.dtype(self.compute.dtype)
        said = jnp.pad(self.embedder(codes), ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
        x = states.astype(dtype)[:, :, None] + self.places.astype(dtype) + jnp.cumsum(said, axis=2)
        return jnp.einsum(
            "btdw,dwn->btdn", self._read(x), self.out_kernel.astype(dtype), preferred_element_type=jnp.float32
        )

    def scores_at(
        self, state: Float[Array, "b e"], codes: Int[Array, "b d"], place: Int[Array, ""]
    ) -> Float[Array, "b n"]:
        """`scores` of one token's code number `place`, from 0, computed for it alone.

        codes: of the token; those from `place` on may be anything.
        """
        dtype = jnp.dtype(self.compute.dtype)
        before = jnp.arange(self.cfg.codes) < place
        said = jnp.sum(jnp.where(before[:, None], self.embedder(codes), 0), axis=1)
        x = self._read(state.astype(dtype) + self.places.astype(dtype)[place] + said)
        return jnp.dot(x, self.out_kernel.astype(dtype)[place], preferred_element_type=jnp.float32)

    def _read(self, x: Float[Array, "*b e"]) -> Float[Array, "*b e"]:
        for norm, mlp in zip(self.norms, self.mlps, strict=False):
            x = x + mlp(norm(x))
        return self.norms[-1](x)

    def build(self) -> None:
        """Touches every parameter once; used to initialise."""
        state = jnp.zeros((1, 1, self.cfg.input_hidden_size))
        self.scores(state, jnp.zeros((1, 1, self.cfg.codes), jnp.int32))
