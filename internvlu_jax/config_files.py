"""Reads and writes the released config files.

A key whose value changes the mathematics and that this code does not implement is refused by name (`_FIXED`); keys that
do not touch it (dropout, initialiser ranges, versions) are left alone.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from internvlu_jax.config import (
    ConfigError,
    GenerationImageProcessorConfig,
    HeadConfig,
    ImageProcessorConfig,
    InternVLUConfig,
    MMDiTConfig,
    ProcessorConfig,
    Qwen3Config,
    SchedulerConfig,
    VAEConfig,
    VisionConfig,
    VLMConfig,
)

T = TypeVar("T")

CONFIG_FILES: dict[str, tuple[str, type]] = {
    "vlm": ("vlm/config.json", VLMConfig),
    "generation_decoder": ("generation_decoder/config.json", HeadConfig),
    "vae": ("vae/config.json", VAEConfig),
    "scheduler": ("scheduler/scheduler_config.json", SchedulerConfig),
    "processor": ("processor/processor_config.json", ProcessorConfig),
}

# Keys whose value decides the mathematics and for which one value is implemented; an absent key has that value.
# Written out on export, so that the released code reads a complete file.
_FIXED: dict[type, dict[str, Any]] = {
    VisionConfig: {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "qk_normalization": False,
    },
    Qwen3Config: {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_scaling": None,
        "use_sliding_window": False,
    },
    VLMConfig: {
        "architectures": ["InternVLUChatModel"],
        "model_type": "internvlu_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "anyres_image_size": False,
        "pad2square": False,
    },
    MMDiTConfig: {},
    HeadConfig: {
        "architectures": ["InternVLUGenerationDecoder"],
        "model_type": "internvlu_generation_decoder",
        "padding_encoder_hidden_states": True,
    },
    VAEConfig: {"_class_name": "AutoencoderKLQwenImage", "attn_scales": []},
    SchedulerConfig: {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "solver_order": 2,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "euler_at_final": False,
        "thresholding": False,
        "use_dynamic_shifting": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
    },
    ProcessorConfig: {
        "processor_class": "InternVLUProcessor",
        "image_gen_processor_class": "InternVLUDynamicResGenerationImageProcessor",
    },
    ImageProcessorConfig: {"do_resize": True, "do_rescale": True, "do_normalize": True, "crop_to_patches": False},
    GenerationImageProcessorConfig: {"do_resize": True, "do_pad": False, "temporal_patch_size": 1},
}


def parse(kind: type[T], data: Any, where: str) -> T:
    """Builds the config `kind` from a JSON object.

    Raises:
        ConfigError: a value has the wrong type, or a key has a value that is not implemented; `where` names the place.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {type(data).__name__}")
    for key, wanted in _FIXED.get(kind, {}).items():
        if key in data and data[key] != wanted:
            raise ConfigError(f"{where}: {key} is {data[key]!r}; only {wanted!r} is implemented")
    values = {}
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        if f.name in data:
            values[f.name] = _convert(data[f.name], _default(f), f"{where}: {f.name}")
    return kind(**values)


def _default(f: dataclasses.Field) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _convert(value: Any, example: Any, where: str) -> Any:
    """Checks `value` against the type of the field's default, which every field has."""
    if dataclasses.is_dataclass(example):
        return parse(type(example), value, where)
    if isinstance(example, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}; expected a list")
        return tuple(_convert(v, example[0], where) for v in value)
    if isinstance(example, bool):
        valid = isinstance(value, bool)
    elif isinstance(example, int):
        valid = isinstance(value, int) and not isinstance(value, bool)
        valid = valid or (value is None and where.endswith("max_length"))
    elif isinstance(example, float):
        valid = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if valid else value
    else:
        valid = isinstance(value, type(example))
    if not valid:
        raise ConfigError(f"{where} is {value!r}; expected a value like {example!r}")
    return value


def to_json(cfg: Any) -> dict[str, Any]:
    """The JSON object of one config, with the keys that this code takes for granted spelled out."""
    out: dict[str, Any] = dict(_FIXED.get(type(cfg), {}))
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        out[f.name] = to_json(value) if dataclasses.is_dataclass(value) else value
    return json.loads(json.dumps(out))


def read_config(directory: str | Path) -> InternVLUConfig:
    """Reads the config files of a directory in the released layout.

    Raises:
        ConfigError: naming every file that is missing, or the first value that is not implemented.
    """
    root = Path(directory)
    missing = [name for name, _ in CONFIG_FILES.values() if not (root / name).is_file()]
    if missing:
        raise ConfigError(
            f"{root} is not a complete InternVL-U checkpoint: missing {', '.join(missing)}. "
            "Expected the released layout: vlm/, generation_decoder/, vae/, scheduler/, processor/."
        )
    parts: dict[str, Any] = {}
    files: dict[str, str] = {}
    for part, (name, kind) in CONFIG_FILES.items():
        files[name] = (root / name).read_text(encoding="utf-8")
        parts[part] = parse(kind, _released_quirks(part, _load(files[name], root / name)), str(root / name))
    return InternVLUConfig(**parts, files=files)


def _load(text: str, path: Path) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error


def _released_quirks(part: str, data: dict[str, Any]) -> dict[str, Any]:
    """Resolves keys that the released files say in two places."""
    if not isinstance(data, dict):
        return data
    data = dict(data)
    if part == "vlm":
        # The flag stands at the top, in llm_config, or in both; either ties the head.
        llm = dict(data.get("llm_config") or {})
        llm["tie_word_embeddings"] = bool(data.get("tie_word_embeddings") or llm.get("tie_word_embeddings"))
        data["llm_config"] = llm
        vision = dict(data.get("vision_config") or {})
        vision["image_size"] = data.get("force_image_size") or vision.get("image_size", VisionConfig.image_size)
        data["vision_config"] = vision
    if part == "generation_decoder":
        # The top-level factors overwrite those of decoder_config, as the released constructor does.
        inner = dict(data.get("decoder_config") or {})
        for key in ("video_position_scale_factor", "vlm_cond_position_scale_factor"):
            if key in data:
                inner[key] = data[key]
        data["decoder_config"] = inner
    return data


def write_config(cfg: InternVLUConfig, directory: str | Path) -> None:
    """Writes the config files, byte for byte as they were read where `cfg.files` has them."""
    root = Path(directory)
    for part, (name, _) in CONFIG_FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = cfg.files.get(name) or json.dumps(_as_released(part, to_json(getattr(cfg, part))), indent=2) + "\n"
        path.write_text(text, encoding="utf-8")


def _as_released(part: str, data: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_released_quirks`; a key that the released code lacks is left out at its default."""
    if part == "vae" and data["patch_size"] == 1:
        del data["patch_size"]
    if part == "vlm":
        data["tie_word_embeddings"] = data["llm_config"]["tie_word_embeddings"]
        data["force_image_size"] = data["vision_config"]["image_size"]
    if part == "generation_decoder":
        for key in ("video_position_scale_factor", "vlm_cond_position_scale_factor"):
            data[key] = data["decoder_config"][key]
    return data
