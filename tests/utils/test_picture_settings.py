"""Settings come back from a PNG as they went in; of damaged files a ValueError with the name is all that comes."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvlu_jax.processing.images import load_image
from internvlu_jax.utils.picture_settings import found_sources, read_settings, with_settings

SETTINGS = {
    "prompt": 'ein Hund, 犬 "und" \n mehr',
    "seed": 2**32 - 1,
    "steps": 20,
    "image": ["a b.png", os.fsdecode(b"caf\xe9.png")],
    "guidance": None,
}


@pytest.fixture
def png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=with_settings(SETTINGS))
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), pixels)
    return tmp_path / "a.png"


def test_there_and_back(png):
    assert read_settings(png) == SETTINGS


def test_sources_are_those_that_were_read(tmp_path, monkeypatch):
    """Another picture of the name in the current directory is none of them."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_text(folder)
    monkeypatch.chdir(tmp_path / "second")
    picture, crc = Path("../first/b.png"), zlib.crc32(b"first")
    assert found_sources(picture, ["a.png"], [crc]) == ["../first/a.png"]
    assert found_sources(picture, ["a.png"], None) == ["a.png"]  # of a picture that does not say
    monkeypatch.chdir(tmp_path / "first")
    assert found_sources(Path("b.png"), ["a.png"], [crc]) == ["a.png"]


def test_damaged_files(png):
    """Cut, flipped and random bytes, 400 times."""
    whole, rng = png.read_bytes(), np.random.default_rng(1)
    for n in range(400):
        data = bytearray(whole)
        if n % 4 == 0:
            data = data[: rng.integers(len(data))]
        for place in rng.integers(0, max(len(data), 1), rng.integers(1, 6)) if len(data) else ():
            data[place] = rng.integers(256)
        png.write_bytes(data)
        try:
            assert isinstance(read_settings(png), dict)
        except ValueError as error:
            assert str(png) in str(error)


def test_what_is_no_such_file(png, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "long.png").write_bytes(png.read_bytes()[:33] + b"\xff\xff\xff\xffiTXtinternvlu-jax\0\0\0\0\0{}")
    (tmp_path / "deep.png").write_bytes(png.read_bytes().replace(b'{"prompt": "', b"[" * 12))
    for name in ("pipe.png", "text.png", "long.png", "deep.png", "none.png"):
        with pytest.raises(ValueError, match=name):
            read_settings(tmp_path / name)
