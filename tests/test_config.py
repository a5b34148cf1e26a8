"""Configurations: the released files there and back, refusals by name, presets and their sizes."""

import dataclasses
import json
import math
import shutil

import jax
import pytest

from converters.checkpoint import PARTS
from internvlu_jax.config import ConfigError, InternVLUConfig
from internvlu_jax.config_files import CONFIG_FILES, read_config, write_config
from internvlu_jax.models.internvlu import modules, param_shapes
from internvlu_jax.presets import PRESETS, debug_config
from internvlu_jax.utils.tree import paths


def test_files_come_back_unchanged(golden, tmp_path):
    write_config(read_config(golden.checkpoint), tmp_path, golden.checkpoint)
    for name in CONFIG_FILES:
        assert (tmp_path / name).read_bytes() == (golden.checkpoint / name).read_bytes()


def test_config_without_originals_is_written_complete(golden, tmp_path):
    cfg = read_config(golden.checkpoint)
    write_config(cfg, tmp_path)
    assert read_config(tmp_path) == cfg


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_come_back(preset, tmp_path):
    write_config(PRESETS[preset](), tmp_path)
    assert read_config(tmp_path) == PRESETS[preset]()


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("vlm/config.json", ["ps_version"], "v1"),
        ("vlm/config.json", ["model_type"], "llava"),
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


def test_broken_json_names_the_file(golden, tmp_path):
    shutil.copytree(golden.checkpoint, tmp_path / "c")
    (tmp_path / "c/vlm/config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"vlm/config\.json is not valid JSON"):
        read_config(tmp_path / "c")


def test_debug_preset_builds():
    cfg = debug_config()
    init = {name: jax.jit(lambda key, m=m: m.init(key, method="build")["params"]) for name, m in modules(cfg).items()}
    params = {name: program(jax.random.key(0)) for name, program in init.items()}  # one program compiles far longer
    assert jax.tree.map(lambda p: p.shape, params) == jax.tree.map(lambda p: p.shape, param_shapes(cfg))
    assert all(bool(jax.numpy.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))


def test_released_sizes():
    """Millions of parameters as published; the autoencoder's with the temporal kernels that pictures never use."""
    cfg = InternVLUConfig()
    shapes = param_shapes(cfg)

    def millions(tree) -> float:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e6

    found = {
        "vit": millions(shapes["vlm"]["vit"]),
        "projector": millions(shapes["vlm"]["projector"]),
        "llm": millions(shapes["vlm"]["llm"]),
        "head": millions(shapes["head"]),
    }
    assert {k: round(v, 1) for k, v in found.items()} == {
        "vit": 304.0,
        "projector": 12.6,
        "llm": 2031.7,
        "head": 1808.0,
    }
    leaves = paths(shapes["vae"])
    released = 0
    for row in PARTS["vae"].rows(cfg):
        shape = row.shape if hasattr(row, "shape") else row.released_shape(leaves[row.target].shape)
        released += math.prod(shape)
    assert round(released / 1e6, 1) == 126.9
