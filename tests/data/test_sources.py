"""Which source a name opens: the kinds that are no files, and paths that only look like them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from internvlu_jax.data.sources import JsonFile, open_source
from internvlu_jax.small_world import WorldSource

ROOT = Path(__file__).parents[2]
RECORD = json.dumps({"task": "t2i", "prompt": "a", "image": "a.png"})


def test_a_world_is_found_by_its_scheme():
    assert isinstance(open_source("world:small/text/picture?length=3"), WorldSource)


@pytest.mark.parametrize("name", ["foo:bar", "worlds:small", "World:small"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"{name}: .*no kind of source '{name.split(':')[0]}:'; expected world:$"):
        open_source(name)


@pytest.mark.parametrize("name", ["foo:bar.jsonl", "2024-01-01T10:00.jsonl"])
def test_a_file_with_a_colon_opens(name, tmp_path, monkeypatch):
    (tmp_path / name).write_text(RECORD + "\n")
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name, str(tmp_path / name)):
        assert isinstance(open_source(path), JsonFile) and len(open_source(path)) == 1


def test_a_path_with_a_colon_that_is_not_there_is_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no such file; expected JSON lines"):
        open_source(tmp_path / "foo:bar.jsonl")


def test_data_does_not_import_the_small_world():
    """It is looked up when a name asks for it, in worker processes too."""
    code = "import sys, internvlu_jax.data.workers; sys.exit(any('small_world' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
