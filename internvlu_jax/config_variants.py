"""Members of the slots that studies bring: the released code does not know them. Import them from `config`.

Those that tie the picture that is understood to the picture that is generated hold a frozen copy of the other side's
encoder among their own parameters (`models.copies`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from internvlu_jax.config_parts import VAEConfig, VisionConfig, broken, positive, spans_a_token


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
            positive("dim_mult", self.dim_mult),
            positive("latents_std", self.latents_std),
            (self.noise >= 0, f"noise is {self.noise}; expected a deviation"),
        )  # fmt: skip
        return [*rules, *(f"semantic codec: {problem}" for problem in self.encoder.problems())]


@dataclass(frozen=True)
class QuantizedCodec(VAEConfig):
    """The released autoencoder with a few values for each channel of a latent (FSQ, arXiv 2309.15505; `models.codes`).

    levels: values of the channels that make one code, in their order; a latent has z_dim / len(levels) codes.
    latents_mean, latents_std: 0 and 1, as the values are from -1 to 1 already.
    """

    model_type: ClassVar[str] = "quantized_vae"

    levels: tuple[int, ...] = (5, 5, 5, 5)
    latents_mean: tuple[float, ...] = (0.0,) * 16
    latents_std: tuple[float, ...] = (1.0,) * 16

    @property
    def codes(self) -> int:
        """Of a latent."""
        return self.z_dim // len(self.levels)

    @property
    def entries(self) -> int:
        """Codes that there are."""
        return prod(self.levels)

    def problems(self) -> list[str]:
        """What is wrong inside this part, one sentence each."""
        count, plain = len(self.levels), set(self.latents_mean) <= {0.0} and set(self.latents_std) <= {1.0}
        rules = broken(
            (bool(count) and self.z_dim % count == 0, f"z_dim {self.z_dim} must be a multiple of the {count} levels"),
            (all(n >= 2 for n in self.levels), f"levels are {self.levels}; expected at least 2 of each channel"),
            (plain, "latents_mean and latents_std of a quantized VAE must be 0 and 1"),
        )
        return [*super().problems(), *rules]


@dataclass(frozen=True)
class CodeVision:
    """In the place of a vision encoder: the embedded codes of the latents of a tile, a latent a patch.

    hidden_size: width of an embedded code; the codes of one latent are summed.
    codec: of the frozen encoder within.
    """

    model_type: ClassVar[str] = "code_vision"
    attention_widths: ClassVar[tuple[int, ...]] = ()

    hidden_size: int = 64
    image_size: int = 448
    codec: QuantizedCodec = QuantizedCodec()

    @property
    def patch_size(self) -> int:
        """Pixels a side of a latent."""
        return self.codec.downsample_factor

    def problems(self) -> list[str]:
        """What is wrong inside this part, one sentence each."""
        return [f"vision codec: {problem}" for problem in self.codec.problems()]


@dataclass(frozen=True)
class CodeHead:
    """In the place of a generation head: an output of the language model, which generates pictures itself.

    patch_size: latents a side that one token of the language model stands for.
    input_hidden_size: of the language model.
    num_layers, intermediate_size: of the residual MLPs. gen_image_height, gen_image_width: of what it draws.
    """

    model_type: ClassVar[str] = "code_head"
    attention_widths: ClassVar[tuple[int, ...]] = ()
    vlm_select_layer: ClassVar[tuple[int, ...]] = (-1,)
    # What is asked of a head as to its own tokens and noise, of which it has none.
    sources: ClassVar[str] = "context"
    positions: ClassVar[str] = "sequence"
    position_scales: ClassVar[tuple[float, float]] = (1.0, 1.0)
    flow_shift: ClassVar[float] = 1.0

    codec: QuantizedCodec = QuantizedCodec()
    patch_size: int = 2
    input_hidden_size: int = 2048
    num_layers: int = 1
    intermediate_size: int = 2048
    gen_image_height: int = 512
    gen_image_width: int = 512

    @property
    def codes(self) -> int:
        """Of a token."""
        return self.patch_size**2 * self.codec.codes

    @property
    def latent_channels(self) -> int:
        return self.codec.z_dim

    @property
    def vae_downsample_factor(self) -> int:
        return self.codec.downsample_factor

    @property
    def latent_multiple(self) -> int:
        """Latents that a token spans, a side."""
        return self.patch_size

    @property
    def pixel_multiple(self) -> int:
        """Pixels that a token spans, a side."""
        return self.patch_size * self.codec.downsample_factor

    def context_length(self, length: int) -> int:
        """All tokens of a context are seen."""
        return length

    def latent_grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the latents of so many pixels, cut to whole tokens."""
        rows, columns = (side // self.pixel_multiple * self.patch_size for side in (height, width))
        return rows, columns

    def problems(self) -> list[str]:
        """What is wrong inside this part, one sentence each."""
        return [*broken(spans_a_token(self)), *(f"code head: {problem}" for problem in self.codec.problems())]
