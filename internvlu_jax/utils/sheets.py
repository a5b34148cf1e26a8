"""Sheets of pictures, plain or with a text under each."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from internvlu_jax.utils.files import written_whole

_GAP = 2
_FONT = 11  # pixels
_LINE = 13
_LETTER = 5.6  # pixels, about, of Pillow's own font at that size


def sheet(pictures: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures of one size side by side, by default in rows that make about a square."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    canvas = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white")
    for n, picture in enumerate(pictures):
        canvas.paste(picture, (n % columns * (width + _GAP), n // columns * (height + _GAP)))
    return canvas


def captioned(pictures: Sequence[Image.Image], texts: Sequence[str], columns: int, side: int = 160) -> Image.Image:
    """Pictures, enlarged to `side` pixels without smoothing, each with its text below."""
    lines = [textwrap.wrap(text, max(int(side / _LETTER), 8)) for text in texts]
    room = _LINE * max(map(len, lines)) + 6
    return sheet([_with_text(p, text, side, room) for p, text in zip(pictures, lines, strict=True)], columns)


def _with_text(picture: Image.Image, lines: Sequence[str], side: int, room: int) -> Image.Image:
    canvas = Image.new("RGB", (side + 8, side + room), "white")
    canvas.paste(picture.resize((side, side), Image.Resampling.NEAREST), (4, 2))
    ImageDraw.Draw(canvas).rectangle((3, 1, side + 4, side + 2), outline=(200, 200, 200))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    for n, line in enumerate(lines):
        draw.text((4, side + 4 + n * _LINE), line, (40, 40, 40), font)
    return canvas


def can_write(suffix: str) -> bool:
    """Whether Pillow writes pictures in the format that a suffix names; of the 70 that it knows it only reads 27."""
    name = Image.registered_extensions().get(suffix.lower())
    if name not in Image.SAVE:
        return False
    try:
        Image.new("RGB", (64, 64)).save(BytesIO(), name)
    except (OSError, ValueError):
        return False
    return True


def save_sheet(picture: Image.Image, path: Path) -> None:
    """Writes the file whole or not at all, in the format that its suffix names."""
    with written_whole(path) as partial:
        picture.save(partial)
