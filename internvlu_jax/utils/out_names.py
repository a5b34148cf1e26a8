"""Where commands put what they make: `--out`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from internvlu_jax.utils.files import check_writable
from internvlu_jax.utils.sheets import can_write


def check_pictures(out: Path | None, count: int) -> None:
    """Raises ValueError if so many pictures cannot be written there; before the work of drawing them."""
    for path in itertools.islice(names(out), max(count, 1)):
        check_writable(path)
        if not path.absolute().parent.is_dir():
            raise ValueError(f"--out {path}: there is no directory {path.parent}")
        if path.is_dir():
            raise ValueError(f"--out {path} is a directory; expected the name of a picture, such as {path / 'a.png'}")
        if not can_write(path.suffix):
            named = path.suffix or "no"
            raise ValueError(f"--out {path}: {named} suffix; expected that of a picture, such as .png or .jpg")


def check_directory(out: Path) -> None:
    """Raises ValueError if no directory can be there; before the work of filling it."""
    if os.path.isfile(out):
        raise ValueError(f"--out {out} is a file; expected a directory")
    check_writable(out / "texts")


def names(out: Path | None) -> Iterator[Path]:
    """`a.png` then `a-1.png`, ...; the default names skip what exists."""
    path = out or Path("out.png")
    numbered = itertools.chain([path], (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(1)))
    return numbered if out is not None else (p for p in numbered if not p.exists())
