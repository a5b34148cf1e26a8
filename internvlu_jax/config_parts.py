"""Configurations of the released parts, and what all configurations share. Import them from `config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

Attention = Literal["auto", "xla", "chunked", "cudnn", "splash"]
Layers = Literal["scan", "unrolled"]
Quantization = Literal["int8", "int8xint8", "fp8"]
Noise = Literal["torch-cpu", "torch-cuda", "jax"]
"""Starting noise as the released code draws it with a generator on a CPU or on a GPU (see `flow.torch_noise`), or that
of JAX's keys."""


class ConfigError(ValueError):
    """A config file is missing, unreadable, or describes a model this code does not implement."""


class CheckpointWarning(UserWarning):
    """A checkpoint says, or holds, something that no number here depends on."""


@dataclass(frozen=True)
class Compute:
    """How a module computes, as against what it computes.

    Attributes:
        dtype: of activations and matrix products, "float32" or "bfloat16"; norms, softmax and rotary stay in float32.
            Products of float32 keep its bits on accelerators, too, unless JAX_DEFAULT_MATMUL_PRECISION is set.
        attention: how it is computed, or "auto", which takes what is best where it runs, see `ops.attention`.
        remat: what a block keeps for its backward pass: "none" (recompute nothing), "dots" (keep matrix products),
            "full".
        time: what the head's diffusion time is rounded to; None is `dtype`, as the released weights were trained. A
            model trained in bfloat16 that is to draw in float32 has never seen the times between: it takes "float32"
            here.
        layers: of the language model: "scan" runs one program over stacked weights, which compiles fast and copies the
            weights of each layer before it uses them; "unrolled" takes a list of layers (`models.qwen3.as_list`), and
            is for serving alone.
    """

    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "none"
    time: str | None = None
    layers: str = "scan"

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        one_of("attention", self.attention, get_args(Attention))
        one_of("remat", self.remat, ("none", "dots", "full"))
        one_of("time", self.time, (None, "float32", "bfloat16"))
        one_of("layers", self.layers, get_args(Layers))
        if self.layers == "unrolled" and self.remat != "none":
            raise ConfigError(f"layers is 'unrolled' and remat is {self.remat!r}; training runs with layers 'scan'")


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ConfigError unless the value is one of those."""
    if value not in allowed:
        raise ConfigError(not_one_of(name, value, allowed))


def not_one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> str:
    """The sentence for a value that is none of those."""
    return f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}"


def positive(name: str, values: tuple[float, ...]) -> tuple[bool, str]:
    """The rule that there are numbers, all over 0, and the sentence of the least that breaks it."""
    least = min(values, default=0)
    return least > 0, f"{name} has {least}; expected numbers over 0"


def spans_a_token(head: Any) -> tuple[bool, str]:
    """The rule that a picture of a head's own size has a token, and its sentence."""
    height, width = head.gen_image_height, head.gen_image_width
    return min(height, width) >= head.pixel_multiple, (
        f"gen_image_height x gen_image_width is {height} x {width}; a token of the head spans {head.pixel_multiple} "
        "pixels a side"
    )


def broken(*rules: tuple[bool, str]) -> list[str]:
    """The sentences of the rules that do not hold."""
    return [sentence for holds, sentence in rules if not holds]


@dataclass(frozen=True)
class VisionConfig:
    """InternViT (`vision_config` of vlm/config.json)."""

    model_type: ClassVar[str] = "intern_vit_6b"

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

    @property
    def attention_widths(self) -> tuple[int, ...]:
        return (self.head_dim,)

    def problems(self) -> list[str]:
        """What is wrong inside this part, one sentence each."""
        return broken(
            (self.hidden_size % self.num_attention_heads == 0,
             f"vision hidden_size {self.hidden_size} must divide by its {self.num_attention_heads} heads"),
            (self.num_channels == 3, f"vision num_channels is {self.num_channels}; pictures have 3"),
            (self.layer_norm_eps > 0, f"vision layer_norm_eps is {self.layer_norm_eps}; expected a number over 0"),
        )  # fmt: skip


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

    def problems(self) -> list[str]:
        """What is wrong inside this part, one sentence each."""
        return broken(
            (self.num_attention_heads % self.num_key_value_heads == 0,
             "query heads must be a multiple of key/value heads"),
            (self.head_dim % 2 == 0, f"head_dim is {self.head_dim}; rotary positions turn pairs of channels"),
            (self.rms_norm_eps > 0, f"rms_norm_eps is {self.rms_norm_eps}; expected a number over 0"),
            (self.rope_theta > 0, f"rope_theta is {self.rope_theta}; expected a number over 0"),
        )  # fmt: skip


@dataclass(frozen=True)
class MMDiTConfig:
    """Gated dual-stream transformer (`decoder_config` of generation_decoder/config.json).

    gate, context_norm: whether the output of attention is gated, and the context normalised before it is embedded. The
        released code does both and knows no other way.
    """

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
    gate: bool = True
    context_norm: bool = True

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


SOURCES = ("both", "context", "latents")
POSITIONS = ("msrope", "sequence")


@dataclass(frozen=True)
class HeadConfig:
    """Generation head: context projector, padding token and MMDiT (generation_decoder/config.json).

    sources: what the head gets of source pictures. "context": they stand in the language model's context alone;
        "latents": their latents alone, and the context leaves the picture tokens out; "both", as released.
    positions: of its tokens. "sequence": their numbers in the head's order, on all axes alike (with
        `axes_dims_rope` (h, 0, 0) the rotary positions of a language model); "msrope", as released.
    """

    model_type: ClassVar[str] = "internvlu_generation_decoder"

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
    sources: str = "both"
    positions: str = "msrope"

    @property
    def attention_widths(self) -> tuple[int, ...]:
        return (self.decoder_config.attention_head_dim,)

    @property
    def position_scales(self) -> tuple[float, float]:
        """Interpolation factors of the positions of latents, and of visual tokens in the context."""
        dit = self.decoder_config
        return dit.video_position_scale_factor, dit.vlm_cond_position_scale_factor

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that it generates."""
        return self.decoder_config.out_channels

    def latent_grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the latents of so many pixels, cut to whole tokens of the head as in the released code."""
        rows, columns = (side // self.pixel_multiple * self.latent_multiple for side in (height, width))
        return rows, columns

    @property
    def latent_multiple(self) -> int:
        """Latents that one token of the head spans, a side."""
        return self.decoder_config.patch_size

    @property
    def pixel_multiple(self) -> int:
        """Pixels that one token of the head spans, a side: sizes are multiples of it."""
        return self.vae_downsample_factor * self.latent_multiple

    def context_length(self, length: int) -> int:
        """Tokens that are left of a context of `length`: with `pad_to_fix_length` the first `max_sequence_length`.

        The final `<img>` may go with the rest, as in the released code.
        """
        return min(length, self.max_sequence_length) if self.pad_to_fix_length else length

    def problems(self) -> list[str]:
        """What is wrong inside this part, one sentence each."""
        dit, projectors = self.decoder_config, ("identity", "mlp2x_gelu")
        projected = self.input_hidden_size if self.decoder_projector_type == "identity" else self.output_hidden_size
        tokens = dit.out_channels * dit.patch_size**2
        axes = dit.axes_dims_rope
        return broken(
            (self.decoder_projector_type in projectors,
             not_one_of("decoder_projector_type", self.decoder_projector_type, projectors)),
            (self.sources in SOURCES, not_one_of("sources", self.sources, SOURCES)),
            (self.positions in POSITIONS, not_one_of("positions", self.positions, POSITIONS)),
            (dit.joint_attention_dim == projected,
             f"joint_attention_dim {dit.joint_attention_dim} is not the context width {projected}"),
            (len(axes) == 3 and all(width >= 0 and width % 2 == 0 for width in axes),
             f"axes_dims_rope is {axes}; expected three even numbers, of frame, row and column"),
            (sum(axes) == dit.attention_head_dim,
             f"axes_dims_rope {axes} must sum to attention_head_dim {dit.attention_head_dim}"),
            (min(self.position_scales) > 0,
             f"video_position_scale_factor and vlm_cond_position_scale_factor are {self.position_scales}; expected "
             "numbers over 0"),
            (self.flow_shift > 0, f"flow_shift is {self.flow_shift}; expected a number over 0 (1 shifts nothing)"),
            (self.logit_std >= 0, f"logit_std is {self.logit_std}; expected a deviation"),
            spans_a_token(self),
            (dit.in_channels == tokens, f"in_channels {dit.in_channels} is not out_channels x patch_size^2, {tokens}"),
        )  # fmt: skip


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

    model_type: ClassVar[str] = "AutoencoderKLQwenImage"

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

    @property
    def attention_widths(self) -> tuple[int, ...]:
        return ()  # its one attention runs on XLA whatever is asked for

    def problems(self) -> list[str]:
        """What is wrong inside this part, one sentence each."""
        means, deviations, levels = len(self.latents_mean), len(self.latents_std), len(self.dim_mult) - 1
        return broken(
            (means == deviations == self.z_dim,
             f"latents_mean and latents_std have {means} and {deviations} entries; they need z_dim, {self.z_dim}"),
            (len(self.temperal_downsample) == levels,
             f"temperal_downsample has {len(self.temperal_downsample)} entries; dim_mult has {levels} steps down"),
            positive("dim_mult", self.dim_mult),
            positive("latents_std", self.latents_std),
        )  # fmt: skip
