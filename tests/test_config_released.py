"""What the released code makes of its config files: refused, warned about, or by its classes' own defaults."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from internvlu_jax.config import CheckpointWarning, ConfigError, InternVLUConfig
from internvlu_jax.config_files import read_config, write_config
from tests.conftest import GOLDENS

RELEASED = GOLDENS / "base/checkpoint"
VLM, HEAD, VAE = "vlm/config.json", "generation_decoder/config.json", "vae/config.json"
SAMPLER, PROCESSOR = "scheduler/scheduler_config.json", "processor/processor_config.json"
ABSENT = object()


@pytest.fixture(scope="module")
def recorded() -> InternVLUConfig:
    return read_config(RELEASED)


@pytest.fixture
def read(tmp_path) -> Callable[..., InternVLUConfig]:
    """`read(file, "llm_config.rope_theta", 1.0, ...)` reads the recorded files with these values changed or absent."""
    copy = tmp_path / "c"
    shutil.copytree(RELEASED, copy, ignore=shutil.ignore_patterns("*.safetensors"))

    def read(file: str, *changes: Any) -> InternVLUConfig:
        text = (RELEASED / file).read_text()
        data = json.loads(text)
        for path, value in zip(changes[::2], changes[1::2], strict=True):
            *parents, last = path.split(".")
            place = data
            for name in parents:
                place = place[name]
            place.pop(last, None)
            if value is not ABSENT:
                place[last] = value
        (copy / file).write_text(json.dumps(data))
        try:
            return read_config(copy)
        finally:
            (copy / file).write_text(text)

    return read


# --- what the released code does not care about


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        (VLM, "tie_word_embeddings", True),
        (VLM, "architectures", ["InternVLChatModel"]),
        (VLM, "model_type", "internvl_chat"),
        (VLM, "llm_config.model_type", "qwen2"),
        (VLM, "vision_config.architectures", ["InternVisionModelV2"]),
        (VLM, "vision_config.model_type", "intern_vit_300m"),
        (VLM, "ps_version", "v1"),
        (VLM, "ps_version", ABSENT),
        (VLM, "pad2square", True),
        (VLM, "anyres_image_size", True),
        (VLM, "force_image_size", 112),
        (VLM, "vision_config.num_channels", 4),
        (VLM, "llm_config.rope_scaling", {"type": "dynamic", "factor": 2.0}),
        (VLM, "llm_config.rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        (VLM, "llm_config.rope_parameters", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}),
        (VLM, "llm_config.use_sliding_window", True),  # from layer 28 on, and there are 3
        (HEAD, "architectures", ["Other"]),
        (HEAD, "model_type", "other"),
        (HEAD, "vae_downsample_factor", ABSENT),
        (HEAD, "vae_downsample_factor", 32),
        (VAE, "_class_name", "AutoencoderKLWan"),
        (SAMPLER, "_class_name", "Other"),
        (PROCESSOR, "processor_class", "InternVLProcessor"),
        (PROCESSOR, "image_processor_kwargs.crop_to_patches", True),
    ],
)
def test_what_no_number_depends_on_is_warned_about(recorded, read, file, path, value):
    with pytest.warns(CheckpointWarning, match=rf"{file}: (.*: )?{path.split('.')[-1]} is ") as caught:
        assert read(file, path, value) == recorded
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        (VLM, "tie_word_embeddings", ABSENT),
        (VLM, "architectures", ABSENT),
        (VLM, "architectures", None),
        (VLM, "model_type", ABSENT),
        (VLM, "vision_config.architectures", ABSENT),
        (VLM, "llm_config.architectures", ABSENT),
        (VLM, "llm_config.architectures", ["Qwen3ForCausalLM", "Other"]),
        (VLM, "llm_config.model_type", ABSENT),
        (VLM, "llm_config.tie_word_embeddings", None),
        (VLM, "llm_config.rope_scaling", {"type": "default"}),
        (VLM, "llm_config.rope_scaling", {"rope_type": "default"}),
        (VLM, "llm_config.layer_types", ["full_attention"] * 3),
        (VLM, "quantization_config", None),
        (VLM, "pad2square", None),
        (VLM, "anyres_image_size", None),
        (VLM, "vision_config.qk_normalization", None),
        (HEAD, "pad_to_fix_length", None),  # false to the released code, which asks for no more
        (HEAD, "decoder_config.vlm_cond_position_scale_factor", 0.5),  # overwritten from outside
        (HEAD, "architectures", ABSENT),
        (SAMPLER, "use_dynamic_shifting", None),
        (SAMPLER, "use_karras_sigmas", None),
        (SAMPLER, "timestep_spacing", "trailing"),
        (PROCESSOR, "processor_class", ABSENT),
        (PROCESSOR, "image_processor_kwargs.size", 56),
        (PROCESSOR, "image_processor_kwargs.size", [56, 56]),
        (PROCESSOR, "image_processor_kwargs.resample", 3),
        (PROCESSOR, "image_processor_kwargs.rescale_factor", 0.00392156862745098),
        (PROCESSOR, "image_gen_processor_kwargs.image_mean", 0.5),
        (PROCESSOR, "image_gen_processor_kwargs.max_length", ABSENT),
    ],
)
def test_what_says_the_same_in_other_words(recorded, read, file, path, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(file, path, value) == recorded


def test_the_language_model_alone_says_whether_its_head_is_tied(recorded, read):
    tied = replace(recorded.vlm.llm_config, tie_word_embeddings=True)
    with pytest.warns(CheckpointWarning, match="llm_config alone decides"):
        cfg = read(VLM, "tie_word_embeddings", False, "llm_config.tie_word_embeddings", True)
    assert cfg == replace(recorded, vlm=replace(recorded.vlm, llm_config=tied))


def test_null_sizes_are_the_released_defaults(recorded, read):
    with (
        pytest.warns(CheckpointWarning, match="gen_image_height is null"),
        pytest.warns(CheckpointWarning, match="gen_image_width is null"),
    ):
        cfg = read(HEAD, "gen_image_height", None, "gen_image_width", None)
    assert (cfg.generation_decoder.gen_image_height, cfg.generation_decoder.gen_image_width) == (512, 512)


def test_a_warning_comes_once(read):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            read(VLM, "pad2square", True)
    assert len(caught) == 1


# --- what would give other numbers


@pytest.mark.parametrize(
    ("file", "path", "value", "said"),
    [
        (VLM, "llm_config.rope_parameters", {"rope_type": "yarn", "factor": 4.0}, "rope_parameters is .*yarn"),
        (VLM, "llm_config.rope_parameters", {"rope_theta": 5e6}, "rope_theta is 1000000, and 5000000.0 in rope_par"),
        (VLM, "llm_config.rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (VLM, "llm_config.rope_scaling", {"rope_type": "linear", "factor": 2}, "rope_scaling is .*linear"),
        (VLM, "llm_config.rope_scaling", {"factor": 2}, "rope_scaling is .*factor"),
        (VLM, "llm_config.partial_rotary_factor", 0.5, "partial_rotary_factor is 0.5"),
        (VLM, "llm_config.layer_types", ["full_attention", "sliding_attention"], "layer_types has sliding_attention"),
        (VLM, "llm_config.max_window_layers", 1, "use_sliding_window is True"),
        (VLM, "llm_config", ABSENT, "llm_config: expected a JSON object"),
        (VLM, "llm_config.architectures", ["Qwen2ForCausalLM"], "architectures is .*Qwen2"),
        (VLM, "quantization_config", {"quant_method": "fp8"}, "quantization_config is .*fp8"),
        (VLM, "llm_config.quantization_config", {"quant_method": "awq"}, "quantization_config is .*awq"),
        (HEAD, "quantization_config", {"quant_method": "bitsandbytes"}, "quantization_config is .*bitsandbytes"),
        (HEAD, "decoder_config.quantization_config", {"a": 1}, "quantization_config"),
        (VAE, "quantization_config", {"quant_method": "torchao"}, "quantization_config is .*torchao"),
        (VLM, "vision_config.norm_type", ABSENT, "norm_type is absent, which means 'rms_norm' to the released class"),
        (VLM, "vision_config.qk_normalization", ABSENT, "qk_normalization is absent, which means True"),
        (VLM, "vision_config", ABSENT, "vision_config: norm_type is absent"),
        (VAE, "input_channels", 4, "input_channels is 4; only 3"),
        (VAE, "latents_mean", [float("nan")] * 16, "latents_mean is nan; expected"),
        (VAE, "latents_std", [1.0] * 15 + [-1.0], r"/c: config parts do not fit together: latents_std has -1.0"),
        (SAMPLER, "prediction_type", ABSENT, "prediction_type is absent, which means 'epsilon'"),
        (SAMPLER, "use_flow_sigmas", ABSENT, "use_flow_sigmas is absent, which means False"),
        (PROCESSOR, "image_processor_kwargs.resample", 2, "resample is 2; only 3"),
        (PROCESSOR, "image_processor_kwargs.rescale_factor", 1.0, "rescale_factor is 1.0"),
        (PROCESSOR, "image_processor_kwargs.do_center_crop", True, "do_center_crop is True"),
        (PROCESSOR, "image_processor_kwargs.size", {"shortest_edge": 56}, "size is .*shortest_edge.*height and width"),
        (PROCESSOR, "image_processor_kwargs.image_mean", [0.5], "image_mean and image_std need three numbers"),
        (PROCESSOR, "image_gen_processor_kwargs.image_std", [0, 1, 1], "image_mean and image_std need three numbers"),
        (PROCESSOR, "image_gen_processor_kwargs.do_normalize", False, "do_normalize is False"),
        (PROCESSOR, "image_gen_processor_kwargs.temporal_patch_size", ABSENT, "temporal_patch_size is absent.* 2 "),
        (PROCESSOR, "image_gen_processor_kwargs.gen_down_sample_ratio", ABSENT, "gen_down_sample_ratio is 2.0"),
    ],
)  # fmt: skip
def test_what_changes_the_numbers_is_refused(read, file, path, value, said):
    more = ("llm_config.use_sliding_window", True) if path.endswith("max_window_layers") else ()
    with pytest.raises(ConfigError, match=said):
        read(file, path, value, *more)


def test_another_sampler_is_refused(read, tmp_path):
    index = tmp_path / "c/model_index.json"
    index.write_text(index.read_text().replace("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"))
    with pytest.raises(ConfigError, match=r"model_index.json: scheduler is .*FlowMatchEuler.*only DPMSolverMultistep"):
        read(VLM)


def test_one_theta_from_either_key(recorded, read):
    def theta(*changes: Any) -> float:
        return read(VLM, *changes).vlm.llm_config.rope_theta

    assert theta("llm_config.rope_theta", ABSENT) == 10000.0
    new = {"rope_theta": 5e6, "rope_type": "default"}
    assert theta("llm_config.rope_theta", ABSENT, "llm_config.rope_parameters", new) == 5e6
    assert theta("llm_config.rope_parameters", {"rope_theta": 1e6}) == recorded.vlm.llm_config.rope_theta


def test_absent_fields_are_the_released_defaults(recorded, read):
    """By hand from the released classes; where parts would not fit together the refusal tells what was taken."""
    head = recorded.generation_decoder
    assert read(HEAD, "pad_to_fix_length", ABSENT).generation_decoder == replace(head, pad_to_fix_length=True)
    dit = read(HEAD, "vlm_cond_position_scale_factor", ABSENT).generation_decoder.decoder_config
    assert dit == replace(head.decoder_config, vlm_cond_position_scale_factor=1.0)
    assert not read(VLM, "vision_config.qkv_bias", ABSENT).vlm.vision_config.qkv_bias
    with pytest.raises(ConfigError, match="hidden_size 64 x 1 selected layers"):
        read(HEAD, "vlm_select_layer", ABSENT)
    with pytest.raises(ConfigError, match="joint_attention_dim 128 is not the context width 2304"):
        read(HEAD, "decoder_projector_type", ABSENT, "output_hidden_size", ABSENT)
    with pytest.raises(ConfigError, match="size 384 x 384 is not the encoder's image_size 56"):
        read(PROCESSOR, "image_processor_kwargs.size", ABSENT)
    means = ("image_processor_kwargs.image_mean", "image_gen_processor_kwargs.image_mean")
    deviations = ("image_processor_kwargs.image_std", "image_gen_processor_kwargs.image_std")
    for value in (ABSENT, None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)
            cfg = read(PROCESSOR, *(item for key in (*means, *deviations) for item in (key, value))).processor
        for kwargs in (cfg.image_processor_kwargs, cfg.image_gen_processor_kwargs):
            assert kwargs.image_mean == (0.48145466, 0.4578275, 0.40821073)
            assert kwargs.image_std == (0.26862954, 0.26130258, 0.27577711)


def test_a_config_that_was_read_is_written_complete(read, tmp_path):
    """What was absent is written with the value that it was taken for."""
    cfg = read(HEAD, "pad_to_fix_length", ABSENT, "vlm_cond_position_scale_factor", ABSENT)
    write_config(cfg, tmp_path / "out")
    assert read_config(tmp_path / "out") == cfg


# --- what is malformed


@pytest.mark.parametrize(
    ("file", "path", "value", "said"),
    [
        (VLM, "llm_config", 5, "llm_config: expected a JSON object, found int"),
        (HEAD, "decoder_config", True, "decoder_config: expected a JSON object, found bool"),
        (VLM, "downsample_ratio", 0, "c: downsample_ratio is 0.0; expected 1 over a whole number"),
        (VLM, "downsample_ratio", 3, "c: downsample_ratio is 3.0; expected 1 over a whole number"),
        (VLM, "vision_config.patch_size", 0, "patch_size is 0; expected at least 1"),
        (VLM, "llm_config.layer_types", 5, "layer_types is 5; expected a list"),
        (VLM, "vision_config.model_type", ["x"], r"model_type is \['x'\]"),
        (HEAD, "flow_shift", 10**400, "flow_shift is a number of 1329 bits; expected a value like 3.0"),
        (HEAD, "flow_shift", float("inf"), "flow_shift is inf; expected a value like 3.0"),
    ],
)
def test_malformed_values_are_named_with_their_file(read, file, path, value, said):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ConfigError, CheckpointWarning), match=rf"{file}.*({said})|/{said}"):
            read(file, path, value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a git-LFS pointer"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is an HTML page"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a":"\xff"}', "is not valid JSON"),
        (b"[]", "expected a JSON object, found list"),
    ],
)
def test_what_is_no_config_is_named_for_what_it_is(read, tmp_path, content, said):
    path: Path = tmp_path / "c" / VAE
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"vae/config\.json:? {said}"):
        read(VLM)
