"""Qwen-Image autoencoder: released tensors <-> parameters of `models.vae.VAE`.

Released 3-D kernels [o, i, t, p, q] meet zeros in time on a single picture, so that only their last slice in t is a
parameter; the temporal convolutions never run. Both are kept as extras.
"""

from __future__ import annotations

from collections.abc import Iterator

from converters.engine import Row, Rule, Unused
from internvlu_jax.config import VAEConfig
from internvlu_jax.models.vae import decoder_levels, encoder_levels


def vae_rules(cfg: VAEConfig) -> list[Row]:
    """One row a tensor of vae/diffusion_pytorch_model.safetensors."""
    return [
        *_conv("quant_conv", "quant_conv", 1),
        *_conv("post_quant_conv", "post_quant_conv", 1),
        *_encoder(cfg),
        *_decoder(cfg),
    ]


def _encoder(cfg: VAEConfig) -> Iterator[Row]:
    """The released encoder is one flat list: the res blocks of a level, its downsampler, the next level, ..."""
    yield from _ends("encoder")
    index = 0
    for i, level in enumerate(encoder_levels(cfg)):
        for j, width_in in enumerate(level.widths_in):
            source = f"encoder.down_blocks.{index}"
            yield from _res_block(source, f"encoder/down_{i}/res_{j}", width_in != level.width)
            index += 1
        if level.resamples:
            yield from _conv_2d(f"encoder.down_blocks.{index}.resample.1", f"encoder/down_{i}/downsample")
            if cfg.temperal_downsample[i]:
                yield from _time_conv(f"encoder.down_blocks.{index}.time_conv", level.width, level.width)
            index += 1


def _decoder(cfg: VAEConfig) -> Iterator[Row]:
    yield from _ends("decoder")
    for i, level in enumerate(decoder_levels(cfg)):
        block = f"decoder.up_blocks.{i}"
        for j, width_in in enumerate(level.widths_in):
            yield from _res_block(f"{block}.resnets.{j}", f"decoder/up_{i}/res_{j}", width_in != level.width)
        if level.resamples:
            yield from _conv_2d(f"{block}.upsamplers.0.resample.1", f"decoder/up_{i}/upsample")
            if cfg.temperal_downsample[::-1][i]:
                yield from _time_conv(f"{block}.upsamplers.0.time_conv", 2 * level.width, level.width)


def _ends(side: str) -> Iterator[Row]:
    """First and last convolution, and the middle."""
    yield from _conv(f"{side}.conv_in", f"{side}/conv_in", 3)
    for j in range(2):
        yield from _res_block(f"{side}.mid_block.resnets.{j}", f"{side}/mid/res_{j}", False)
    attention, ours = f"{side}.mid_block.attentions.0", f"{side}/mid/attn"
    yield Rule(f"{attention}.norm.gamma", f"{ours}/norm/gamma", "c 1 1 -> c")
    for name, our_name in (("to_qkv", "qkv"), ("proj", "out")):
        yield Rule(f"{attention}.{name}.weight", f"{ours}/{our_name}/kernel", "o i 1 1 -> i o")
        yield Rule(f"{attention}.{name}.bias", f"{ours}/{our_name}/bias")
    yield _norm(f"{side}.norm_out", f"{side}/norm_out")
    yield from _conv(f"{side}.conv_out", f"{side}/conv_out", 3)


def _res_block(source: str, target: str, shortcut: bool) -> Iterator[Row]:
    for j in (1, 2):
        yield _norm(f"{source}.norm{j}", f"{target}/norm{j}")
        yield from _conv(f"{source}.conv{j}", f"{target}/conv{j}", 3)
    if shortcut:
        yield from _conv(f"{source}.conv_shortcut", f"{target}/shortcut", 1)


def _norm(source: str, target: str) -> Rule:
    return Rule(f"{source}.gamma", f"{target}/gamma", "c 1 1 1 -> c")


def _conv(source: str, target: str, slices: int) -> Iterator[Row]:
    """A causal 3-D convolution whose kernel has `slices` in time."""
    yield Rule(f"{source}.weight", f"{target}/kernel", "o i p q -> p q i o", last_of=(2, slices))
    yield Rule(f"{source}.bias", f"{target}/bias")


def _conv_2d(source: str, target: str) -> Iterator[Row]:
    yield Rule(f"{source}.weight", f"{target}/kernel", "o i p q -> p q i o")
    yield Rule(f"{source}.bias", f"{target}/bias")


def _time_conv(source: str, width_out: int, width_in: int) -> Iterator[Row]:
    yield Unused(f"{source}.weight", (width_out, width_in, 3, 1, 1))
    yield Unused(f"{source}.bias", (width_out,))
