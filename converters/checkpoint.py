"""A whole checkpoint in the released layout <-> our parameters."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters.checks import find_problems, left_out, listed, raise_problems, wrong_shapes
from converters.engine import ConversionError, Row, Rule, convert, export
from converters.head import head_rules
from converters.tensors import TensorReader, all_finite, byte_count, open_part, write_part
from converters.vae import vae_rules
from converters.vlm import vlm_rules
from internvlu_jax.config import ConfigError, InternVLUConfig
from internvlu_jax.config_files import CONFIG_FILES, check_released, read_config, write_assets
from internvlu_jax.config_released import note
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.processing.tokenizer import MODEL_INPUTS, TOKENIZER_CLASS
from internvlu_jax.utils.files import new_directory, read_json, write_json
from internvlu_jax.utils.tree import paths

# What the released pipeline is built from; written where the source directory had no such file.
MODEL_INDEX = {
    "_class_name": "InternVLUPipeline",
    "_diffusers_version": "0.35.1",
    "vlm": ["internvlu.vlm", "InternVLUChatModel"],
    "generation_decoder": ["internvlu.diffusion", "InternVLUGenerationDecoder"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "processor": ["internvlu.processing_internvlu", "InternVLUProcessor"],
}


@dataclass(frozen=True)
class Part:
    """Where one part of the parameters lives in the released layout."""

    folder: str
    stem: str
    rows: Callable[[InternVLUConfig], list[Row]]


PARTS = {
    "vlm": Part("vlm", "model", lambda cfg: [*vlm_rules(cfg.vlm)]),
    "head": Part("generation_decoder", "model", lambda cfg: [*head_rules(cfg.generation_decoder)]),
    "vae": Part("vae", "diffusion_pytorch_model", lambda cfg: vae_rules(cfg.vae)),
}


# Tracing the initialisation takes seconds, and loading and exporting a model ask for the same shapes.
released_template = functools.lru_cache(maxsize=8)(param_shapes)


@dataclass(frozen=True)
class Loaded:
    """A released checkpoint in memory. `params` and `extras` have the keys of `PARTS`; see `engine` for extras."""

    config: InternVLUConfig
    params: dict[str, Any]
    extras: dict[str, dict[str, np.ndarray]]


def unchanged(part: str, params: Any) -> Any:
    """The parameters of a part as they are."""
    return params


def on_default_device(path: str, array: np.ndarray) -> jax.Array:
    """Puts a parameter on the default device."""
    return jax.device_put(array)


def load_released(
    directory: str | Path,
    dtype: Any = None,
    place: Callable[[str, np.ndarray], Any] = on_default_device,
    finish: Callable[[str, Any], Any] = unchanged,
) -> Loaded:
    """Loads a directory in the released layout.

    Host memory: the parameters and one parameter more (a stack of layers), so well under 1.3 times the checkpoint.

    Args:
        directory: with vlm/, generation_decoder/, vae/ and the config files.
        dtype: of the parameters; None keeps the checkpoint's.
        place: what becomes of each parameter, by its path among all; by default it goes to the default device.
        finish: what becomes of a part, by its name of `PARTS`, once it is placed and before the next one is read. It
            may empty what it gets.

    Raises:
        ConversionError: all that is missing or does not fit, of all parts together, before any tensor is read; or
            tensors hold NaN or infinities, all of them named together.
        ConfigError: a config describes a model that this code does not implement, and no file is missing or damaged.
    """
    root = Path(directory)
    config, readers = _checked(root)
    template = released_template(config)
    params: dict[str, Any] = {}
    extras: dict[str, dict[str, np.ndarray]] = {}
    damaged: list[str] = []
    for name, part in PARTS.items():
        rows, folder = part.rows(config), root / part.folder
        if left := left_out(rows, readers[name].infos):
            note(f"{folder}: {len(left)} tensors that the model does not have are left out: {listed(left)}")
        watched = _Watched(readers[name], {name for row in rows if isinstance(row, Rule) for name in row.names()})
        placed, extras[name] = convert(rows, watched, template[name], dtype, functools.partial(_placed, place, name))
        params[name] = finish(name, placed)
        if watched.damaged:
            damaged.append(
                f"{folder}: {len(watched.damaged)} tensors hold NaN or infinities: {listed(watched.damaged)}"
            )
    raise_problems(damaged)
    return Loaded(config, params, extras)


def _checked(root: Path) -> tuple[InternVLUConfig, dict[str, TensorReader]]:
    """The config and the opened parts of a whole checkpoint. Raises all that is wrong, see `load_released`.

    Tensors are not compared with a config that cannot be read.
    """
    readers, unopened = _open_parts(root)
    problems = [sentence for part in unopened.values() for sentence in part]
    if missing := _missing_configs(root):
        raise_problems([*missing, *problems])
    try:
        config = _with_table(read_config(root), readers, root)
    except ConfigError as error:
        if problems:
            raise ConversionError("; ".join([str(error), *problems])) from error
        raise
    raise_problems([*problems, *_misfits(root, config, released_template(config), readers)])
    return config, readers


def _placed(place: Callable[[str, np.ndarray], Any], part: str, path: str, array: np.ndarray) -> Any:
    return place(f"{part}/{path}", array)


class _Watched:
    """A reader that remembers which of the tensors that are computed with hold what is no number."""

    def __init__(self, reader: TensorReader, computed: set[str]) -> None:
        self.infos = reader.infos
        self.damaged: list[str] = []
        self._reader, self._computed = reader, computed

    def read(self, name: str) -> np.ndarray:
        array = self._reader.read(name)
        if name in self._computed and not all_finite(array):
            self.damaged.append(name)
        return array


def _with_table(config: InternVLUConfig, readers: dict[str, TensorReader], root: Path) -> InternVLUConfig:
    """The config with the vocabulary of the stored table where that is larger: its rows may be the tokenizer's."""
    llm = config.vlm.llm_config
    table = readers["vlm"].infos.get("language_model.model.embed_tokens.weight") if "vlm" in readers else None
    if table is None or len(table.shape) != 2 or table.shape[0] <= llm.vocab_size:
        return config
    note(
        f"{root / 'vlm'}: the table of tokens has {table.shape[0]} rows, vocab_size is {llm.vocab_size}; all are taken"
    )
    return replace(config, vlm=replace(config.vlm, llm_config=replace(llm, vocab_size=table.shape[0])))


def _open_parts(root: Path) -> tuple[dict[str, TensorReader], dict[str, list[str]]]:
    """By part: the readers of those that can be opened, and why the others cannot."""
    readers: dict[str, TensorReader] = {}
    problems: dict[str, list[str]] = {name: [] for name in PARTS}
    for name, part in PARTS.items():
        try:
            readers[name] = open_part(root / part.folder)
        except ConversionError as error:
            problems[name].append(str(error))
    return readers, problems


def _missing_configs(root: Path) -> list[str]:
    if not root.is_dir():
        return [f"there is no directory {root}"]
    missing = [file for file in CONFIG_FILES if not (root / file).is_file()]
    if missing and any(any(root.glob(f"{folder}adapter_config.json")) for folder in ("", "*/")):
        return [f"{root} holds adapters; expected a checkpoint, which takes these by --adapter or load_lora_weights"]
    return [f"{root} is not a complete InternVL-U checkpoint: it lacks {', '.join(missing)}"] if missing else []


def _misfits(
    root: Path, config: InternVLUConfig, template: dict[str, Any], readers: dict[str, TensorReader]
) -> list[str]:
    """Where the tensors of the opened parts are not those of the model that the config files describe.

    Where they are not, those that would have been left out are named, too: a missing one may have got another name.
    """
    found, unknown = [], []
    for name, reader in readers.items():
        rows, folder = PARTS[name].rows(config), root / PARTS[name].folder
        found += [f"{folder}: {text}" for text in find_problems(rows, reader.infos, paths(template[name]))]
        if left := left_out(rows, reader.infos):
            unknown.append(f"{folder}: {len(left)} tensors not expected: {listed(left)}")
    return [*found, *unknown] if found else []


def export_released(
    directory: str | Path,
    config: InternVLUConfig,
    params: dict[str, Any],
    extras: dict[str, dict[str, np.ndarray]] | None = None,
    originals: str | Path | None = None,
) -> None:
    """Writes a directory in the released layout; nothing appears under its name before it is whole.

    The released code loads it, but for a VAE with `patch_size` over 1, such as the small model's: the layout has a key
    for it, and the released code refuses it.

    Args:
        directory: must not exist, or be empty.
        params: with the keys of `PARTS`.
        extras: as they were loaded; without them the tensors that single pictures do not need are zeros.
        originals: the assets of the model before any change, see `config_files.write_assets`.

    Raises:
        ConfigError: the released code does not know such a model; before anything is written.
        ConversionError: parameters or extras do not fit the config.
        FileExistsError: `directory` exists and is not empty.
    """
    check_released(config)
    raise_problems(f"parameter {text}" for text in wrong_shapes(paths(released_template(config)), paths(params)))
    tensors = {
        name: export(part.rows(config), params.get(name, {}), (extras or {}).get(name)) for name, part in PARTS.items()
    }
    with new_directory(directory) as partial:
        write_assets(config, partial, originals)
        _name_inputs(partial / "processor/tokenizer_config.json")
        if not (partial / "model_index.json").exists():
            write_json(partial / "model_index.json", MODEL_INDEX)
        for name, part in PARTS.items():
            write_part(partial / part.folder, part.stem, tensors[name])


def _name_inputs(path: Path) -> None:
    """Completes what this code once wrote: `MODEL_INPUTS` is needed, see there."""
    config = read_json(path) if path.is_file() else {}
    if config.get("tokenizer_class") == TOKENIZER_CLASS and "model_input_names" not in config:
        write_json(path, {**config, "model_input_names": MODEL_INPUTS})


@dataclass(frozen=True)
class PartSummary:
    """What one part of a released directory holds."""

    files: list[str]
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    problems: list[str]


@dataclass(frozen=True)
class Summary:
    """What a released directory holds, by part, and what is wrong with the directory as a whole."""

    parts: dict[str, PartSummary]
    problems: list[str]

    @property
    def complete(self) -> bool:
        return not self.problems and not any(part.problems for part in self.parts.values())


def summary(directory: str | Path) -> Summary:
    """Looks at a directory, whole or not, without reading tensor data. Never raises for what it finds.

    Parts are checked against the model that the config files describe, where these can be read. `parameters` counts
    the numbers in all released tensors, `dtypes` the tensors of each.
    """
    root = Path(directory)
    readers, problems = _open_parts(root)
    whole = _missing_configs(root)
    try:
        config = None if whole else read_config(root)
    except ConfigError as error:
        config = None
        whole.append(str(error))
    if config is not None:
        config = _with_table(config, readers, root)
        template = released_template(config)
        for name, reader in readers.items():
            problems[name] += _misfits(root, config, template, {name: reader})
    return Summary({name: _summarise(readers.get(name), problems[name]) for name in PARTS}, whole)


def _summarise(reader: TensorReader | None, problems: list[str]) -> PartSummary:
    if reader is None:
        return PartSummary([], 0, 0, 0, {}, problems)
    infos = reader.infos.values()
    return PartSummary(
        files=[path.name for path in reader.files],
        tensors=len(infos),
        parameters=sum(math.prod(info.shape) for info in infos),
        bytes=sum(byte_count(info) for info in infos),
        dtypes=dict(Counter(info.dtype for info in infos)),
        problems=problems,
    )
