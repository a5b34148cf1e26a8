"""Low-rank adapters in PEFT's layout <-> factors beside our kernels (`models.lora`).

    DIR/adapter_config.json            rank, alpha, and what else PEFT needs to make the modules
    DIR/adapter_model.safetensors      base_model.model.MODULE.lora_A.weight [r, in], MODULE.lora_B.weight [out, r]

PEFT wraps one module, so what is written has a directory for each part that is adapted, named as in the released layout
(`vlm/`, `generation_decoder/`); `PeftModel.from_pretrained(vlm, "DIR/vlm")` takes it. What is read may be such a
directory of directories, or one adapter of a part, or of the language model or the MMDiT within it. PEFT's format:
huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converters.adapter_settings import Settings, read_settings
from converters.checkpoint import PARTS, released_template
from converters.checks import listed, raise_problems
from converters.engine import ConversionError, LazyTensor, Rule, TensorInfo
from converters.rules import DTYPE_NAMES
from converters.tensors import TensorReader, all_finite, write_file
from internvlu_jax.config import InternVLUConfig
from internvlu_jax.models.layers import kernel_axes
from internvlu_jax.utils.files import new_directory, write_json
from internvlu_jax.utils.tree import paths

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_BASE = "base_model.model."
# What stands before a module's name in its part, where the adapter is of a module within the part.
_WITHIN = ("", "language_model.", "decoder.")
# A factor of a linear map; "default" is the name that PEFT gives an adapter in a state that was not filtered.
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")


class Factors(NamedTuple):
    """A kernel becomes kernel + a b. a: [*layers, *in, r], b: [*layers, r, *out], float32; b has the scale in it."""

    a: np.ndarray
    b: np.ndarray


Adapter = dict[str, Factors]
"""By the path of a linear map among all parameters: vlm/llm/layers/attn/q."""


class Place(NamedTuple):
    """Where the kernel of a released module is: the path of our linear map, and its layer, None of a single one."""

    path: str
    layer: int | None


class Shape(NamedTuple):
    """Of a kernel: layers of its stack (None where it is none), axes of inputs and of outputs."""

    layers: int | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@functools.lru_cache(maxsize=8)
def linear_maps(config: InternVLUConfig) -> tuple[dict[str, Place], dict[str, Shape]]:
    """The linear maps of a model: (by released name of the module, shapes of the kernels by our path)."""
    places: dict[str, Place] = {}
    shapes: dict[str, Shape] = {}
    for name, part in PARTS.items():
        leaves = paths(released_template(config)[name])
        for rule in part.rows(config):
            if not isinstance(rule, Rule) or not _is_linear(rule):
                continue
            path = f"{name}/{rule.target.removesuffix('/kernel')}"
            whole = tuple(leaves[rule.target].shape)
            stack, inputs = kernel_axes(path.split("/"), len(whole))
            layers = whole[0] if stack else None
            shapes[path] = Shape(layers, whole[stack : stack + inputs], whole[stack + inputs :])
            for i, tensor in enumerate(rule.names()):
                places[tensor.removesuffix(".weight")] = Place(path, None if rule.layers is None else i)
    return places, shapes


def _is_linear(rule: Rule) -> bool:
    """Whether the released tensor is a matrix that multiplies: two axes, and a kernel here."""
    axes = re.findall(r"\([^)]*\)|\S+", rule.pattern.split("->")[0])
    return rule.target.endswith("/kernel") and len(axes) == 2


def read_adapter(directory: str | Path, config: InternVLUConfig) -> Adapter:
    """An adapter in PEFT's layout, for a model.

    Raises:
        ConversionError: there is none, it has what a low-rank update of a linear map cannot say (by name), or it is of
            modules that the model does not have, or of other sizes: everything that is wrong, in one error.
    """
    root = Path(directory)
    places_of_files = [root, *(root / part.folder for part in PARTS.values())]
    folders = [f for f in places_of_files if any((f / name).exists() for name in (CONFIG, TENSORS, PICKLE))] or [root]
    found: dict[Place, Factors] = {}
    problems: list[str] = []
    for folder in folders:
        own = _read_part(folder, config, problems)
        twice = [f"{place.path} {'' if place.layer is None else place.layer}" for place in own if place in found]
        if twice:
            problems.append(f"{folder}: maps that another file adapts, too: {listed(twice)}")
        found |= own
    raise_problems(problems)
    return _stacked(found, linear_maps(config)[1])


def _read_part(folder: Path, config: InternVLUConfig, problems: list[str]) -> dict[Place, Factors]:
    """One directory with both files; what is wrong is added to `problems`."""
    settings, refused = read_settings(folder / CONFIG)
    reader = _open(folder)
    places, shapes = linear_maps(config)
    matched = {name: _FACTOR.fullmatch(_plain(name)) for name in reader.infos}
    tensors: dict[str, dict[str, str]] = {}
    for name, match in matched.items():
        if match is not None:
            tensors.setdefault(match["module"], {})[match["side"]] = name
    known = {module: _find(module, places) for module in tensors}
    kinds = {
        "settings that a low-rank update cannot say": refused,
        "tensors that are no factor of a linear map": [name for name, match in matched.items() if match is None],
        "targets that the model does not have as linear maps": [m for m, place in known.items() if place is None],
        "targets with one factor of two": [module for module, sides in tensors.items() if len(sides) == 1],
    }
    whole = {m: p for m, p in known.items() if p is not None and len(tensors[m]) == 2}
    sizes = [
        f"{module}: {text}"
        for module, place in whole.items()
        for text in _misfits(
            module, [reader.infos[tensors[module][side]] for side in "AB"], shapes[place.path], settings
        )
    ]
    kinds["factors of other sizes"] = sizes
    wrong = [f"{folder}: {len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names]
    if wrong or not tensors:
        problems += wrong or [f"{folder / TENSORS} holds no factor of a linear map"]
        return {}
    found: dict[Place, Factors] = {}
    for module, place in whole.items():
        a, b = (reader.read(tensors[module][side]) for side in "AB")
        if not (all_finite(a) and all_finite(b)):
            problems.append(f"{folder}: {module} holds NaN or infinities")
        if place in found:
            problems.append(f"{folder}: {module} is named in two ways")
        found[place] = _ours(a, b, settings.scale(module), shapes[place.path])
    return found


def _open(folder: Path) -> TensorReader:
    if (folder / TENSORS).is_file():
        return TensorReader([folder / TENSORS])
    pickle = folder / PICKLE
    if pickle.exists():
        raise ConversionError(
            f"{pickle} is a pickle, which can run any code when it is read; convert it with the safetensors library "
            "where it can be trusted"
        )
    raise ConversionError(f"{folder} is no adapter: expected {CONFIG} and {TENSORS} in it")


def _plain(name: str) -> str:
    """A tensor's name without what PEFT puts before, or into it where the wrapped module is within another."""
    return name.replace(_BASE, "", 1)


def _find(module: str, places: Mapping[str, Place]) -> Place | None:
    return next((places[before + module] for before in _WITHIN if before + module in places), None)


def _misfits(module: str, infos: list[TensorInfo], shape: Shape, settings: Settings) -> list[str]:
    """Where the two factors are not [r, in] and [out, r] of the rank that the settings have for the module."""
    rank = settings.rank(module)
    expected = (rank, math.prod(shape.inputs)), (math.prod(shape.outputs), rank)
    return [
        f"lora_{side} is {info.shape}, expected {want}"
        for side, info, want in zip("AB", infos, expected, strict=True)
        if info.shape != want
    ]


def _ours(a: np.ndarray, b: np.ndarray, scale: float, shape: Shape) -> Factors:
    """Factors [r, in] and [out, r] -> [*in, r] and [r, *out]: axes that we keep apart lie one in the other there."""
    rank = len(a)
    first = a.astype(np.float32).T.reshape(*shape.inputs, rank)
    return Factors(first, (scale * b.astype(np.float32)).T.reshape(rank, *shape.outputs))


def _stacked(found: Mapping[Place, Factors], shapes: Mapping[str, Shape]) -> Adapter:
    """Factors of single layers as those of stacks: a layer without any, or of a smaller rank, is filled with zeros."""
    adapter: Adapter = {}
    for path in dict.fromkeys(place.path for place in found):
        shape = shapes[path]
        if shape.layers is None:
            adapter[path] = found[Place(path, None)]
            continue
        own = {i: found[Place(path, i)] for i in range(shape.layers) if Place(path, i) in found}
        rank = max(factors.b.shape[0] for factors in own.values())
        a = np.zeros((shape.layers, *shape.inputs, rank), np.float32)
        b = np.zeros((shape.layers, rank, *shape.outputs), np.float32)
        for i, factors in own.items():
            a[i, ..., : factors.a.shape[-1]], b[i, : factors.b.shape[0]] = factors
        adapter[path] = Factors(a, b)
    return adapter


def trained_adapter(trained: Any, alpha: float, config: InternVLUConfig) -> Adapter:
    """The adapters of a run (`models.lora.add`) as they are read from files.

    Raises:
        ConversionError: as `export_adapter`.
    """
    return {
        path: Factors(np.asarray(a, np.float32), np.float32(alpha / a.shape[-1]) * np.asarray(b, np.float32))
        for path, (a, b) in _trained(trained, config).items()
    }


def _trained(trained: Any, config: InternVLUConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(lora_a, lora_b) by the path of their map."""
    leaves = paths(trained)
    beside = [path for path in leaves if not path.endswith(("/lora_a", "/lora_b"))]
    maps = [path.removesuffix("/lora_a") for path in leaves if path.endswith("/lora_a")]
    strangers = [path for path in maps if path not in linear_maps(config)[1]]
    problems = [f"parameters that are trained beside adapters: {listed(beside)}"] if beside else []
    problems += [f"adapters of maps that the released layout does not have: {listed(strangers)}"] if strangers else []
    if not maps:
        problems.append("there are no adapters")
    raise_problems([f"{text}. Write the whole model instead (--to released or orbax)" for text in problems])
    return {path: (np.asarray(leaves[f"{path}/lora_a"]), np.asarray(leaves[f"{path}/lora_b"])) for path in maps}


def export_adapter(
    directory: str | Path, config: InternVLUConfig, trained: Any, alpha: float, base: str | None = None
) -> None:
    """Writes the adapters of a run in PEFT's layout, a directory for each part that has some.

    Args:
        directory: must not exist, or be empty.
        trained: the run's trained parameters, nested dicts with `lora_a` and `lora_b`.
        base: the model that they were trained on, as its users would name it.

    Raises:
        ConversionError: there are no adapters, or something is trained that PEFT's layout has no place for.
        FileExistsError: `directory` exists and is not empty.
    """
    factors = _trained(trained, config)
    places, _ = linear_maps(config)
    with new_directory(directory) as partial:
        for name, part in PARTS.items():
            own = {m: p for m, p in places.items() if p.path in factors and p.path.startswith(f"{name}/")}
            if not own:
                continue
            tensors = dict(pair for m, p in own.items() for pair in _released(m, p.layer, *factors[p.path]))
            (partial / part.folder).mkdir()
            write_file(partial / part.folder / TENSORS, tensors)
            rank = factors[next(iter(own.values())).path][0].shape[-1]
            write_json(partial / part.folder / CONFIG, _settings(rank, alpha, own, base))


def _released(module: str, layer: int | None, a: np.ndarray, b: np.ndarray) -> Iterable[tuple[str, LazyTensor]]:
    """The two tensors of a module, of the factors of its stack, or of a single map."""
    if layer is not None:
        a, b = a[layer], b[layer]
    rank = a.shape[-1]
    for side, matrix in (("A", a.reshape(-1, rank).T), ("B", b.reshape(rank, -1).T)):
        info = TensorInfo(DTYPE_NAMES[matrix.dtype], matrix.shape)
        yield f"{_BASE}{module}.lora_{side}.weight", LazyTensor(info, matrix.copy)


def _settings(rank: int, alpha: float, modules: Iterable[str], base: str | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha, "lora_dropout": 0.0,
        "target_modules": sorted(modules), "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True,
        "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
