"""Sound files of every kind that users bring, each with the reader of the product that takes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from converters.tensors import write_file
from internvlu_jax.checkpoints.model_directory import FORMAT, MARKER, checked
from internvlu_jax.checkpoints.run_directory import config_differences
from internvlu_jax.checkpoints.seals import check_seal, seal
from internvlu_jax.config_files import read_config
from internvlu_jax.data.records import BrokenRecord
from internvlu_jax.data.sources import entry, open_source, write_shards
from internvlu_jax.processing.images import load_image
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.training.reporting import MetricsFile
from tests.conftest import GOLDENS
from tests.helpers.tensor_files import lazy, read_all, released

CHECKPOINT = GOLDENS / "base/checkpoint"


@dataclass(frozen=True)
class Reader:
    """make: sound files in an empty folder. read: takes the folder, and the name of the damaged file."""

    make: Callable[[Path], None]
    read: Callable[[Path, str], Any]


# Sound files


def _pictures(folder: Path) -> None:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA"):
        rgb.save(
            folder / f"a.{kind.lower()}", kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {})
        )
    rgb.save(folder / "progressive.jpeg", progressive=True, icc_profile=b"x" * 300)
    rgb.convert("P").save(folder / "palette.png", transparency=3)
    rgb.convert("RGBA").save(folder / "alpha.webp", lossless=True)
    rgb.convert("CMYK").save(folder / "cmyk.tiff", compression="tiff_lzw")
    Image.fromarray(np.arange(700, dtype=np.uint16).reshape(20, 35)).save(folder / "grey16.png")
    rgb.save(folder / "moving.gif", save_all=True, append_images=[rgb.rotate(90)] * 3)
    rgb.save(folder / "a.ico")


def _records() -> list[dict[str, Any]]:
    said = [{"from": "system", "value": "s"}, {"from": "human", "value": "<image>\nä?"}, {"from": "gpt", "value": "b"}]
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "c?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "d"}]
    return [
        {"task": "t2i", "prompt": "a", "image": "a.png", "reasoning": "so", "sizes": {"a.png": [3, 4]}},
        {"task": "edit", "prompt": "b", "source": ["a.png", "a.png"], "image": "a.png"},
        {"image": "a.png", "conversations": said},
        {"messages": messages, "images": []},
    ]


def _png() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def _lines(folder: Path) -> None:
    (folder / "a.png").write_bytes(_png())
    (folder / "all.jsonl").write_text("\n".join(json.dumps(record) for record in _records()))


def _array(folder: Path) -> None:
    (folder / "a.png").write_bytes(_png())
    (folder / "all.json").write_text(json.dumps(_records(), indent=1))


def _captions(folder: Path) -> None:
    for n in range(3):
        (folder / f"{n}.png").write_bytes(_png())
        (folder / f"{n}.txt").write_text(f"pictüre {n}")


def _shards(folder: Path) -> None:
    write_shards(folder / "in", [entry(record, {"a.png": _png()}) for record in _records()], 3)
    for path in (folder / "in").iterdir():
        path.rename(folder / path.name)
    (folder / "in").rmdir()


def _parquet(folder: Path) -> None:
    """Pictures in rows of both kinds; pages of either version, with a dictionary or not, of two codecs."""
    import pyarrow
    from pyarrow import parquet

    said = [{"from": "human", "value": "<image>\nä?"}, {"from": "gpt", "value": "b"}]
    picture = {"bytes": _png(), "path": "a.png"}
    drawn = [{"task": "t2i", "prompt": f"a {n % 3}", "image": picture, "label": n} for n in range(7)]
    asked = [{"conversations": said, "images": [picture["bytes"]] * n} for n in (1, 0, 1)]
    parquet.write_table(pyarrow.Table.from_pylist(drawn), folder / "t2i.parquet", row_group_size=3)
    parquet.write_table(
        pyarrow.Table.from_pylist(asked), folder / "ask.parquet", compression="zstd", data_page_version="2.0",
        use_dictionary=False,
    )  # fmt: skip


def _json_of(*parts: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for path in CHECKPOINT.rglob("*"):
            inside = path.relative_to(CHECKPOINT)
            if path.is_file() and path.suffix != ".safetensors" and (not parts or inside.parts[0] in parts):
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / inside)

    return make


def _tensors(folder: Path) -> None:
    write_file(folder / "model.safetensors", lazy(released()))


def _sharded(folder: Path) -> None:
    tensors = lazy(released())
    names = sorted(tensors)
    weight_map = {}
    for n, part in enumerate((names[:2], names[2:]), 1):
        file = f"model-0000{n}-of-00002.safetensors"
        write_file(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _metrics(folder: Path) -> None:
    lines = [json.dumps({"step": n, "loss": 1 / n}) for n in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


_SETTINGS = {"name": "tiny", "steps": 4, "data": {"sources": [["a", 1.0]], "sides": [32]}, "optimizer": {"rates": []}}


def _run(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(_SETTINGS))


def _model(folder: Path) -> None:
    (folder / MARKER).write_text(json.dumps(FORMAT))


def _sealed(folder: Path) -> None:
    (folder / "a").write_bytes(bytes(50))
    (folder / "b").mkdir()
    (folder / "b/c").write_text("{}")
    seal(folder)


# Readers


def _read_source(path: Path) -> int:
    """All records with their pictures; those that are broken say where they are."""
    source, found = open_source(path), 0
    for n in range(len(source)):
        try:
            for picture in source[n].pictures().values():
                try:
                    picture.size()
                    picture.pixels()
                except ValueError as error:  # of a picture, which the loader puts behind the place of its record
                    if picture.name not in str(error):
                        raise
            found += 1
        except BrokenRecord as error:
            if not str(error).startswith(str(path)):
                raise
    return found


def _read_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.from_directory(folder / "processor")
    tokenizer.decode(tokenizer.encode("a pictüre"))


READERS = {
    "pictures": Reader(_pictures, lambda folder, name: load_image(folder / name)),
    "JSON lines": Reader(_lines, lambda folder, _: _read_source(folder / "all.jsonl")),
    "array of JSON": Reader(_array, lambda folder, _: _read_source(folder / "all.json")),
    "captions": Reader(_captions, lambda folder, _: _read_source(folder)),
    "Parquet": Reader(_parquet, lambda folder, name: _read_source(folder / name)),
    "shards": Reader(_shards, lambda folder, _: _read_source(folder)),
    "configs": Reader(_json_of(), lambda folder, _: read_config(folder)),
    "safetensors": Reader(_tensors, lambda folder, _: read_all(folder)),
    "index of safetensors": Reader(_sharded, lambda folder, _: read_all(folder)),
    "tokenizer": Reader(_json_of("processor"), lambda folder, _: _read_tokenizer(folder)),
    "metrics": Reader(_metrics, lambda folder, name: MetricsFile(folder / name, 5).close()),
    "config of a run": Reader(_run, lambda folder, _: config_differences(folder, _SETTINGS)),
    "model directory": Reader(_model, lambda folder, _: checked(folder, FORMAT)),
    "checksums": Reader(_sealed, lambda folder, _: check_seal(folder)),
}
