"""The three places of the model that studies exchange, and what stands in each: one table a slot, by config type.

    slot                 released               a module has, for (cfg, compute)
    vlm.vision_config    VisionTransformer      __call__(pixels [k, p, q, 3]) -> features [k, i, d] of the patches, row
                                                by row, d = cfg.hidden_size; the picture is cfg.image_size a side and a
                                                patch cfg.patch_size
    vae                  VAE                    encode_latents(pixels [b, Y, X, 3]) -> [b, y, x, c], normalised;
                                                decode_latents([b, y, x, c]) -> pixels from -1 to 1
    generation_decoder   GenerationHead         condition(context, lengths, positions, sources) -> any tree of arrays
                                                that lead with b; velocity(latents, timestep [b], condition)

and `build()`, which touches every parameter once (vision: `__call__` does). `config.SLOTS` has the same types by the
names that they have in files. A study adds its type to both, as it did `LatentVisionTransformer` (patches of latents)
and `SemanticAutoencoder` (latents that are features of a vision transformer).

`CodePredictor` stands in the third slot for models without a head, whose language model generates pictures code after
code: it has `scores` in place of the two methods, and `models.code_model` is what asks for them.
"""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from internvlu_jax.config import (
    CodeHead,
    CodeVision,
    Compute,
    HeadConfig,
    LatentVision,
    QuantizedCodec,
    SemanticCodec,
    VAEConfig,
    VisionConfig,
)
from internvlu_jax.models.codes import CodeEmbedder, CodePredictor, QuantizedVAE
from internvlu_jax.models.head import GenerationHead
from internvlu_jax.models.latent_vision import LatentVisionTransformer
from internvlu_jax.models.semantic import SemanticAutoencoder
from internvlu_jax.models.vae import VAE
from internvlu_jax.models.vit import VisionTransformer

MODULES: dict[type, Any] = {
    VisionConfig: VisionTransformer,
    LatentVision: LatentVisionTransformer,
    VAEConfig: VAE,
    SemanticCodec: SemanticAutoencoder,
    QuantizedCodec: QuantizedVAE,
    CodeVision: CodeEmbedder,
    CodeHead: CodePredictor,
    HeadConfig: GenerationHead,
}


def module(cfg: Any, compute: Compute) -> nn.Module:
    """The module that a slot's config describes."""
    return MODULES[type(cfg)](cfg, compute)
