"""safetensors files, one or sharded with an index: headers first, one tensor at a time, nothing half written.

A file is 8 bytes of header length (little endian), a JSON header {name: {dtype, shape, data_offsets}}, then the data.
Tensors are read with ordinary reads into their own memory: a memory map would count the whole file as used.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.checks import listed, raise_problems
from converters.rules import DTYPES, READABLE, WIDENED, ConversionError, LazyTensor, TensorInfo, loaded_dtype
from internvlu_jax.utils.files import foreign_kind, read_json, write_json, written_whole

# File name without suffix: transformers' and diffusers'. A directory has one of them.
STEMS = ("model", "diffusion_pytorch_model")
# The same with the name of a variant within (model.bf16.safetensors), as both libraries write it; shards have none.
_VARIANT = re.compile(
    rf"({'|'.join(STEMS)})(\.\w+\.safetensors|\.safetensors\.index\.\w+\.json|\.safetensors\.\w+\.index\.json)"
)
SHARD_BYTES = 5_000_000_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_HEADER_LIMIT = 100_000_000
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip

# The bits of the exponent, all of them set in infinities and NaN alone, and the integers that have such bits.
_EXPONENTS = {
    "float32": (np.uint32, np.uint32(0x7F800000)),
    "float16": (np.uint16, np.uint16(0x7C00)),
    "bfloat16": (np.uint16, np.uint16(0x7F80)),
}
_STRIP = 2**17


class TensorReader:
    """The tensors of one part: `infos` from the headers, `read` for the data of one."""

    def __init__(self, files: list[Path]) -> None:
        """Reads the headers.

        Raises:
            ConversionError: every file that is truncated or not safetensors, with the reason.
        """
        self.files = files
        self.infos: dict[str, TensorInfo] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        problems = []
        for path in files:
            try:
                self._add(path)
            except ConversionError as error:
                problems.append(str(error))
        raise_problems(problems)

    def _add(self, path: Path) -> None:
        header, start = read_header(path)
        for name, entry in header.items():
            if name in self.infos:
                raise ConversionError(f"{path} holds {name}, which {self._places[name][0].name} holds too")
            self.infos[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]))
            self._places[name] = (path, start + entry["data_offsets"][0])

    def names_in(self, path: Path) -> set[str]:
        return {name for name, (file, _) in self._places.items() if file == path}

    def read(self, name: str) -> np.ndarray:
        """The data of one tensor, as a new array of the dtype that a parameter has, see `rules.loaded_dtype`.

        Raises:
            ConversionError: the dtype is not one of `rules.READABLE`, or the file ends too early.
        """
        info, (path, offset) = self.infos[name], self._places[name]
        if info.dtype not in READABLE:
            raise ConversionError(f"{name} in {path} is {info.dtype}; expected one of {', '.join(READABLE)}")
        stored = DTYPES[info.dtype] if info.dtype in DTYPES else WIDENED[info.dtype][0]
        out = np.empty(info.shape, stored)
        with path.open("rb") as file:
            file.seek(offset)
            got = file.readinto(out.reshape(-1).view(np.uint8).data)
        if got != out.nbytes:
            raise ConversionError(f"{path} is truncated: {name} ends after {got} of {out.nbytes} bytes")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            return out.astype(loaded_dtype([info.dtype]), copy=False)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """(entries by tensor name, where the data starts).

    Raises:
        ConversionError: the file is unreadable, truncated, or not safetensors.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_HEADER_LIMIT, size - 8):
                kind = foreign_kind(path)
                reason = f"it is {kind}" if kind else f"its header does not fit its {size} bytes"
                raise ConversionError(f"{path} is truncated or not safetensors: {reason}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        spans = sorted(_span(name, entry) for name, entry in header.items())
    except OSError as error:
        raise ConversionError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{path} is not safetensors: its header is corrupt ({error})") from error
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            raise ConversionError(f"{path} is corrupt: {name} starts at byte {begin} of the data, expected {end}")
        end = stop
    if size != 8 + length + end:
        state = "truncated" if size < 8 + length + end else "corrupt"
        raise ConversionError(f"{path} is {state}: {size} bytes long, its header says {8 + length + end}")
    return header, 8 + length


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int, str]:
    """(first byte, byte after the last, name); checks the length where the dtype's is known."""
    begin, end = entry["data_offsets"]
    numbers = [begin, end, *entry["shape"]]
    if not isinstance(entry["dtype"], str) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(
            f"{name} has dtype {entry['dtype']!r}, shape {entry['shape']!r} and offsets {begin!r}, {end!r}"
        )
    needed = math.prod(entry["shape"]) * _ITEM_BYTES.get(entry["dtype"], 0)
    if not (0 <= begin <= end) or (entry["dtype"] in _ITEM_BYTES and end - begin != needed):
        raise ValueError(f"{name} spans bytes {begin} to {end}, its shape and dtype need {needed}")
    return begin, end, name


def open_part(directory: Path) -> TensorReader:
    """The tensors of one part of a released directory: one file, or shards with an index, either of a variant.

    Raises:
        ConversionError: there are none (with the reason where there are pickles instead), there are several variants,
            shards are missing, or the index and the shards name different tensors.
    """
    for stem in STEMS:
        single, index = directory / f"{stem}.safetensors", directory / f"{stem}.safetensors.index.json"
        if single.is_file():
            return TensorReader([single])
        if index.is_file():
            return _open_shards(index)
    variants = sorted(p for p in directory.glob("*") if _VARIANT.fullmatch(p.name) and p.is_file())
    if len(variants) > 1:
        names = listed(p.name for p in variants)
        raise ConversionError(f"{directory} has several variants, {names}: keep one, or name it {STEMS[0]}.safetensors")
    if variants:
        return _open_shards(variants[0]) if variants[0].suffix == ".json" else TensorReader(variants)
    pickles = [p.name for p in sorted(directory.glob("*")) if p.suffix in _PICKLES]
    if pickles:
        raise ConversionError(
            f"{directory} has no safetensors, only {listed(pickles)}: pickles, which can run any code when they are "
            "read. Convert them with the safetensors library where they can be trusted"
        )
    raise ConversionError(f"{directory} has no tensors: expected {' or '.join(s + '.safetensors' for s in STEMS)}, "
                          "or shards with an index")  # fmt: skip


def _open_shards(index: Path) -> TensorReader:
    try:
        weight_map = read_json(index)["weight_map"]
        shards = [index.parent / name for name in sorted(set(weight_map.values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index} is not an index of shards: {error}") from error
    outside = [p.name for p in shards if p.parent != index.parent]
    missing = [p.name for p in shards if not p.is_file()]
    if outside or missing:
        raise ConversionError(f"{index} names {listed(outside or missing)}, not to be found in {index.parent}")
    reader = TensorReader(shards)
    problems = []
    for path in shards:
        held, named = reader.names_in(path), {n for n, file in weight_map.items() if file == path.name}
        if named - held:
            problems.append(
                f"{path} lacks {len(named - held)} tensors that its index names: {listed(sorted(named - held))}"
            )
        if held - named:
            problems.append(f"{path} holds {len(held - named)} tensors that its index does not name there: "
                            f"{listed(sorted(held - named))}")  # fmt: skip
    raise_problems(problems)
    return reader


def write_part(directory: Path, stem: str, tensors: Mapping[str, LazyTensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `STEM.safetensors`, or shards of at most `shard_bytes` (a larger tensor alone) and their index.

    Every file appears under its name only when it is whole.
    """
    shards = _split(tensors, shard_bytes)
    if len(shards) == 1:
        write_file(directory / f"{stem}.safetensors", tensors)
        return
    weight_map = {}
    for i, names in enumerate(shards, 1):
        file = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(directory / file, {name: tensors[name] for name in names})
        weight_map.update(dict.fromkeys(names, file))
    total = sum(byte_count(t.info) for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / f"{stem}.safetensors.index.json", index)


def byte_count(info: TensorInfo) -> int:
    """Bytes of the tensor's data; 0 where the dtype is unknown."""
    return math.prod(info.shape) * _ITEM_BYTES.get(info.dtype, 0)


def _split(tensors: Mapping[str, LazyTensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        size = byte_count(tensor.info)
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def write_file(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Writes one safetensors file, a tensor at a time, in the order of the safetensors library: widest dtype, name."""
    names = sorted(tensors, key=lambda name: (-_ITEM_BYTES[tensors[name].info.dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        info = tensors[name].info
        begin, end = end, end + byte_count(info)
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            array = np.asarray(tensors[name].read(), order="C")
            if (array.shape, array.dtype) != (tensors[name].info.shape, DTYPES[tensors[name].info.dtype]):
                raise ConversionError(f"{name} became {array.dtype}{array.shape}, not {tensors[name].info}")
            file.write(array.reshape(-1).view(np.uint8).data)


def all_finite(array: np.ndarray) -> bool:
    """Whether an array of one of `rules.DTYPES` holds neither NaN nor infinities; told by its bits, in strips."""
    bits, exponent = _EXPONENTS[array.dtype.name]
    flat = array.reshape(-1).view(bits)
    strips = (flat[i : i + _STRIP] & exponent for i in range(0, flat.size, _STRIP))
    return all(strip.max() != exponent for strip in strips)
