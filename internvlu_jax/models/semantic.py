"""An autoencoder whose latents are what a frozen vision transformer says of a picture.

Representation autoencoders (RAE, arXiv 2510.11690): the encoder is never trained to reconstruct; a decoder learns to
draw the picture from its features. What the head generates is never quite a feature, so the decoder is trained on
features with noise. Unlike there the noise is added after the normalisation, where its deviation means the same for
every encoder and channel, and the decoder is convolutional, as that of the VAE to which it is compared.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from internvlu_jax.config import Compute, SemanticCodec
from internvlu_jax.models.vae import PIXEL_CHANNELS, Decoder
from internvlu_jax.models.vit import VisionTransformer
from internvlu_jax.ops.patches import pixel_shuffle


class SemanticAutoencoder(nn.Module):
    """A member of the slot `vae` (`models.slots`). No gradient reaches its encoder."""

    cfg: SemanticCodec
    compute: Compute = Compute()

    def setup(self) -> None:
        self.encoder = VisionTransformer(self.cfg.encoder, self.compute)
        self.decoder = Decoder(self.cfg, self.compute)

    def features(self, pixels: Float[Array, "b Y X 3"]) -> Float[Array, "b y x c"]:
        """What the last block of the encoder gives, gathered, float32, for pixels as the encoder reads them.

        Raises ValueError if a side is not a multiple of `downsample_factor`.
        """
        factor = self.cfg.downsample_factor
        if pixels.shape[1] % factor or pixels.shape[2] % factor:
            raise ValueError(f"picture is {pixels.shape[1]}x{pixels.shape[2]}; expected multiples of {factor}")
        features = jax.lax.stop_gradient(self.encoder(pixels))
        grid = rearrange(features, "b (y x) c -> b y x c", y=pixels.shape[1] // self.cfg.encoder.patch_size)
        return pixel_shuffle(grid, self.cfg.shuffle).astype(jnp.float32)

    def encode_latents(self, pixels: Float[Array, "b Y X 3"]) -> Float[Array, "b y x c"]:
        """Features normalised per channel, float32."""
        return (self.features(pixels) - jnp.asarray(self.cfg.latents_mean)) / jnp.asarray(self.cfg.latents_std)

    def decode_unclipped(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b Y X 3"]:
        """Pixels as the decoder gives them, float32: what training compares, for clipped values have no gradient."""
        return self.decoder(latents.astype(jnp.float32)).astype(jnp.float32)

    def decode_latents(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b Y X 3"]:
        """Pixels in [-1, 1], float32, of normalised latents."""
        return jnp.clip(self.decode_unclipped(latents), -1.0, 1.0)

    def build(self) -> None:
        """Touches every parameter once; used to initialise."""
        side = self.cfg.downsample_factor
        self.decode_latents(self.encode_latents(jnp.zeros((1, side, side, PIXEL_CHANNELS))))


def noised(cfg: SemanticCodec, latents: Float[Array, "b y x c"], key: PRNGKeyArray) -> Float[Array, "b y x c"]:
    """Latents as the decoder is trained on them: each picture with Gaussian noise of a deviation from U(0, cfg.noise).

    Source: `noising` of the code released with arXiv 2510.11690.
    """
    deviation_key, noise_key = jax.random.split(key)
    deviation = jax.random.uniform(deviation_key, (len(latents), 1, 1, 1), maxval=cfg.noise)
    return latents + deviation * jax.random.normal(noise_key, latents.shape)
