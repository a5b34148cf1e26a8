"""The released vision encoder on an autoencoder's latents in place of pixels: only what a patch is made of differs."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from internvlu_jax.config import LatentVision
from internvlu_jax.models.vae import VAE
from internvlu_jax.models.vit import VisionTransformer
from internvlu_jax.ops.patches import patchify


class LatentVisionTransformer(VisionTransformer):
    """A member of the slot `vision_config` (`models.slots`).

    Its parameters are those of `VisionTransformer` and, under `codec`, the encoder of a VAE without its decoder. No
    gradient reaches the codec; a run that trains the rest has to freeze it (weight decay and averages would move it).
    """

    cfg: LatentVision

    def setup(self) -> None:
        super().setup()
        self.codec = VAE(self.cfg.codec, self.compute)

    def patches(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b i e"]:
        """The normalised latents of each patch. Raises ValueError if a side is not a multiple of the patch size."""
        latents = jax.lax.stop_gradient(self.codec.encode_latents(pixels))
        return patchify(latents, self.cfg.latent_patch_size)
