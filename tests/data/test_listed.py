"""Records beside their pictures: arrays of JSON, captions, files that are none of these, and pictures elsewhere."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import pack
from internvlu_jax.data.records import BrokenRecord, PictureFile
from internvlu_jax.data.sources import JsonFile, open_source

T2I = {"task": "t2i", "prompt": 'a [red], "ball" \\ {', "image": "a.png"}
TALK = {"id": 7, "conversations": [{"from": "human", "value": "an ä?"}, {"from": "gpt", "value": '],"{\\'}]}


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value, 0, 0)).save(path)
    return path


# Arrays


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n \t"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_is_its_lines(tmp_path, indent, start, ascii_only):
    records = [T2I, TALK, T2I]
    text = json.dumps(records, indent=indent, ensure_ascii=ascii_only).encode()
    source = open_source(write(tmp_path / "all.json", start + text + b"\n"))
    assert isinstance(source, JsonFile) and [record.data for record in source] == records
    assert [record.where.rsplit("/", 1)[1] for record in source] == ["all.json:1", "all.json:2", "all.json:3"]


def test_any_array_is_split_as_json_reads_it(tmp_path):
    """Random nested values against the standard reader."""
    rng = np.random.default_rng(0)

    def value(depth: int):
        kind = rng.integers(5 if depth < 3 else 3)
        if kind < 2:
            return "".join(rng.choice(list('a",[]{}\\é\n:'), rng.integers(6)))
        if kind == 2:
            return [None, True, -1.5e3, 7][rng.integers(4)]
        found = [value(depth + 1) for _ in range(rng.integers(4))]
        return found if kind == 3 else {f"{n}{key}": key for n, key in enumerate(found) if isinstance(key, str)}

    for n in range(40):
        values = [{"value": value(0)} for _ in range(rng.integers(1, 9))]
        path = write(tmp_path / f"{n}.json", json.dumps(values, indent=[None, 2][n % 2]))
        source = open_source(path)
        assert len(source) == len(values)
        for number, expected in enumerate(values):
            with pytest.raises(BrokenRecord, match=rf"\.json:{number + 1}: task is missing \(there are \['value'\]\)"):
                source[number]
            start, stop = source._starts[number], source._stops[number]
            assert json.loads(path.read_bytes()[start:stop]) == expected


@pytest.mark.parametrize(
    ("end", "good", "broken"),
    [
        ("]", 2, 0), (",]", 2, 0), ("", 1, 1), (",", 2, 0), ("] trailing", 2, 1), (",{]", 2, 1), (', {"a": "', 2, 1),
        (", 5]", 2, 1), (', "' + '\\"' * 50_000, 2, 1), (", " + "[" * 100_000, 2, 1), (",}}}]]", 2, 1),
    ],
)  # fmt: skip
def test_damage_in_an_array_is_a_broken_record(tmp_path, end, good, broken):
    source = open_source(write(tmp_path / "all.json", f"[{json.dumps(T2I)}, {json.dumps(TALK)}{end}"))
    found = []
    for n in range(len(source)):
        try:
            found.append(source[n].task)
        except BrokenRecord as error:
            assert str(error).startswith(f"{tmp_path}/all.json:{n + 1}: ")
    assert len(found) >= good - broken and len(source) - len(found) <= broken and found[0] == "t2i"


@pytest.mark.parametrize("text", ["[]", "[ ]", "\ufeff[\n]\n", "[,,]"])
def test_an_array_of_nothing(tmp_path, text):
    with pytest.raises(ValueError, match=r"all\.json: no records; expected one JSON object a line, or an array"):
        open_source(write(tmp_path / "all.json", text))


# What is no text of JSON


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", json.dumps(T2I).encode("utf-16"), "text in UTF-16; save it as UTF-8"),
        ("a.jsonl", json.dumps(T2I).encode("utf-16-le"), "text in UTF-16"),
        ("a.json", json.dumps([T2I]).encode("utf-16-be"), "text in UTF-16"),
        ("a.jsonl.gz", gzip.compress(json.dumps(T2I).encode(), mtime=0), "compressed with gzip; unpack it first"),
        ("a.jsonl", b"PAR1" + bytes(50), "a Parquet file; give it a name that ends in .parquet"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a git-LFS pointer"),
        ("a.jsonl", b"<!DOCTYPE html><html>", "an HTML page"),
        ("a.jsonl", b"PK\x03\x04" + bytes(9), "a zip archive"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, name, data, said):
    with pytest.raises(ValueError, match=f"{name} is {said}"):
        open_source(write(tmp_path / name, data))


@pytest.mark.parametrize("url", ["https://a.b/c.jsonl", "hf://datasets/a/b", "s3://bucket/a.jsonl"])
def test_urls_are_not_paths(url):
    with pytest.raises(ValueError, match=f"{url} is a URL; download what it names"):
        open_source(url)


# Captions


def test_captions_beside_pictures(tmp_path, capsys):
    for n, name in enumerate(["b.png", "a.JPG", "in/c.webp"]):
        picture(tmp_path / name, n)
        write((tmp_path / name).with_suffix(".txt"), f"\ufeff picture {n} \n")
    write(tmp_path / "readme.txt", "of no picture")
    source = open_source(tmp_path)
    records = [source[n] for n in range(len(source))]
    assert [(r.task, r.prompt, r.image.name) for r in records] == [
        ("t2i", "picture 1", "a.JPG"), ("t2i", "picture 0", "b.png"), ("t2i", "picture 2", "in/c.webp"),
    ]  # fmt: skip
    assert records[1].image.pixels().shape == (3, 4, 3) and records[1].where == str(tmp_path / "b.png")
    assert pack.main([str(tmp_path), str(tmp_path / "out")]) == 0
    assert "3 records" in capsys.readouterr().out
    packed = open_source(tmp_path / "out")
    assert [r.prompt for r in packed] == ["picture 1", "picture 0", "picture 2"]
    write(tmp_path / "b.txt", "longer than before")
    assert open_source(tmp_path).digest != source.digest


@pytest.mark.parametrize(
    ("caption", "where", "said"),
    [
        (None, "b.png", "there is no caption b.txt beside it"),
        (b"", "b.png", "prompt is ''; expected text"),
        (b"\xff\xfea\0", "b.txt", "it is text in UTF-16"),
        (b"\xe4", "b.txt", "not UTF-8"),
    ],
)
def test_captions_that_cannot_be_used(tmp_path, caption, where, said):
    picture(tmp_path / "a.png"), write(tmp_path / "a.txt", "fine"), picture(tmp_path / "b.png")
    if caption is not None:
        write(tmp_path / "b.txt", caption)
    source = open_source(tmp_path)
    assert source[0].prompt == "fine"
    with pytest.raises(BrokenRecord, match=rf"^{tmp_path}/{where}: {said}"):
        source[1]


def test_pictures_without_captions(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"no captions; expected a text file beside each picture, a\.txt beside a\.png"
    ):
        open_source(tmp_path)


# Pictures elsewhere


def test_pictures_outside_are_read_only_if_told_to(tmp_path):
    inner = tmp_path / "set"
    outside = picture(tmp_path / "b.png")
    picture(inner / "in" / "a.png")
    os.symlink(outside, inner / "link.png")
    names = ["in/a.png", "../set/in/a.png", str(inner / "in/a.png"), "../b.png", str(outside), "link.png"]
    path = write(inner / "all.jsonl", "\n".join(json.dumps({**T2I, "image": name}) for name in names))
    for use in (PictureFile.size, PictureFile.pixels, PictureFile.read):
        for n, name in enumerate(names):
            use(open_source(path, allow_outside=True)[n].image)
            if n < 3:
                use(open_source(path)[n].image)
            else:
                with pytest.raises(ValueError, match=f"^{name}: it lies outside of {inner}.*set data.allow_outside"):
                    use(open_source(path)[n].image)


def test_a_picture_that_is_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    source = open_source(write(tmp_path / "all.jsonl", json.dumps(T2I)))
    for use in (PictureFile.size, PictureFile.pixels, PictureFile.read):
        with pytest.raises(ValueError, match=r"^a\.png: .*is a pipe"):
            use(source[0].image)
