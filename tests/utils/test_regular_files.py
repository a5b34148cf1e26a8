"""What never ends is named, and not waited for."""

import os
import socket

import pytest

from internvlu_jax.config import ConfigError
from internvlu_jax.config_files import read_config
from internvlu_jax.data.sources import open_source
from internvlu_jax.processing.images import load_image
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.utils.files import foreign_kind, read_json
from internvlu_jax.utils.regular_files import NotAFileError, open_file

READERS = [open_file, read_json, foreign_kind, open_source, load_image]


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_does_not_hang(tmp_path, read):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl is a pipe; write what comes out of it to a file first"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("read", READERS)
def test_a_device_is_not_read_for_ever(read):
    with pytest.raises(ValueError, match="/dev/zero is a device"):
        read("/dev/zero")


def test_a_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for its name may have 100 characters
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("a")
        with pytest.raises((NotAFileError, OSError), match="a"):
            open_file("a")


def test_files_and_folders(tmp_path):
    (tmp_path / "a").write_bytes(b"12")
    with open_file(tmp_path / "a") as file:
        assert file.read() == b"12"
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        open_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "b")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_pipes_in_a_checkpoint(tmp_path, name):
    (tmp_path / "vlm").mkdir()
    os.mkfifo(tmp_path / "vlm" / name)
    os.mkfifo(tmp_path / name)
    with pytest.raises((ConfigError, ValueError), match=str(tmp_path)):
        Tokenizer.from_directory(tmp_path)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_config(tmp_path)
