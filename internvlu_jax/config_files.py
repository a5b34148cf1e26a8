"""Reads and writes the released config files.

What the released code makes of a key that is absent, or has another value than here, stands in `config_released`; keys
that do not touch a number (dropout, initialiser ranges, versions) are left alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from internvlu_jax.config import SLOTS, ConfigError, HeadConfig, InternVLUConfig, MMDiTConfig, VAEConfig, VLMConfig
from internvlu_jax.config_released import KEYS, SCHEDULER, Keys, as_object, check_keys, note, released_view
from internvlu_jax.utils.files import read_object, write_json

T = TypeVar("T")

# By field of InternVLUConfig.
_PART_FILES = {
    "vlm": "vlm/config.json",
    "generation_decoder": "generation_decoder/config.json",
    "vae": "vae/config.json",
    "processor": "processor/processor_config.json",
}
_INDEX_FILE = "model_index.json"
_SCHEDULER_FILE = "scheduler/scheduler_config.json"
CONFIG_FILES = (*_PART_FILES.values(), _SCHEDULER_FILE)

# Files of tensors, in shards and as variants, and the indexes of shards.
_TENSORS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt)(\.([\w.]*\.)?index(\.[\w.]+)?\.json)?$")

_LARGEST = 3e38  # numbers in configs stay below this, for they are used in float32

# The key that names the type of a slot in JSON.
_TYPE_KEYS = {"vision_config": "model_type", "vae": "_class_name", "generation_decoder": "model_type"}

# Fields that the released code lacks, for it has only their defaults: left out of the files at these. Models of studies
# have other values.
_OURS: dict[type, tuple[str, ...]] = {
    VAEConfig: ("patch_size",),
    HeadConfig: ("sources", "positions"),
    MMDiTConfig: ("gate", "context_norm"),
}


def parse(kind: type[T], data: Any, where: str) -> T:
    """Builds the config `kind` from a JSON object.

    Raises:
        ConfigError: a value has the wrong type, or a key has a value that is not implemented; `where` names the place.
    """
    data, keys = as_object(data, where), KEYS.get(kind, Keys())
    check_keys(keys, data, where)
    values = {}
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        place = f"{where}: {f.name}"
        if data.get(f.name) is not None or (f.name in data and kind not in KEYS):
            values[f.name] = _field(f, data[f.name], place)
        elif kind in KEYS:
            values[f.name] = _absent(f, keys, f.name in data, place)
    return kind(**values)


def _absent(f: dataclasses.Field, keys: Keys, is_null: bool, where: str) -> Any:
    """What a field that is absent or null means to the released class, to which a null flag is a false one."""
    example = _default(f)
    if is_null and isinstance(example, bool):
        return False
    default = keys.defaults.get(f.name, example)
    if f.name in keys.defaults and default is None:
        return None
    if is_null:
        note(f"{where} is null; taken for the default of the released class")
    if f.name in keys.defaults:
        return _convert(default, example, where)
    return parse(type(example), {}, where) if type(example) in KEYS else example


def _field(f: dataclasses.Field, value: Any, where: str) -> Any:
    if f.name in SLOTS:
        return parse(_slot_type(f.name, as_object(value, where), where), value, where)
    value = _convert(value, _default(f), where)
    if type(value) is int and value < 1:
        raise ConfigError(f"{where} is {value}; expected at least 1")
    return value


def _slot_type(slot: str, data: dict[str, Any], where: str) -> type:
    """The type that a JSON object chooses; the released one where it names none, or one that is not known.

    The released code does not look at the name. What another model's tensors are shows when they are loaded.
    """
    known, key = SLOTS[slot], _TYPE_KEYS[slot]
    released = next(iter(known))
    name = data.get(key) or released
    if not _is_known(slot, name):
        note(f"{where}: {_unknown_type(slot, name)}; taken for {released!r}")
        name = released
    return known[name]


def _is_known(slot: str, name: Any) -> bool:
    return isinstance(name, str) and name in SLOTS[slot]


def _unknown_type(slot: str, name: Any) -> str:
    return f"{_TYPE_KEYS[slot]} is {name!r}; expected one of {', '.join(map(repr, SLOTS[slot]))}"


def check_types(directory: str | Path) -> None:
    """Refuses a model of our own layout with a part of a type that is not known; else it would be read as another.

    Raises:
        ConfigError: naming the file, the type and those that are known.
    """
    root = Path(directory)
    vlm = _load(root / _PART_FILES["vlm"])
    places = {"vision_config": as_object(vlm.get("vision_config") or {}, str(root / _PART_FILES["vlm"]))}
    places |= {slot: _load(root / _PART_FILES[slot]) for slot in ("vae", "generation_decoder")}
    for slot, data in places.items():
        name = data.get(_TYPE_KEYS[slot])
        if name and not _is_known(slot, name):
            raise ConfigError(f"{root / _PART_FILES.get(slot, _PART_FILES['vlm'])}: {_unknown_type(slot, name)}")


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
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(example, bool):
        valid = isinstance(value, bool)
    elif isinstance(example, int):
        valid = is_number and isinstance(value, int)
    elif isinstance(example, float):
        valid = is_number and abs(value) < _LARGEST  # neither an infinity nor no number at all
        value = float(value) if valid else value
    else:
        valid = isinstance(value, type(example))
    if not valid:
        raise ConfigError(f"{where} is {_short(value)}; expected a value like {example!r}")
    return value


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def to_json(cfg: Any) -> dict[str, Any]:
    """The JSON object of one config, with the keys that this code takes for granted spelled out.

    A key that the released code lacks is left out at its default.
    """
    keys = [_TYPE_KEYS[slot] for slot, known in SLOTS.items() if type(cfg) in known.values()]
    out: dict[str, Any] = {**{key: cfg.model_type for key in keys}, **KEYS.get(type(cfg), Keys()).written}
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
    _check_sampler(root)
    parts = _agreed({part: _read_part(part, root / name) for part, name in _PART_FILES.items()}, root)
    try:
        return InternVLUConfig(**parts)
    except ConfigError as error:
        raise ConfigError(f"{root}: {error}") from error


def _check_sampler(root: Path) -> None:
    """Refuses any sampler but the implemented one; model_index.json chooses its class where there is such a file."""
    check_keys(SCHEDULER, _load(root / _SCHEDULER_FILE), str(root / _SCHEDULER_FILE))
    index = root / _INDEX_FILE
    entry = _load(index).get("scheduler") if index.is_file() else None
    if isinstance(entry, list) and entry[1:] != [SCHEDULER.ignored["_class_name"]]:
        raise ConfigError(f"{index}: scheduler is {entry!r}; only {SCHEDULER.ignored['_class_name']} is implemented")


def _agreed(parts: dict[str, Any], root: Path) -> dict[str, Any]:
    """The parts, with the head's factor of reduction that of the VAE: the released code does not use its own."""
    head, vae = parts.get("generation_decoder"), parts.get("vae")
    if not isinstance(head, HeadConfig) or vae is None or head.vae_downsample_factor == vae.downsample_factor:
        return parts
    note(
        f"{root / _PART_FILES['generation_decoder']}: vae_downsample_factor is {head.vae_downsample_factor}, which the "
        f"released code does not use; computed with the VAE's {vae.downsample_factor}"
    )
    return {**parts, "generation_decoder": replace(head, vae_downsample_factor=vae.downsample_factor)}


def _read_part(part: str, path: Path) -> Any:
    """One part of `InternVLUConfig` from its file."""
    return _part(part, _load(path), str(path))


def _part(part: str, data: dict[str, Any], where: str) -> Any:
    """One part from what its file holds."""
    (field,) = (f for f in dataclasses.fields(InternVLUConfig) if f.name == part)
    return _field(field, released_view(part, data, where), where)


def _load(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error


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
    head = cfg.generation_decoder
    for part in (head, head.decoder_config) if isinstance(head, HeadConfig) else ():
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
    for path in _small_files(source, ()):
        copied = target / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)


def _small_files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All files in a folder and those below but tensors and hidden ones, also behind links; no folder within itself.

    Raises:
        ConfigError: a link leads nowhere.
    """
    above = (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or _TENSORS.search(path.name):
            continue
        if path.is_dir():
            yield from () if path.resolve() in above else _small_files(path, above)
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise ConfigError(f"{path} is a link to {path.readlink()}, which is not there")


def write_config(cfg: InternVLUConfig, directory: str | Path, originals: str | Path | None = None) -> None:
    """Writes the config files.

    Args:
        originals: a directory in the released layout, that of the model before any change. Those of its config files
            that say what `cfg` says are written byte for byte; the others keep the keys that are not read here, where
            these do not make another model of it.
    """
    kept = set() if originals is None else _unchanged(cfg, Path(originals))
    for name, data in _files(cfg).items():
        path = Path(directory) / name
        if originals is not None and name in kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(originals) / name, path)
        else:
            write_json(path, data if originals is None else _with_kept_keys(cfg, name, data, Path(originals) / name))


def _with_kept_keys(cfg: InternVLUConfig, name: str, data: dict[str, Any], original: Path) -> dict[str, Any]:
    """What a part's file holds, with the keys of the one that it takes the place of, if it says the same then."""
    part = next((part for part, file in _PART_FILES.items() if file == name), None)
    if part is None or not original.is_file():
        return data
    merged = _over(read_object(original), data)
    with warnings.catch_warnings(), suppress(ConfigError):
        warnings.simplefilter("ignore")  # it was read once
        if _part(part, deepcopy(merged), str(original)) == getattr(cfg, part):
            return merged
    return data


def _over(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The keys of both, with the values of the new one; of another type of part those of the new one alone."""
    if old.get("model_type") != new.get("model_type"):
        return new

    def value(key: str, given: Any) -> Any:
        return _over(old[key], given) if isinstance(given, dict) and isinstance(old.get(key), dict) else given

    return {**old, **{key: value(key, given) for key, given in new.items()}}


def _unchanged(cfg: InternVLUConfig, root: Path) -> set[str]:
    """Names of the config files in a directory that say what `cfg` says."""
    held = {part: _read_part(part, root / name) for part, name in _PART_FILES.items() if (root / name).is_file()}
    parts = _agreed(held, root)
    names = {_PART_FILES[part] for part, value in parts.items() if value == getattr(cfg, part)}
    head, scheduler = parts.get("generation_decoder"), root / _SCHEDULER_FILE
    if head is not None and head.flow_shift == cfg.generation_decoder.flow_shift and scheduler.is_file():
        names.add(_SCHEDULER_FILE)
    return names


def _files(cfg: InternVLUConfig) -> dict[str, dict[str, Any]]:
    """What the config files hold, by name. The scheduler's has the head's shift, which is the one that is used."""
    files = {name: _part_json(getattr(cfg, part)) for part, name in _PART_FILES.items()}
    return files | {_SCHEDULER_FILE: {**SCHEDULER.written, "flow_shift": cfg.generation_decoder.flow_shift}}


def _part_json(part: Any) -> dict[str, Any]:
    """The JSON object of one file: the inverse of `released_view`."""
    data = to_json(part)
    if type(part) is VLMConfig:
        data["tie_word_embeddings"] = part.llm_config.tie_word_embeddings
        data["force_image_size"] = part.vision_config.image_size
    if type(part) is HeadConfig:
        for key in ("video_position_scale_factor", "vlm_cond_position_scale_factor"):
            data[key] = data["decoder_config"][key]
    return data
