"""Configurations by name, for models that are made up from scratch."""

from __future__ import annotations

from internvlu_jax.config import (
    GenerationImageProcessorConfig,
    HeadConfig,
    ImageProcessorConfig,
    InternVLUConfig,
    MMDiTConfig,
    ProcessorConfig,
    Qwen3Config,
    SizeConfig,
    VAEConfig,
    VisionConfig,
    VLMConfig,
)


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
        processor=ProcessorConfig(16, ImageProcessorConfig(SizeConfig(64, 64)), pictures),
    )


PRESETS = {"internvl-u-4b": InternVLUConfig, "debug": debug_config, "small": small_config}
