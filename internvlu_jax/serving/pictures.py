"""Pictures that clients send, and how drawn ones are sent back."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image

from internvlu_jax.processing.images import opened_picture, to_rgb
from internvlu_jax.serving.errors import Refused

# Formats whose reading runs no other program and follows no reference.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


def from_data_url(url: object, name: str, max_pixels: int) -> Image.Image:
    """The picture in a data URL; no other URL, and no path, is ever opened.

    Raises:
        Refused: it is no data URL of a picture, or see `from_bytes`.
    """
    if not isinstance(url, str) or not (match := _DATA_URL.match(url)):
        raise Refused(
            400, f"{name} is no data URL; expected data:image/png;base64,... (other URLs are not read)", param=name
        )
    try:
        data = base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{name}: its base64 is damaged", param=name) from error
    return from_bytes(data, name, max_pixels)


def from_bytes(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """An upright RGB picture from a file's bytes; `max_pixels` are checked before any is decoded.

    Raises:
        Refused: it is no picture, damaged, or too large.
    """
    try:
        with opened_picture(io.BytesIO(data), name) as image:
            if image.format not in _FORMATS:
                raise ValueError(f"the format is {image.format}; expected one of {', '.join(_FORMATS)}")
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"the picture is {image.width} x {image.height}, over {max_pixels} pixels; make it smaller"
                )
            return Image.fromarray(to_rgb(image))
    except ValueError as error:
        raise Refused(400, " ".join(str(error).split()), param=name) from error


def encoded(picture: Image.Image, kind: str) -> str:
    """The file of a picture, in base64. kind: "png", "jpeg" or "webp"."""
    file = io.BytesIO()
    picture.save(file, kind.upper(), **({} if kind == "png" else {"quality": 95}))
    return base64.b64encode(file.getvalue()).decode("ascii")
