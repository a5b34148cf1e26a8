"""Reads and writes the released config files.

A key whose value changes the mathematics and that this code does not implement is refused by name (`_FIXED`); keys that
do not touch it (dropout, initialiser ranges, versions) are left alone.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, TypeVar

from internvlu_jax.config import (
    SLOTS,
    ConfigError,
    GenerationImageProcessorConfig,
    HeadConfig,
    ImageProcessorConfig,
    InternVLUConfig,
    MMDiTConfig,
    ProcessorConfig,
    Qwen3Config,
    VAEConfig,
    VisionConfig,
    VLMConfig,
)
from internvlu_jax.utils.files import write_json

T = TypeVar("T")

# By field of InternVLUConfig.
_PART_FILES = {
    "vlm": "vlm/config.json",
    "generation_decoder": "generation_decoder/config.json",
    "vae": "vae/config.json",
    "processor": "processor/processor_config.json",
}
# The sampler is implemented as this file says by default; nothing in it is a choice of ours.
_SCHEDULER_FILE = "scheduler/scheduler_config.json"
CONFIG_FILES = (*_PART_FILES.values(), _SCHEDULER_FILE)

_TENSOR_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")

# The key that names the type of a slot in JSON.
_TYPE_KEYS = {"vision_config": "model_type", "vae": "_class_name", "generation_decoder": "model_type"}

# Keys whose value decides the mathematics and for which one value is implemented; an absent key has that value.
# Written out on export, so that the released code reads a complete file.
_FIXED: dict[type, dict[str, Any]] = {
    VisionConfig: {
        "architectures": ["InternVisionModel"],
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
        "padding_encoder_hidden_states": True,
    },
    VAEConfig: {"attn_scales": []},
    ProcessorConfig: {
        "processor_class": "InternVLUProcessor",
        "image_gen_processor_class": "InternVLUDynamicResGenerationImageProcessor",
    },
    ImageProcessorConfig: {"do_resize": True, "do_rescale": True, "do_normalize": True, "crop_to_patches": False},
    GenerationImageProcessorConfig: {"do_resize": True, "do_pad": False, "temporal_patch_size": 1},
}
_FIXED_SCHEDULER = {
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
}
# Fields that the released code lacks, for it has only their defaults: left out of the files at these. Models of studies
# have other values.
_OURS: dict[type, tuple[str, ...]] = {
    VAEConfig: ("patch_size",),
    HeadConfig: ("sources", "positions"),
    MMDiTConfig: ("gate", "context_norm"),
}
# What the released code renders prompts by; here the one template is `processing.chat`.
_TEMPLATE = "qwen2_5-chat-v3"


def parse(kind: type[T], data: Any, where: str) -> T:
    """Builds the config `kind` from a JSON object.

    Raises:
        ConfigError: a value has the wrong type, or a key has a value that is not implemented; `where` names the place.
    """
    _check_fixed(_FIXED.get(kind, {}), _object(data, where), where)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    return kind(**{f.name: _field(f, data[f.name], f"{where}: {f.name}") for f in fields if f.name in data})


def _object(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {type(data).__name__}")
    return data


def _check_fixed(fixed: dict[str, Any], data: dict[str, Any], where: str) -> None:
    for key, implemented in fixed.items():
        if key in data and data[key] != implemented:
            raise ConfigError(f"{where}: {key} is {data[key]!r}; only {implemented!r} is implemented")


def _field(f: dataclasses.Field, value: Any, where: str) -> Any:
    if f.name in SLOTS:
        return parse(_slot_type(f.name, _object(value, where), where), value, where)
    return _convert(value, _default(f), where)


def _slot_type(slot: str, data: dict[str, Any], where: str) -> type:
    """The type that a JSON object chooses; the released one where it names none."""
    known, key = SLOTS[slot], _TYPE_KEYS[slot]
    name = data.get(key, next(iter(known)))
    if name not in known:
        raise ConfigError(f"{where}: {key} is {name!r}; expected one of {', '.join(map(repr, known))}")
    return known[name]


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
    """The JSON object of one config, with the keys that this code takes for granted spelled out.

    A key that the released code lacks is left out at its default.
    """
    keys = [_TYPE_KEYS[slot] for slot, known in SLOTS.items() if type(cfg) in known.values()]
    out: dict[str, Any] = {**{key: cfg.model_type for key in keys}, **_FIXED.get(type(cfg), {})}
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        if f.name in _OURS.get(type(cfg), ()) and value == f.default:
            continue
        out[f.name] = to_json(value) if dataclasses.is_dataclass(value) else value
    return json.loads(json.dumps(out))


def read_config(directory: str | Path) -> InternVLUConfig:
    """Reads the config files of a directory in the released layout.

    Raises:
        ConfigError: naming every file that is missing, or the first value that is not implemented.
    """
    root = Path(directory)
    missing = [name for name in CONFIG_FILES if not (root / name).is_file()]
    if missing:
        raise ConfigError(
            f"{root} is not a complete InternVL-U checkpoint: missing {', '.join(missing)}. "
            "Expected the released layout: vlm/, generation_decoder/, vae/, scheduler/, processor/."
        )
    _check_fixed(_FIXED_SCHEDULER, _load(root / _SCHEDULER_FILE), str(root / _SCHEDULER_FILE))
    return InternVLUConfig(**{part: _read_part(part, root / name) for part, name in _PART_FILES.items()})


def _read_part(part: str, path: Path) -> Any:
    """One part of `InternVLUConfig` from its file."""
    (field,) = (f for f in dataclasses.fields(InternVLUConfig) if f.name == part)
    return _field(field, _released_quirks(part, _load(path)), str(path))


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    return _object(data, str(path))


def _released_quirks(part: str, data: dict[str, Any]) -> dict[str, Any]:
    """Resolves keys that the released files say in two places."""
    data = dict(data)
    if part == "vlm":
        # The flag stands at the top, in llm_config, or in both; either ties the head.
        llm = dict(data.get("llm_config") or {})
        llm["tie_word_embeddings"] = bool(data.get("tie_word_embeddings") or llm.get("tie_word_embeddings"))
        data["llm_config"] = llm
        if data.get("force_image_size"):
            data["vision_config"] = {**(data.get("vision_config") or {}), "image_size": data["force_image_size"]}
    if part == "generation_decoder":
        # The top-level factors overwrite those of decoder_config, as the released constructor does.
        inner = dict(data.get("decoder_config") or {})
        for key in ("video_position_scale_factor", "vlm_cond_position_scale_factor"):
            if key in data:
                inner[key] = data[key]
        data["decoder_config"] = inner
    return data


def check_released(cfg: InternVLUConfig) -> None:
    """Refuses a model that the released code does not know. A VAE with `patch_size` passes, see `export_released`.

    Raises:
        ConfigError: names all that it does not know.
    """
    unknown = []
    parts: dict[str, Any] = {
        "vision_config": cfg.vlm.vision_config,
        "vae": cfg.vae,
        "generation_decoder": cfg.generation_decoder,
    }
    for slot, part in parts.items():
        released, *_ = SLOTS[slot].values()
        if type(part) is not released:
            unknown.append(f"{slot} of type {part.model_type}")
    for part in (cfg.generation_decoder, cfg.generation_decoder.decoder_config):
        for f in dataclasses.fields(part):
            if f.name in _OURS.get(type(part), ()) and (value := getattr(part, f.name)) != f.default:
                unknown.append(f"generation_decoder with {f.name} {value!r}")
    if unknown:
        raise ConfigError(
            f"the released code does not know {' and '.join(unknown)}; such a model is kept in the Orbax layout"
        )


def write_assets(cfg: InternVLUConfig, directory: str | Path, originals: str | Path | None = None) -> None:
    """Writes all of the released layout but the tensors: the config files, and what `originals` has beside them.

    Args:
        originals: as for `write_config`; its tokenizer and other small files are copied.
    """
    if originals is not None:
        _copy_assets(Path(originals), Path(directory))
    write_config(cfg, directory, originals)


def _copy_assets(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and not path.name.endswith(_TENSOR_SUFFIXES):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)


def write_config(cfg: InternVLUConfig, directory: str | Path, originals: str | Path | None = None) -> None:
    """Writes the config files.

    Args:
        originals: a directory in the released layout, that of the model before any change. Those of its config files
            that say what `cfg` says are written byte for byte.
    """
    kept = set() if originals is None else _unchanged(cfg, Path(originals))
    for name, data in _files(cfg).items():
        path = Path(directory) / name
        if originals is not None and name in kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(originals) / name, path)
        else:
            write_json(path, data)


def _unchanged(cfg: InternVLUConfig, root: Path) -> set[str]:
    """Names of the config files in a directory that say what `cfg` says."""
    parts = {part: _read_part(part, root / name) for part, name in _PART_FILES.items() if (root / name).is_file()}
    names = {_PART_FILES[part] for part, value in parts.items() if value == getattr(cfg, part)}
    head, scheduler = parts.get("generation_decoder"), root / _SCHEDULER_FILE
    if head is not None and head.flow_shift == cfg.generation_decoder.flow_shift and scheduler.is_file():
        names.add(_SCHEDULER_FILE)
    return names


def _files(cfg: InternVLUConfig) -> dict[str, dict[str, Any]]:
    """What the config files hold, by name. The scheduler's has the head's shift, which is the one that is used."""
    files = {name: _part_json(getattr(cfg, part)) for part, name in _PART_FILES.items()}
    return files | {_SCHEDULER_FILE: {**_FIXED_SCHEDULER, "flow_shift": cfg.generation_decoder.flow_shift}}


def _part_json(part: Any) -> dict[str, Any]:
    """The JSON object of one file: the inverse of `_released_quirks`."""
    data = to_json(part)
    if type(part) is VLMConfig:
        data["template"] = _TEMPLATE
        data["tie_word_embeddings"] = part.llm_config.tie_word_embeddings
        data["force_image_size"] = part.vision_config.image_size
    if type(part) is HeadConfig:
        for key in ("video_position_scale_factor", "vlm_cond_position_scale_factor"):
            data[key] = data["decoder_config"][key]
    return data
