"""What configurations refuse: values that are not implemented, of no sense, or that do not fit together."""

import dataclasses
import json
import shutil
from dataclasses import replace
from typing import Any

import pytest

from experiments.ablations.arms import ARMS
from internvlu_jax.config import ConfigError, InternVLUConfig, SizeConfig
from internvlu_jax.config_files import read_config, write_config
from internvlu_jax.presets import debug_config

HEAD, VLM, VAE = "generation_decoder/config.json", "vlm/config.json", "vae/config.json"
PROCESSOR = "processor/processor_config.json"


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("vlm/config.json", ["select_layer"], -2),
        ("vlm/config.json", ["template"], "internvl2_5"),
        ("vlm/config.json", ["vision_config", "norm_type"], "rms_norm"),
        ("vlm/config.json", ["vision_config", "qk_normalization"], True),
        ("vlm/config.json", ["llm_config", "rope_scaling"], {"type": "yarn"}),
        ("vlm/config.json", ["llm_config", "architectures"], ["LlamaForCausalLM"]),
        ("generation_decoder/config.json", ["decoder_projector_type"], "linear"),
        ("vae/config.json", ["attn_scales"], [1.0]),
        ("scheduler/scheduler_config.json", ["algorithm_type"], "sde-dpmsolver++"),
        ("scheduler/scheduler_config.json", ["solver_order"], 3),
        ("processor/processor_config.json", ["image_gen_processor_class"], "InternVLUFixResGenerationImageProcessor"),
    ],
)
def test_unknown_values_are_refused_by_name(golden, tmp_path, file, path, value):
    shutil.copytree(golden.checkpoint, tmp_path / "c")
    data = json.loads((tmp_path / "c" / file).read_text())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "c" / file).write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=path[-1]) as error:
        read_config(tmp_path / "c")
    assert str(value) in str(error.value) or repr(value) in str(error.value)


def test_a_value_of_the_wrong_type_is_refused(golden, tmp_path):
    shutil.copytree(golden.checkpoint, tmp_path / "c")
    file = tmp_path / "c/vae/config.json"
    file.write_text(file.read_text().replace('"z_dim": 16', '"z_dim": "many"'))
    with pytest.raises(ConfigError, match="z_dim is 'many'"):
        read_config(tmp_path / "c")


def test_parts_that_do_not_fit_are_named_together():
    cfg = InternVLUConfig()
    head = dataclasses.replace(cfg.generation_decoder, input_hidden_size=1000, vlm_select_layer=(-1, 99))
    with pytest.raises(ConfigError, match=r"joint_attention_dim.*input_hidden_size 1000.*\[99\]"):
        InternVLUConfig(generation_decoder=head)


def test_facts_of_two_files_that_must_agree():
    def refused(text: str, **parts: Any) -> None:
        with pytest.raises(ConfigError, match=text):
            replace(cfg, **parts)

    cfg = debug_config()
    vision, processor, vae = cfg.vlm.vision_config, cfg.processor, cfg.vae
    tiles, sources = processor.image_processor_kwargs, processor.image_gen_processor_kwargs
    refused(
        "the processor's vae_downsample_factor 4 is not the VAE's 8",
        processor=replace(processor, image_gen_processor_kwargs=replace(sources, vae_downsample_factor=4)),
    )
    refused(
        "sources come in multiples of 8 pixels .* a token of the head spans 16",
        processor=replace(processor, image_gen_processor_kwargs=replace(sources, gen_down_sample_ratio=1.0)),
    )
    refused(
        "size 56 x 28 is not the encoder's image_size 56",
        processor=replace(processor, image_processor_kwargs=replace(tiles, size=SizeConfig(56, 28))),
    )
    refused("vision num_channels is 4", vlm=replace(cfg.vlm, vision_config=replace(vision, num_channels=4)))
    refused("temperal_downsample has 1 entries; dim_mult has 3", vae=replace(vae, temperal_downsample=(True,)))


def test_broken_json_names_the_file(golden, tmp_path):
    shutil.copytree(golden.checkpoint, tmp_path / "c")
    (tmp_path / "c/vlm/config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"vlm/config\.json is not valid JSON"):
        read_config(tmp_path / "c")


@pytest.mark.parametrize(
    ("file", "path", "value", "said"),
    [
        (VLM, "llm_config.rope_theta", 0.0, r"rope_theta is 0\.0; expected a number over 0"),
        (VLM, "llm_config.rms_norm_eps", -1.0, r"rms_norm_eps is -1\.0; expected a number over 0"),
        (VLM, "llm_config.head_dim", 33, "head_dim is 33; rotary positions turn pairs"),
        (VLM, "llm_config.rope_theta", 1e39, "rope_theta is 1e"),  # none of float32
        (VLM, "vision_config.layer_norm_eps", -1.0, r"layer_norm_eps is -1\.0; expected a number over 0"),
        (HEAD, "vlm_cond_position_scale_factor", 0.0, "vlm_cond_position_scale_factor are .*; expected numbers over 0"),
        (HEAD, "video_position_scale_factor", -1.0, "video_position_scale_factor and .*; expected numbers over 0"),
        (HEAD, "decoder_config.axes_dims_rope", [16, 16], r"axes_dims_rope is \(16, 16\); expected three even numbers"),
        (HEAD, "decoder_config.axes_dims_rope", [7, 13, 12], "expected three even numbers"),
        (HEAD, "decoder_config.axes_dims_rope", [-8, 20, 20], "expected three even numbers"),
        (HEAD, "decoder_config.axes_dims_rope", [8, 8, 8, 8], "expected three even numbers"),
        (HEAD, "flow_shift", 0.0, r"flow_shift is 0\.0; expected a number over 0"),
        (HEAD, "logit_std", -1.0, r"logit_std is -1\.0; expected a deviation"),
        (HEAD, "gen_image_height", 4, "gen_image_height x gen_image_width is 4 x .* spans 16 pixels a side"),
        (VAE, "dim_mult", [1, 0, 2, 2], "dim_mult has 0; expected numbers over 0"),
        (VAE, "dim_mult", [1, -2, 2, 2], "dim_mult has -2; expected numbers over 0"),
        (PROCESSOR, "image_gen_processor_kwargs.min_dynamic_patch", 640, "min_dynamic_patch 640 is over max_dynamic"),
        (PROCESSOR, "image_gen_processor_kwargs.max_length", 4, "max_length is 4; sources come in multiples of 16"),
        (PROCESSOR, "image_processor_kwargs.image_std", [-1.0, 1.0, 1.0], "image_std numbers over 0"),
    ],
)
def test_numbers_without_sense_are_refused(tmp_path, file, path, value, said):
    """Each was read, and made texts of exclamation marks, black pictures or errors of something else."""
    write_config(debug_config(), tmp_path)
    data = json.loads((tmp_path / file).read_text())
    *groups, key = path.split(".")
    place = data
    for group in groups:
        place = place[group]
    place[key] = value
    (tmp_path / file).write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=said):
        read_config(tmp_path)


def test_numbers_of_studies_are_refused_alike():
    semantic, discrete = ARMS["shared-semantic"].config, ARMS["shared-discrete"].config
    for name, value in (("dim_mult", (-1, 2)), ("latents_std", (0.0,) * semantic.vae.z_dim)):
        with pytest.raises(ConfigError, match=f"{name} has .*; expected numbers over 0"):
            replace(semantic, vae=replace(semantic.vae, **{name: value}))
    with pytest.raises(ConfigError, match="gen_image_height x gen_image_width is 4 x 64"):
        replace(discrete, generation_decoder=replace(discrete.generation_decoder, gen_image_height=4))
