"""Runs notebooks from the first cell to the last, each in a fresh kernel; ends with status 1 at the first that fails.

    python -m experiments.notebooks [FILE.ipynb ...] [--write]

Without files it runs all that are here. What fails is printed with the number and the source of its cell. `--write`
keeps what the cells gave in the file. Needs `pip install 'internvlu-jax[notebook]'`.
"""

from __future__ import annotations

import base64
import io
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from PIL import Image

from internvlu_jax.utils.failures import failed, one_line
from internvlu_jax.utils.files import write_text

if TYPE_CHECKING:
    import nbformat

HERE = Path(__file__).parent
_COLOURS = 128  # of a picture that is kept
_PAINT = re.compile(r"\x1b\[[0-9;]*m")  # a kernel colours its errors


@dataclass(frozen=True)
class Arguments:
    files: tyro.conf.Positional[tuple[Path, ...]] = tuple(sorted(HERE.glob("*.ipynb")))
    write: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep what the cells gave in the files."""


def executed(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook after all of its cells, which run in `folder`.

    Raises:
        ValueError: a cell failed; says which, with its source and the error.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        record_timing=False, coalesce_streams=True,
    )  # fmt: skip
    try:
        return client.execute()
    except CellExecutionError as error:
        number, source = _failed(notebook)
        raise ValueError(f"cell {number} failed\n\n{source}\n\n{_PAINT.sub('', error.traceback)}") from None


def _failed(notebook: nbformat.NotebookNode) -> tuple[int, str]:
    """The number, from 1 among all cells, and the source of the one that ended in an error."""
    return next(
        (number, cell.source)
        for number, cell in enumerate(notebook.cells, 1)
        if any(output.output_type == "error" for output in cell.get("outputs", ()))
    )


def as_stored(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """With a small PNG of each picture alone, and nothing that says which Python made it."""
    import nbformat

    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", ()):
                output.data = nbformat.NotebookNode({"image/png": _small(output.data["image/png"])})
    notebook.metadata.get("language_info", {}).pop("version", None)
    return notebook


def _small(png: str) -> str:
    """The file of a picture, in base64, with at most so many colours: two fifths of the bytes."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        fewer = picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    file = io.BytesIO()
    fewer.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m experiments.notebooks", description=__doc__)
    try:
        import ipykernel
        import nbclient
        import nbformat
    except ImportError as error:
        missing = f"notebooks need {error.name}, which is not installed; pip install 'internvlu-jax[notebook]'"
        return failed("error", missing, 2)
    del ipykernel, nbclient
    for path in arguments.files:
        before = time.monotonic()
        try:
            notebook = executed(nbformat.read(path, as_version=4), path.parent)
        except ValueError as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            return failed("error", one_line(error), 2)
        if arguments.write:
            write_text(path, nbformat.writes(as_stored(notebook)) + "\n")
        print(f"{path}: {len(notebook.cells)} cells in {time.monotonic() - before:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
