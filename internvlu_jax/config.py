"""Configurations of every part, as frozen dataclasses.

Fields carry the names they have in the released JSON files, which `config_files` reads and writes.

Three parts are slots: `vision_config` (what the language model sees), `vae` (the space that is generated) and
`generation_decoder` (what generates). A slot holds one of the types that `SLOTS` lists, chosen in JSON by name; the
released type (`config_parts`) is the default, and the others (`config_variants`) are those of studies. Each such type
has `model_type` (its name in JSON), `problems()` (what is wrong inside it) and `attention_widths` (of its attention
heads), and these facts for its neighbours: a vision encoder `image_size` and `patch_size` in pixels, an autoencoder
`z_dim` and `downsample_factor`, a head `input_hidden_size`, `vlm_select_layer`, `context_length`, `position_scales`,
`latent_channels`, `vae_downsample_factor`, `latent_multiple`, `pixel_multiple`, `latent_grid`, `sources`, `positions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from internvlu_jax.config_parts import (
    Attention,
    CheckpointWarning,
    Compute,
    ConfigError,
    HeadConfig,
    MMDiTConfig,
    Noise,
    Quantization,
    Qwen3Config,
    VAEConfig,
    VisionConfig,
    broken,
)
from internvlu_jax.config_variants import CodeHead, CodeVision, LatentVision, QuantizedCodec, SemanticCodec

__all__ = [
    "SLOTS",
    "Attention",
    "CheckpointWarning",
    "CodeHead",
    "CodeVision",
    "Compute",
    "ConfigError",
    "GenerationImageProcessorConfig",
    "HeadConfig",
    "HeadSlot",
    "ImageProcessorConfig",
    "InternVLUConfig",
    "LatentVision",
    "MMDiTConfig",
    "Noise",
    "ProcessorConfig",
    "Quantization",
    "QuantizedCodec",
    "Qwen3Config",
    "SemanticCodec",
    "SizeConfig",
    "VAEConfig",
    "VAESlot",
    "VLMConfig",
    "VisionConfig",
    "VisionSlot",
]

VisionSlot = VisionConfig | LatentVision
HeadSlot = HeadConfig
# `CodeVision` and `CodeHead` are neither: `models.code_model` alone works with them, and says so.
VAESlot = Any  # members have no class in common, and what trains or converts one kind alone says so itself

# By slot and by name in JSON. The released type stands first: it is what an absent name means.
SLOTS: dict[str, dict[str, type]] = {
    "vision_config": {part.model_type: part for part in (VisionConfig, LatentVision, CodeVision)},
    "vae": {part.model_type: part for part in (VAEConfig, SemanticCodec, QuantizedCodec)},
    "generation_decoder": {part.model_type: part for part in (HeadConfig, CodeHead)},
}


@dataclass(frozen=True)
class VLMConfig:
    """Vision encoder, projector and language model (vlm/config.json)."""

    vision_config: VisionSlot = VisionConfig()
    llm_config: Qwen3Config = Qwen3Config()
    downsample_ratio: float = 0.5

    @property
    def shuffle(self) -> int:
        """Patches a side that one visual token gathers."""
        return round(1 / self.downsample_ratio)

    @property
    def tokens_per_side(self) -> int:
        """Visual tokens along one side of a tile."""
        return self.vision_config.image_size // self.vision_config.patch_size // self.shuffle

    @property
    def tokens_per_tile(self) -> int:
        return self.tokens_per_side**2


@dataclass(frozen=True)
class SizeConfig:
    height: int = 448
    width: int = 448


@dataclass(frozen=True)
class ImageProcessorConfig:
    """Pictures for the vision encoder (`image_processor_kwargs`)."""

    size: SizeConfig = SizeConfig()
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class GenerationImageProcessorConfig:
    """Source pictures for the VAE (`image_gen_processor_kwargs`)."""

    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    min_dynamic_patch: int = 4096
    max_dynamic_patch: int = 16384
    max_length: int | None = 1024
    vae_downsample_factor: int = 8
    gen_down_sample_ratio: float = 0.5

    @property
    def factor(self) -> int:
        """Pixels that sizes are multiples of."""
        return self.vae_downsample_factor * round(1 / self.gen_down_sample_ratio)

    @property
    def min_pixels(self) -> int:
        return self.min_dynamic_patch * self.vae_downsample_factor**2

    @property
    def max_pixels(self) -> int:
        return self.max_dynamic_patch * self.vae_downsample_factor**2


@dataclass(frozen=True)
class ProcessorConfig:
    """Text and pictures to arrays (processor/processor_config.json)."""

    image_seq_length: int = 256
    image_processor_kwargs: ImageProcessorConfig = ImageProcessorConfig()
    image_gen_processor_kwargs: GenerationImageProcessorConfig = GenerationImageProcessorConfig()


@dataclass(frozen=True)
class InternVLUConfig:
    """The whole model."""

    vlm: VLMConfig = VLMConfig()
    generation_decoder: HeadSlot = HeadConfig()
    vae: VAESlot = VAEConfig()
    processor: ProcessorConfig = ProcessorConfig()

    def __post_init__(self) -> None:
        _check_consistent(self)

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """Widths of all attention heads whose implementation `Compute.attention` chooses."""
        vision, head = self.vlm.vision_config, self.generation_decoder
        return (
            *vision.attention_widths,
            self.vlm.llm_config.head_dim,
            *self.vae.attention_widths,
            *head.attention_widths,
        )


def _pixel_scale(pictures: ImageProcessorConfig | GenerationImageProcessorConfig) -> tuple[tuple[float, ...], ...]:
    return pictures.image_mean, pictures.image_std


def _three_channels(pictures: ImageProcessorConfig | GenerationImageProcessorConfig) -> bool:
    return len(pictures.image_mean) == len(pictures.image_std) == 3 and min(pictures.image_std) > 0


def _check_ratios(cfg: InternVLUConfig) -> None:
    """Refuses ratios that nothing can be divided by, before the other rules divide by them."""
    problems = [
        f"{name} is {ratio}; expected 1 over a whole number"
        for name, ratio in (
            ("downsample_ratio", cfg.vlm.downsample_ratio),
            ("gen_down_sample_ratio", cfg.processor.image_gen_processor_kwargs.gen_down_sample_ratio),
        )
        if not 0 < ratio <= 1 or abs(1 / ratio - round(1 / ratio)) > 1e-6
    ]
    if problems:
        raise ConfigError("; ".join(problems))


def _check_consistent(cfg: InternVLUConfig) -> None:
    """Refuses parts that are wrong or do not fit together, naming both sides.

    Raises:
        ConfigError: all that is wrong.
    """
    _check_ratios(cfg)
    vision, llm, head, vae = cfg.vlm.vision_config, cfg.vlm.llm_config, cfg.generation_decoder, cfg.vae
    tiles, sources = cfg.processor.image_processor_kwargs.size, cfg.processor.image_gen_processor_kwargs
    scales: dict[str, ImageProcessorConfig | GenerationImageProcessorConfig]
    scales = {"image_processor_kwargs": cfg.processor.image_processor_kwargs, "image_gen_processor_kwargs": sources}
    bad_scales = [name for name, kwargs in scales.items() if not _three_channels(kwargs)]
    seen, encoded = _pixel_scale(cfg.processor.image_processor_kwargs), _pixel_scale(sources)
    crossed = [part.model_type for part in (vision, vae) if isinstance(part, LatentVision | CodeVision | SemanticCodec)]
    coded = [part for part in (vision, head) if isinstance(part, CodeVision | CodeHead)]
    layers = llm.num_hidden_layers
    bad_layers = [i for i in head.vlm_select_layer if not -layers - 1 <= i <= layers]
    between = broken(
        (vision.image_size % (vision.patch_size * cfg.vlm.shuffle) == 0, "image_size must divide by patch and shuffle"),
        (tiles.height == tiles.width == vision.image_size,
         f"image_processor_kwargs size {tiles.height} x {tiles.width} is not the encoder's image_size "
         f"{vision.image_size}"),
        (cfg.processor.image_seq_length == cfg.vlm.tokens_per_tile,
         f"image_seq_length {cfg.processor.image_seq_length} is not the encoder's {cfg.vlm.tokens_per_tile} tokens"),
        (head.input_hidden_size == llm.hidden_size * len(head.vlm_select_layer),
         f"input_hidden_size {head.input_hidden_size} is not hidden_size {llm.hidden_size} x "
         f"{len(head.vlm_select_layer)} selected layers"),
        (not bad_layers, f"vlm_select_layer {bad_layers} is outside the {layers} layers"),
        (head.latent_channels == vae.z_dim,
         f"the head's out_channels {head.latent_channels} is not the VAE's z_dim {vae.z_dim}"),
        (head.vae_downsample_factor == vae.downsample_factor,
         f"the head's vae_downsample_factor {head.vae_downsample_factor} is not the VAE's {vae.downsample_factor}"),
        (sources.vae_downsample_factor == vae.downsample_factor,
         f"the processor's vae_downsample_factor {sources.vae_downsample_factor} is not the VAE's "
         f"{vae.downsample_factor}"),
        (sources.factor % head.pixel_multiple == 0,
         f"sources come in multiples of {sources.factor} pixels (vae_downsample_factor / gen_down_sample_ratio), and a "
         f"token of the head spans {head.pixel_multiple}"),
        (sources.min_dynamic_patch <= sources.max_dynamic_patch,
         f"min_dynamic_patch {sources.min_dynamic_patch} is over max_dynamic_patch {sources.max_dynamic_patch}"),
        (sources.max_length is None or sources.max_length >= sources.factor,
         f"max_length is {sources.max_length}; sources come in multiples of {sources.factor} pixels"),
        (not bad_scales,
         f"{' and '.join(bad_scales)}: image_mean and image_std need three numbers each, and image_std numbers over 0"),
        (not crossed or seen == encoded,
         f"{' and '.join(crossed)} holds the other side's encoder, so both sides must scale pixels alike: "
         f"image_processor_kwargs has image_mean and image_std {seen}, image_gen_processor_kwargs {encoded}"),
        (all(part.codec == vae for part in coded),
         f"{' and '.join(part.model_type for part in coded)} have a codec that is not the vae; expected one for all"),
    )  # fmt: skip
    problems = [*vision.problems(), *llm.problems(), *head.problems(), *vae.problems(), *between]
    if problems:
        raise ConfigError("config parts do not fit together: " + "; ".join(problems))
