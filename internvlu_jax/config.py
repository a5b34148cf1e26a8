"""Configurations of every part, as frozen dataclasses, and the presets.

Fields carry the names they have in the released JSON files, which `config_files` reads and writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """A config file is missing, unreadable, or describes a model this code does not implement."""


@dataclass(frozen=True)
class Compute:
    """How a module computes, as against what it computes.

    dtype: of activations and matrix products, "float32" or "bfloat16"; norms, softmax and rotary stay in float32.
    attention: "xla", "cudnn", or "auto" (cuDNN where it can run, XLA elsewhere), see `ops.attention`.
    remat: what a block keeps for its backward pass: "none" (recompute nothing), "dots" (keep matrix products), "full".
    time: what the head's diffusion time is rounded to; None is `dtype`, as the released weights were trained. A model
        trained in bfloat16 that is to draw in float32 has never seen the times between: it takes "float32" here.
    """

    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"
    time: str | None = None

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        _one_of("attention", self.attention, ("auto", "xla", "cudnn"))
        _one_of("remat", self.remat, ("none", "dots", "full"))
        _one_of("time", self.time, (None, "float32", "bfloat16", "float16"))


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class VisionConfig:
    """InternViT (`vision_config` of vlm/config.json)."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    patch_size: int = 14
    image_size: int = 448
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Qwen3Config:
    """Qwen3 language model (`llm_config` of vlm/config.json)."""

    vocab_size: int = 151936
    hidden_size: int = 2048
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 6144
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = False


@dataclass(frozen=True)
class VLMConfig:
    """Vision encoder, projector and language model (vlm/config.json)."""

    vision_config: VisionConfig = VisionConfig()
    llm_config: Qwen3Config = Qwen3Config()
    downsample_ratio: float = 0.5
    template: str = "qwen2_5-chat-v3"

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
class MMDiTConfig:
    """Gated dual-stream transformer (`decoder_config` of generation_decoder/config.json)."""

    num_layers: int = 20
    num_attention_heads: int = 12
    attention_head_dim: int = 128
    patch_size: int = 2
    in_channels: int = 64
    out_channels: int = 16
    joint_attention_dim: int = 4096
    axes_dims_rope: tuple[int, int, int] = (16, 56, 56)
    video_position_scale_factor: float = 1.0
    vlm_cond_position_scale_factor: float = 0.25

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class HeadConfig:
    """Generation head: context projector, padding token and MMDiT (generation_decoder/config.json)."""

    decoder_config: MMDiTConfig = MMDiTConfig()
    decoder_projector_type: str = "identity"
    input_hidden_size: int = 4096
    output_hidden_size: int = 4096
    max_sequence_length: int = 512
    pad_to_fix_length: bool = False
    vlm_select_layer: tuple[int, ...] = (-1, -2)
    gen_image_height: int = 512
    gen_image_width: int = 512
    flow_shift: float = 3.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    vae_downsample_factor: int = 8

    @property
    def pixel_multiple(self) -> int:
        """Pixels that one token of the head spans, a side: sizes are multiples of it."""
        return self.vae_downsample_factor * self.decoder_config.patch_size

    def context_length(self, length: int) -> int:
        """Tokens that are left of a context of `length`: with `pad_to_fix_length` the first `max_sequence_length`.

        The final `<img>` may go with the rest, as in the released code.
        """
        return min(length, self.max_sequence_length) if self.pad_to_fix_length else length


_QWEN_IMAGE_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_QWEN_IMAGE_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
)  # fmt: skip


@dataclass(frozen=True)
class VAEConfig:
    """Qwen-Image autoencoder (vae/config.json).

    patch_size: pixels a side that enter the first convolution, and leave the last, as channels of a place. The released
    autoencoder has 1 and its code knows no other; small models start at a lower resolution, which is far cheaper.
    """

    base_dim: int = 96
    patch_size: int = 1
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = _QWEN_IMAGE_MEAN
    latents_std: tuple[float, ...] = _QWEN_IMAGE_STD

    @property
    def downsample_factor(self) -> int:
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)


@dataclass(frozen=True)
class SchedulerConfig:
    """The sampler (scheduler/scheduler_config.json). The shift used is the head's `flow_shift`."""

    num_train_timesteps: int = 1000
    solver_order: int = 2
    flow_shift: float = 3.0


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
        return round(self.vae_downsample_factor / self.gen_down_sample_ratio)

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
    """The whole model. `files` keeps each JSON file as it was read, so that export gives it back unchanged."""

    vlm: VLMConfig = VLMConfig()
    generation_decoder: HeadConfig = HeadConfig()
    vae: VAEConfig = VAEConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    processor: ProcessorConfig = ProcessorConfig()
    files: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_consistent(self)


def _check_consistent(cfg: InternVLUConfig) -> None:
    """Refuses parts that do not fit together, naming both sides."""
    vision, llm, head, vae = cfg.vlm.vision_config, cfg.vlm.llm_config, cfg.generation_decoder, cfg.vae
    dit = head.decoder_config
    _one_of("decoder_projector_type", head.decoder_projector_type, ("identity", "mlp2x_gelu"))
    projected = head.input_hidden_size if head.decoder_projector_type == "identity" else head.output_hidden_size
    layers = llm.num_hidden_layers
    bad_layers = [i for i in head.vlm_select_layer if not -layers - 1 <= i <= layers]
    rules = [
        (vision.hidden_size % vision.num_attention_heads == 0, "vision hidden_size must divide by its heads"),
        (vision.image_size % (vision.patch_size * cfg.vlm.shuffle) == 0, "image_size must divide by patch and shuffle"),
        (llm.num_attention_heads % llm.num_key_value_heads == 0, "query heads must be a multiple of key/value heads"),
        (head.input_hidden_size == llm.hidden_size * len(head.vlm_select_layer),
         f"input_hidden_size {head.input_hidden_size} is not hidden_size {llm.hidden_size} x "
         f"{len(head.vlm_select_layer)} selected layers"),
        (dit.joint_attention_dim == projected,
         f"joint_attention_dim {dit.joint_attention_dim} is not the context width {projected}"),
        (sum(dit.axes_dims_rope) == dit.attention_head_dim, "axes_dims_rope must sum to attention_head_dim"),
        (dit.in_channels == vae.z_dim * dit.patch_size**2, "in_channels is not z_dim x patch_size^2"),
        (dit.out_channels == vae.z_dim, "out_channels is not z_dim"),
        (len(vae.latents_mean) == len(vae.latents_std) == vae.z_dim, "latents_mean and latents_std need z_dim entries"),
        (head.vae_downsample_factor == vae.downsample_factor,
         f"vae_downsample_factor {head.vae_downsample_factor} is not the VAE's {vae.downsample_factor}"),
        (cfg.processor.image_seq_length == cfg.vlm.tokens_per_tile,
         f"image_seq_length {cfg.processor.image_seq_length} is not the encoder's {cfg.vlm.tokens_per_tile} tokens"),
        (not bad_layers, f"vlm_select_layer {bad_layers} is outside the {layers} layers"),
    ]  # fmt: skip
    problems = [text for ok, text in rules if not ok]
    if problems:
        raise ConfigError("config parts do not fit together: " + "; ".join(problems))


def debug_config() -> InternVLUConfig:
    """The preset `debug`: every part of the 4B model at a size that a laptop builds in a second."""
    vision = VisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=56
    )
    llm = Qwen3Config(
        vocab_size=512, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=96,
    )  # fmt: skip
    dit = MMDiTConfig(
        num_layers=3, num_attention_heads=2, attention_head_dim=32, joint_attention_dim=96, axes_dims_rope=(8, 12, 12)
    )
    head = HeadConfig(
        decoder_config=dit, input_hidden_size=96, output_hidden_size=96, max_sequence_length=32, gen_image_height=64,
        gen_image_width=64,
    )  # fmt: skip
    pictures = GenerationImageProcessorConfig(min_dynamic_patch=16, max_dynamic_patch=256, max_length=128)
    return InternVLUConfig(
        vlm=VLMConfig(vision_config=vision, llm_config=llm),
        generation_decoder=head,
        vae=VAEConfig(base_dim=8, dim_mult=(1, 1, 2, 2), num_res_blocks=1),
        processor=ProcessorConfig(4, ImageProcessorConfig(SizeConfig(56, 56)), pictures),
    )


def small_config() -> InternVLUConfig:
    """The preset `small`: about ten million parameters for pictures of 64 x 64, the model in the box.

    The autoencoder starts at a quarter of the resolution. A visual token spans 16 x 16 pixels, a token of the
    head 8 x 8: letters are smaller than the former.
    """
    vision = VisionConfig(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=3, intermediate_size=288, patch_size=8, image_size=64
    )
    llm = Qwen3Config(
        vocab_size=1536, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, intermediate_size=384, rope_theta=1e4,
    )  # fmt: skip
    vae = VAEConfig(
        base_dim=32, patch_size=4, z_dim=8, dim_mult=(1, 2), num_res_blocks=1, temperal_downsample=(False,),
        latents_mean=(0.0,) * 8, latents_std=(1.0,) * 8,
    )  # fmt: skip
    dit = MMDiTConfig(
        num_layers=6, num_attention_heads=6, attention_head_dim=32, patch_size=1, in_channels=8, out_channels=8,
        joint_attention_dim=256, axes_dims_rope=(8, 12, 12), vlm_cond_position_scale_factor=0.5,
    )  # fmt: skip
    head = HeadConfig(
        decoder_config=dit, input_hidden_size=256, output_hidden_size=256, max_sequence_length=128,
        gen_image_height=64, gen_image_width=64, flow_shift=1.0,
    )  # fmt: skip
    pictures = GenerationImageProcessorConfig(
        min_dynamic_patch=64, max_dynamic_patch=64, max_length=128, gen_down_sample_ratio=1.0
    )
    return InternVLUConfig(
        vlm=VLMConfig(vision_config=vision, llm_config=llm),
        generation_decoder=head,
        vae=vae,
        scheduler=SchedulerConfig(flow_shift=1.0),
        processor=ProcessorConfig(16, ImageProcessorConfig(SizeConfig(64, 64)), pictures),
    )


PRESETS = {"internvl-u-4b": InternVLUConfig, "debug": debug_config, "small": small_config}
