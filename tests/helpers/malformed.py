"""Files as users bring them, damaged at random: every reader of the product against every kind of damage.

    python -m tests.helpers.malformed [TRIALS] [SEED]

prints for every reader how many inputs were taken and refused, and what broke the rule: a reader gives what it read, or
ends with ValueError or OSError that names the file, soon and within 1 GB.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
SECONDS, BYTES = 30, 10**9  # that one trial may take; the seconds of a machine that is busy

Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """make: sound files in an empty folder. read: takes the folder, and the name of the damaged file."""

    make: Callable[[Path], None]
    read: Callable[[Path, str], Any]


@dataclass
class Count:
    """What became of the trials of one reader. faults: what broke the rule."""

    taken: int = 0
    refused: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


class Hang(BaseException):
    """A trial took too long."""


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


# Damage

_ODD_TEXT = [
    b"\0",
    b'"',
    b"{",
    b"]",
    b",",
    b"\n",
    b"\xff",
    b"null",
    b"-1",
    b"1e999",
    b"9" * 400,
    b"NaN",
    b"\\ud800",
    b"<image>",
]
_ODD_VALUES: list[Any] = [
    None, True, -1, 0, 1.5, 1e308, float("nan"), 10**400, "", "x", "\ud800", "\0", "../..", "http://a/b", "a" * 5000,
    [], {}, [[]], [None], {"": {}}, [1] * 50,
]  # fmt: skip
_INSTEAD = [
    b"", b"\0" * 100, b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{\0}\0", b"\x1f\x8b\x08\0", b"<html>", b"5", b"[]",
    b"{}", b'"', b"version https://git-lfs.github.com/spec/v1", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\n\n", b"null",
]  # fmt: skip


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The file after one to three accidents; text of JSON is changed as JSON half of the time."""
    for _ in range(int(rng.integers(1, 4))):
        is_json = data[:1] in (b"{", b"[") and rng.random() < 0.5
        data = (_other_json if is_json else _other_bytes)(data, rng)
    return data


def _other_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    kind = rng.integers(8)
    at = int(rng.integers(len(data) + 1)) if rng.random() < 0.6 else int(rng.integers(min(len(data), 64) + 1))
    length = int(2 ** rng.uniform(0, 8))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[:at] + data[at : at + length] * 2 + data[at + length :]
    if kind == 3:
        return data[:at] + rng.bytes(length) + data[at + length :]
    if kind == 4:
        return data[:at] + _ODD_TEXT[rng.integers(len(_ODD_TEXT))] + data[at:]
    if kind == 5 and rng.random() < 0.3:
        return _INSTEAD[rng.integers(len(_INSTEAD))]
    changed = bytearray(data)
    for place in rng.integers(0, max(len(changed), 1), int(rng.integers(1, 5))):
        if place < len(changed):
            changed[place] = int(rng.choice([changed[place] ^ (1 << int(rng.integers(8))), 0, 255, 127, 128]))
    return bytes(changed)


def _other_json(data: bytes, rng: np.random.Generator) -> bytes:
    """One value of it is another, is gone, or is there twice."""
    start = data.split(b"\n")
    which = int(rng.integers(len(start)))
    try:
        whole, value = True, json.loads(data)
    except (ValueError, RecursionError):
        try:
            whole, value = False, json.loads(start[which])
        except (ValueError, RecursionError):
            return data
    places = list(_places(value))
    if not places:
        return data
    holder, key = places[int(rng.integers(len(places)))]
    kind = rng.integers(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = _ODD_VALUES[int(rng.integers(len(_ODD_VALUES)))]
    sys.set_int_max_str_digits(0)
    text = json.dumps(value).encode()
    sys.set_int_max_str_digits(4300)
    return text if whole else b"\n".join([*start[:which], text, *start[which + 1 :]])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


# Trials


@contextmanager
def _limited() -> Iterator[None]:
    def late(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def memory(name: str) -> int:
    """Bytes that this process has ("VmRSS"), or the most that it ever had ("VmHWM")."""
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def run(name: str, trials: int, seed: int, folder: Path) -> Count:
    """Trials of one reader; each damages one file, and puts it right again."""
    reader, count = READERS[name], Count()
    folder.mkdir(parents=True)
    reader.make(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for trial in range(trials):
        rng = np.random.default_rng((seed, trial))
        path = files[int(rng.integers(len(files)))]
        sound = path.read_bytes()
        bad = damaged(sound, rng)
        path.write_bytes(bad)
        _try(reader, folder, path, count, f"{name}, trial {trial}, {path.name}")
        path.write_bytes(sound)
    return count


def _try(reader: Reader, folder: Path, path: Path, count: Count, label: str) -> None:
    has, peak, start = memory("VmRSS"), memory("VmHWM"), time.perf_counter()
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder, path.relative_to(folder).as_posix())
        count.taken += 1
    except (ValueError, OSError) as error:
        count.refused += 1
        if path.name not in str(error) and str(folder) not in str(error):
            count.faults.append(f"{label}: names no file: {type(error).__name__}: {str(error)[:200]}")
    except Hang:
        count.faults.append(f"{label}: took over {SECONDS} s")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library is none of Exception
        count.faults.append(f"{label}: {type(error).__name__}: {str(error)[:200]}")
    count.slowest = max(count.slowest, time.perf_counter() - start)
    grown = memory("VmHWM") - has
    if grown > BYTES and memory("VmHWM") > peak:
        count.faults.append(f"{label}: took {grown / 1e9:.1f} GB")


def main(trials: int = 30_000, seed: int = 0) -> int:
    """Runs the trials, the readers in turn; returns 1 if a rule was broken."""
    each, faults = -(-trials // len(READERS)), []
    with tempfile.TemporaryDirectory() as folder:
        for name in READERS:
            count = run(name, each, seed, Path(folder) / name.replace(" ", "_"))
            faults += count.faults
            print(
                f"{name:22} {each} inputs: {count.taken} taken, {count.refused} refused, {len(count.faults)} faults, "
                f"slowest {count.slowest:.2f} s",
                flush=True,
            )
            for fault in count.faults[:20]:
                print(f"    {fault}")
    print(f"{each * len(READERS)} inputs, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
