"""Notebooks: the command that runs them, and the tour as it lies there to be read."""

import ast
import base64
import io
import os
import sys
from itertools import chain

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from experiments.notebooks.__main__ import HERE, main


def write(path, *sources: str):
    cells = [new_markdown_cell("Words."), *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_the_first_failure_is_named(tmp_path, capsys):
    path = write(tmp_path / "a.ipynb", "a = 1", "b = a + 1\nraise ValueError(f'b is {b}')", "open('c', 'w')")
    before = path.read_bytes()
    assert main([str(path), "--write"]) == 1
    said = capsys.readouterr().err
    assert "cell 3 failed\n\nb = a + 1\nraise ValueError" in said and "ValueError: b is 2" in said
    assert path.read_bytes() == before and not (tmp_path / "c").exists()


def test_what_cells_gave_is_kept(tmp_path, capsys):
    picture = "from PIL import Image\nprint('here')\nImage.new('RGB', (3, 2), (255, 0, 0))"
    path = write(tmp_path / "a.ipynb", picture)
    assert main([str(path)]) == 0
    assert not nbformat.read(path, 4).cells[1].outputs
    assert main([str(path), "--write"]) == 0
    stored = nbformat.read(path, 4)
    nbformat.validate(stored)
    printed, shown = stored.cells[1].outputs
    assert printed.text == "here\n" and list(shown.data) == ["image/png"]
    kept = Image.open(io.BytesIO(base64.b64decode(shown.data["image/png"]))).convert("RGB")
    assert kept.size == (3, 2) and kept.getpixel((2, 1)) == (255, 0, 0)
    assert "version" not in stored.metadata.language_info


@pytest.mark.parametrize("library", ["ipykernel", "nbclient", "nbformat"])
def test_what_is_not_installed_is_named(library, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["a.ipynb"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: notebooks need {library}, which is not installed; pip install 'internvlu-jax[notebook]'\n"


def test_a_notebook_that_is_not_there_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "a.ipynb")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "a.ipynb" in said and said.count("\n") == 1


@pytest.mark.parametrize("path", sorted(HERE.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_as_they_are_read(path):
    """Run once from the first cell to the last, small, and of public names alone."""
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not [place for place in ("/tmp/", "/home/", "/Users/", os.getcwd()) if place in text]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = list(chain.from_iterable(cell.outputs for cell in cells))
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", ()) for output in outputs) > 5
    nodes = list(chain.from_iterable(ast.walk(ast.parse(cell.source)) for cell in cells))
    names = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    names += [name.name for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names]
    assert not [name for name in names if name.startswith("_")]
