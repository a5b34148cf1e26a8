"""The arms of the study "decoupled or shared?": what the language model sees, and what the head generates.

    arm                the language model sees             the head generates
    decoupled          a ViT on pixels                     latents of a VAE
    shared-latent      the same ViT on latents of the VAE  latents of the VAE
    shared-semantic    frozen features of a trained ViT    the same features
    twin               a ViT on latents of a second VAE    latents of the first VAE, sources of edits too
    random-semantic    frozen features of a random ViT     the same features
    shared-discrete    embedded codes of a quantized VAE   the codes, by the language model itself: there is no head

In twin the source of an edit enters the model twice, as in shared-latent, but through two encoders that were trained
apart: spaces of one kind, of one size and quality, that share no weights. It tells whether shared-latent gains because
both sides see one space, or because latents of a VAE are a good thing to see. The twin stands on the side of the
language model and not before the head: sources in another space than what is drawn could not be copied into it, which
would make edits worse for a reason that has nothing to do with sharing.

Pictures are 64 x 64 and have 16 tokens, in the language model as in the head. Language model and head are the same in
all arms, but for the channels that a token of the head reads and gives; in shared-discrete the language model has the
parameters of encoder and head besides its own. The vision encoder on latents has wider MLPs,
for a patch of latents takes fewer parameters to embed than one of pixels. `matching` checks sizes and costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from experiments.ablations.codes import draws_codes
from internvlu_jax.config import (
    CodeHead,
    CodeVision,
    GenerationImageProcessorConfig,
    HeadConfig,
    ImageProcessorConfig,
    InternVLUConfig,
    LatentVision,
    MMDiTConfig,
    ProcessorConfig,
    QuantizedCodec,
    Qwen3Config,
    SemanticCodec,
    SizeConfig,
    VAEConfig,
    VisionConfig,
    VLMConfig,
)
from internvlu_jax.models.copies import CODEC_IN_VISION, below, check_copies, with_copies, with_copy
from internvlu_jax.training.config import Rules
from internvlu_jax.utils.tree import Tree, paths

SIDE = 64
_PATCH = 16  # pixels a side of a token, everywhere
_CHANNELS = 8  # of a latent of the VAE
_HEAD_DIM = 32
_HALF = (0.5, 0.5, 0.5)
_SHIFT = 1.0  # of the noise levels of the VAE's latents
_VOCABULARY = 704  # the tokenizer of world XS has 654 tokens


@dataclass(frozen=True)
class Arm:
    """One arm.

    config: of its model, with latents that are not normalised yet (`training.autoencoder.with_statistics`).
    vision: how its vision encoder comes about. "trained" together with all the rest; "beforehand", on questions, and
        then frozen; "random", and frozen.
    twin: whether the frozen codec of the vision encoder is that of a second VAE, not a copy of `vae`.
    """

    name: str
    config: InternVLUConfig
    vision: Literal["trained", "beforehand", "random"] = "trained"
    twin: bool = False

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns of the parameters that the training of the whole model leaves alone."""
        vision = () if self.vision == "trained" else ("vlm/vit/.*",)
        within = isinstance(self.config.vlm.vision_config, LatentVision | CodeVision)
        codec = ("vlm/vit/codec/.*",) if within else ()
        return ("vae/.*", *vision, *codec)

    @property
    def sampled_by(self) -> str:
        """What tuning tries for its pictures beside guidance: "shift" of noise levels or "temperature" of codes."""
        return "temperature" if draws_codes(self.config) else "shift"

    @property
    def rates(self) -> Rules:
        """`OptimizerConfig.rates` of that training."""
        return (*((pattern, 0.0) for pattern in self.frozen), (".*", 1.0))


def with_frozen_parts(
    arm: Arm, config: InternVLUConfig, params: Tree, second: tuple[VAEConfig, Tree] | None = None
) -> tuple[InternVLUConfig, Tree]:
    """The arm's model with the frozen copies in place, before the whole is trained.

    Args:
        config, params: with the autoencoder, or for frozen features the vision encoder, that is to be copied; the
            config has the statistics of its latents.
        second: the second VAE of an arm with a twin, config and parameters.

    Raises:
        ValueError: a second VAE is missing or not asked for, or what is to be copied does not fit.
    """
    if arm.twin != (second is not None):
        raise ValueError(f"{arm.name} takes {'a second' if arm.twin else 'no second'} VAE")
    if second is None:
        return with_copies(config, params)
    return with_copy(config, params, CODEC_IN_VISION, *second)


def check_frozen_parts(arm: Arm, config: InternVLUConfig, params: Tree) -> None:
    """Raises ValueError if a frozen copy is not its original, or a twin is no other encoder than the first."""
    if not arm.twin:
        check_copies(config, params)
        return
    first, twin = paths(params["vae"]), paths(below(params, CODEC_IN_VISION))
    if all(np.array_equal(leaf, first[path]) for path, leaf in twin.items()):
        raise ValueError(f"{arm.name}: {CODEC_IN_VISION} is the encoder of vae; expected that of a second VAE")


def shift_for(dimension: int, known: int, shift: float) -> float:
    """The shift of noise levels for pictures of another number of dimensions (tokens x channels).

    More dimensions need more noise to hide as much of a picture: the shift grows with the square root of their ratio.
    Source: the dimension-dependent shift of arXiv 2510.11690, after arXiv 2403.03206, section 5.3.2.

    Args:
        known: dimensions for which `shift` is right.
    """
    return shift * math.sqrt(dimension / known)


@dataclass(frozen=True)
class Discrete:
    """The language model of shared-discrete, which has the parameters of the others' vision encoder and head as well.

    levels: of the channels of a code, as in `QuantizedCodec`.
    language: as in `Size`. embedded: width of the embedded codes of a latent.
    output: (layers, hidden width) of what predicts codes.
    """

    levels: tuple[int, ...]
    language: tuple[int, int, int, int]
    embedded: int
    output: tuple[int, int]


@dataclass(frozen=True)
class Size:
    """Layers and widths of all arms of one size. Heads of attention are 32 wide, and so say how wide a part is.

    vision: (layers, heads) of the vision encoder; mlp: its hidden widths on pixels and on latents, which make up for
        patch embeddings of different sizes.
    language: (layers, heads, heads of keys and values, hidden width of the MLPs). head: (layers, heads).
    vae: (base_dim, patch_size, dim_mult), as in `VAEConfig`; decoder: the same of the decoder of features.
    discrete: of shared-discrete.
    """

    name: str
    vision: tuple[int, int]
    mlp: tuple[int, int]
    language: tuple[int, int, int, int]
    head: tuple[int, int]
    vae: tuple[int, int, tuple[int, ...]]
    decoder: tuple[int, int, tuple[int, ...]]
    discrete: Discrete


XS = Size(
    "xs", vision=(2, 2), mlp=(128, 272), language=(2, 3, 3, 256), head=(4, 3),
    vae=(16, 4, (1, 2)), decoder=(6, 4, (3, 4, 4)),
    discrete=Discrete((5,) * 4, (5, 3, 3, 328), 64, (2, 320)),
)  # fmt: skip
"""One to two million parameters."""

S = replace(
    XS, name="s", vision=(3, 3), mlp=(288, 320), language=(4, 4, 2, 384), head=(6, 6), decoder=(11, 4, (2, 2, 2)),
    discrete=Discrete((5,) * 4, (3, 12, 4, 576), 384, (2, 896)),
)  # fmt: skip
"""About the size of the model that the package brings, ten million parameters; its VAE is that of XS, which loses next
to nothing."""

TINY = replace(
    XS, name="tiny", vision=(1, 2), mlp=(128, 425), language=(1, 3, 3, 1024), head=(1, 3),
    vae=(16, 8, (1,)), decoder=(6, 16, (1,)),
    discrete=Discrete((4,) * 4, (1, 3, 3, 856), 144, (1, 256)),
)  # fmt: skip
"""One layer of everything, for programs that compile in seconds; widths only make up for one another."""


def _dimensions(vae: Any) -> int:
    return (SIDE // vae.downsample_factor) ** 2 * vae.z_dim


def _model(size: Size, vision: VisionConfig, vae: Any) -> InternVLUConfig:
    """A model around two encoders; language model and head are the same in all arms of a size."""
    llm = _language(*size.language)
    width, factor = llm.hidden_size, vae.downsample_factor
    patch = _PATCH // factor
    dit = MMDiTConfig(
        num_layers=size.head[0], num_attention_heads=size.head[1], attention_head_dim=_HEAD_DIM, patch_size=patch,
        in_channels=vae.z_dim * patch**2, out_channels=vae.z_dim, joint_attention_dim=2 * width,
        axes_dims_rope=(8, 12, 12), vlm_cond_position_scale_factor=1.0,
    )  # fmt: skip
    if dit.hidden_size < vae.z_dim:
        raise ValueError(f"the head is {dit.hidden_size} wide, less than the {vae.z_dim} channels that it generates")
    head = HeadConfig(
        decoder_config=dit, input_hidden_size=2 * width, output_hidden_size=2 * width, max_sequence_length=128,
        gen_image_height=SIDE, gen_image_width=SIDE, vae_downsample_factor=factor,
        flow_shift=shift_for(_dimensions(vae), _dimensions(_vae(size)), _SHIFT),
    )  # fmt: skip
    return _whole(VLMConfig(vision_config=vision, llm_config=llm, downsample_ratio=1.0), head, vae)


def _discrete(size: Size) -> InternVLUConfig:
    """A model without a head around a quantized VAE."""
    plain, (layers, mlp) = _vae(size), size.discrete.output
    codec = QuantizedCodec(**{f.name: getattr(plain, f.name) for f in fields(plain)}, levels=size.discrete.levels)
    patch, llm = _PATCH // codec.downsample_factor, _language(*size.discrete.language)
    vision: Any = CodeVision(size.discrete.embedded, SIDE, codec)
    head = CodeHead(codec, patch, llm.hidden_size, layers, mlp, SIDE, SIDE)
    return _whole(VLMConfig(vision_config=vision, llm_config=llm, downsample_ratio=1 / patch), head, codec)


def _language(layers: int, heads: int, groups: int, mlp: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=_VOCABULARY, hidden_size=_HEAD_DIM * heads, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=_HEAD_DIM, intermediate_size=mlp, rope_theta=1e4, tie_word_embeddings=True,
    )  # fmt: skip


def _whole(vlm: VLMConfig, head: Any, vae: Any) -> InternVLUConfig:
    factor = vae.downsample_factor
    places = (SIDE // factor) ** 2
    pictures = GenerationImageProcessorConfig(
        image_mean=_HALF, image_std=_HALF, min_dynamic_patch=places, max_dynamic_patch=places, max_length=SIDE,
        vae_downsample_factor=factor, gen_down_sample_ratio=factor / _PATCH,
    )  # fmt: skip
    return InternVLUConfig(
        vlm=vlm,
        generation_decoder=head,
        vae=vae,
        processor=ProcessorConfig(
            (SIDE // _PATCH) ** 2, ImageProcessorConfig(SizeConfig(SIDE, SIDE), _HALF, _HALF), pictures
        ),
    )


def _vision(size: Size, mlp: int) -> dict[str, Any]:
    """Fields of a vision encoder."""
    layers, heads = size.vision
    return {
        "hidden_size": _HEAD_DIM * heads, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": mlp, "patch_size": _PATCH, "image_size": SIDE,
    }  # fmt: skip


def _vae(size: Size) -> VAEConfig:
    base, patch, multiples = size.vae
    return VAEConfig(
        base_dim=base, patch_size=patch, z_dim=_CHANNELS, dim_mult=multiples, num_res_blocks=1,
        temperal_downsample=(False,) * (len(multiples) - 1),
        latents_mean=(0.0,) * _CHANNELS, latents_std=(1.0,) * _CHANNELS,
    )  # fmt: skip


def _features(size: Size, encoder: VisionConfig) -> SemanticCodec:
    base, patch, multiples = size.decoder
    return SemanticCodec(
        encoder=encoder, base_dim=base, patch_size=patch, dim_mult=multiples, num_res_blocks=1,
        latents_mean=(0.0,) * encoder.hidden_size, latents_std=(1.0,) * encoder.hidden_size,
    )  # fmt: skip


@cache
def arms_of(size: Size) -> Mapping[str, Arm]:
    """All arms of a size, by name."""
    pixels, vae = VisionConfig(**_vision(size, size.mlp[0])), _vae(size)
    shared_latent = _model(size, LatentVision(**_vision(size, size.mlp[1]), codec=vae), vae)
    shared_semantic = _model(size, pixels, _features(size, pixels))
    arms = (
        Arm("decoupled", _model(size, pixels, vae)),
        Arm("shared-latent", shared_latent),
        Arm("shared-semantic", shared_semantic, vision="beforehand"),
        Arm("twin", shared_latent, twin=True),
        Arm("random-semantic", shared_semantic, vision="random"),
        Arm("shared-discrete", _discrete(size)),
    )
    return MappingProxyType({arm.name: arm for arm in arms})


ARMS = arms_of(XS)
