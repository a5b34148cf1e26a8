"""Members of the slots that studies bring: the released code does not know them. Import them from `config`.

Both tie the picture that is understood to the picture that is generated, so each holds a frozen copy of the other
side's encoder among its own parameters (`models.copies`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from internvlu_jax.config_parts import VAEConfig, VisionConfig, broken


@dataclass(frozen=True)
class LatentVision(VisionConfig):
    """The released vision encoder on an autoencoder's latents of the tile in place of its pixels.

    image_size and patch_size stay in pixels: a patch is patch_size / codec.downsample_factor latents a side.
    codec: of the frozen encoder within, and the statistics that normalise its latents.
    """

    model_type: ClassVar[str] = "latent_vit"

    patch_size: int = 16
    codec: VAEConfig = VAEConfig()

    @property
    def latent_patch_size(self) -> int:
        """Latents a side of a patch."""
        return self.patch_size // self.codec.downsample_factor

    def problems(self) -> list[str]:
        """What is wrong inside this part, one sentence each."""
        factor = self.codec.downsample_factor
        whole = self.patch_size % factor == 0
        rule = whole, f"vision patch_size {self.patch_size} must be a multiple of the {factor} pixels of a latent"
        return [*super().problems(), *broken(rule), *(f"vision codec: {problem}" for problem in self.codec.problems())]


@dataclass(frozen=True)
class SemanticCodec:
    """An autoencoder whose latents are the features of a frozen vision transformer (RAE, arXiv 2510.11690).

    encoder: the vision transformer; its features after the last block, normalised, are the latents.
    shuffle: features a side that one latent gathers.
    base_dim, patch_size, dim_mult, num_res_blocks: of the convolutional decoder, as in `VAEConfig`.
    latents_mean, latents_std: of each channel of a latent.
    noise: largest deviation of the Gaussian noise on the latents that the decoder is trained on; the released RAE has
        0.8. Nothing else uses it.
    """

    model_type: ClassVar[str] = "semantic_codec"

    encoder: VisionConfig = VisionConfig()
    shuffle: int = 1
    base_dim: int = 96
    patch_size: int = 7
    dim_mult: tuple[int, ...] = (1, 2)
    num_res_blocks: int = 2
    latents_mean: tuple[float, ...] = (0.0,) * 1024
    latents_std: tuple[float, ...] = (1.0,) * 1024
    noise: float = 0.8

    @property
    def z_dim(self) -> int:
        """Channels of a latent."""
        return self.encoder.hidden_size * self.shuffle**2

    @property
    def downsample_factor(self) -> int:
        """Pixels that a latent spans, a side."""
        return self.encoder.patch_size * self.shuffle

    @property
    def attention_widths(self) -> tuple[int, ...]:
        return self.encoder.attention_widths

    def problems(self) -> list[str]:
        """What is wrong inside this part, one sentence each."""
        means, deviations = len(self.latents_mean), len(self.latents_std)
        spanned = self.patch_size * 2 ** (len(self.dim_mult) - 1)
        rules = broken(
            (means == deviations == self.z_dim,
             f"latents_mean and latents_std have {means} and {deviations} entries; they need hidden_size x shuffle^2, "
             f"{self.z_dim}"),
            (spanned == self.downsample_factor,
             f"the decoder makes {spanned} pixels of a latent (patch_size x 2^steps), which spans "
             f"{self.downsample_factor} (the encoder's patch_size x shuffle)"),
            (self.noise >= 0, f"noise is {self.noise}; expected a deviation"),
        )  # fmt: skip
        return [*rules, *(f"semantic codec: {problem}" for problem in self.encoder.problems())]
