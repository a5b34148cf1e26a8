"""Pillow's decoders within a bounded memory: how large a picture may be, and the parts that Pillow leaves out.

A file of some hundred kB can hold 180 million pixels. Whoever reads them all, and copies them on the way from one form
to the next, needs gigabytes. So the size is checked by the header, a large picture is halved (a JPEG while it is
decoded), and what follows decoding goes band by band.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from io import BufferedReader, BytesIO
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageCms

_HALVED = 2**26  # pixels above which a picture is halved; over what one camera in a thousand takes
_MEMORY = 900e6  # bytes that decoding may take; what follows is small beside it
# Bytes a pixel while it is decoded and halved, as measured; the rest are 20 in JPEG 2000, 16 to 20 in WebP, 10 in AVIF.
# Of a TIFF it is 9, but Pillow's decoder warns from 89 million pixels on.
_BYTES = {"PNG": 6, "JPEG": 2, "MPO": 2, "BMP": 6, "DIB": 6, "PPM": 6, "TGA": 6, "PCX": 6, "GIF": 6, "TIFF": 10.1}
_OTHERS = 24
_PROGRESSIVE = 8  # all coefficients wait for the last scan
_KEYED = 10  # read twice, see `_low_bytes`
_FEW_BITS = {"L;2": 3, "L;4": 15}  # the largest samples of grey PNGs, see `_png_samples`
_BAND = 2**22  # pixels
# Formats that are not read: Pillow runs Ghostscript on the first, and opens what lies in the second by any decoder.
_PROGRAMS = ("EPS", "IPTC")
_NOT_THEIRS = (SyntaxError, IndexError, TypeError, struct.error)  # as decoders say that a file is not theirs
_SHARED = (b"mif1", b"msf1")  # brands with which AVIF begins, which is read, and HEIC, which is not

# XYZ of red, green and blue, under the white of profiles (D50).
_SRGB_PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


def opened(file: BufferedReader | BytesIO) -> Image.Image:
    """A picture whose header is read, as by `Image.open`, but for that one's limit of pixels: `check_size` is ours.

    Pillow warns from 89 million pixels on and raises from 179 million on, by a number that all of a process share.

    Raises:
        UnidentifiedImageError: no format of Pillow's takes the file, but for those that are not read (`_PROGRAMS`).
        ValueError: it begins as one does, and that one's decoder fails on it. Others as decoders do.
    """
    start, tried, broken = file.read(16), set(_PROGRAMS), list[str]()
    for register in (Image.preinit, Image.init):  # the frequent formats, then all
        register()
        for name in Image.ID:
            factory, accepts = Image.OPEN[name]
            if name in tried or not (accepts is None or _takes(accepts, start)):
                continue
            tried.add(name)
            file.seek(0)
            try:
                return factory(file, "")
            except _NOT_THEIRS as error:
                if accepts is not None:
                    broken.append(_broken(name, error))
            except (OSError, ValueError) as error:
                if accepts is None or getattr(error, "errno", None):  # of the disk
                    raise
                raise ValueError(_broken(name, error)) from error
    if broken and start[8:12] not in _SHARED:
        raise ValueError(broken[0])
    raise Image.UnidentifiedImageError("not a picture")


def _takes(accepts: Callable[[bytes], bool | str], start: bytes) -> bool:
    """Whether a file that begins so is one of a format's, and can be read."""
    try:
        takes = accepts(start)
    except _NOT_THEIRS:
        return False
    return bool(takes) and not isinstance(takes, str)  # a reason why it cannot be read


def _broken(name: str, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    return f"it begins as {name} and is truncated, damaged or of a kind that is not read: {reason}"


def check_size(image: Image.Image) -> None:
    """Raises ValueError if reading the pixels of an opened file would take over 1 GB."""
    each = _BYTES.get(image.format or "", _OTHERS)
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        each = _PROGRESSIVE
    if _is_keyed(image):
        each = _KEYED
    most = int(_MEMORY / each)
    if image.width * image.height > most:
        raise ValueError(
            f"the picture is {image.width} x {image.height} pixels; a {image.format} of its kind is read up to "
            f"{most / 1e6:.0f} million, so that it takes less than 1 GB of memory; make it smaller"
        )


def step(image: Image.Image) -> int:
    """2 if the picture is halved (sides rounded up) when it is decoded, else 1."""
    return 2 if image.width * image.height > _HALVED else 1


def reduce_while_decoding(image: Image.Image) -> None:
    """Has a large picture decoded at half its size, where its format can do so; its size changes.

    What is still large then, a JPEG of over 268 million pixels, is halved once more.
    """
    if step(image) > 1:
        image.draft(image.mode, (image.width // 2, image.height // 2))


def loaded(image: Image.Image) -> Image.Image | None:
    """Reads the pixels; of RGB with 16 bits and a transparent value the second bytes too, which it returns.

    The transparent value of a grey PNG of 2 or 4 bits, which Pillow leaves as it is, is spread over 8 as its pixels.

    Raises:
        ValueError: they are truncated or damaged, or of a format that is not read.
    """
    if image.format in _PROGRAMS and getattr(image, "tile", None):  # opened by the caller, and not loaded yet
        raise ValueError(
            f"the picture is in the format {image.format}, which is not read: it can hold a program that "
            "would be run; save it as PNG or JPEG"
        )
    most = _FEW_BITS.get(_png_samples(image))
    try:
        low = _low_bytes(image) if _is_keyed(image) else None
        image.load()
    except Exception as error:  # a broken file can raise nearly anything in Pillow's decoders
        raise ValueError(f"the picture is truncated or damaged: {error}") from error
    if most and isinstance(key := image.info.get("transparency"), int):
        image.info["transparency"] = (key & most) * (255 // most)
    return low


def bands(image: Image.Image) -> Iterator[tuple[int, int]]:
    """(first, one after the last) row of bands of some millions of pixels, of even heights but for the last."""
    height = max(2, _BAND // max(image.width, 1) // 2 * 2)
    for top in range(0, image.height, height):
        yield top, min(top + height, image.height)


def rows_of(image: Image.Image, top: int, bottom: int) -> Image.Image:
    """Some rows of a picture; itself where they are all."""
    return image if (top, bottom) == (0, image.height) else image.crop((0, top, image.width, bottom))


def _is_keyed(image: Image.Image) -> bool:
    """Whether it is a PNG of RGB with 16 bits in which one value stands for transparent, not read yet."""
    return _png_samples(image) == "RGB;16B" and isinstance(image.info.get("transparency"), tuple)


def _png_samples(image: Image.Image) -> str:
    """Pillow's name of how the samples of a PNG lie in its file; "" once they are read, and of other formats."""
    tiles = getattr(image, "tile", [])
    return tiles[0][3] if image.format == "PNG" and tiles else ""


def _low_bytes(image: Any) -> Image.Image:
    """The lower bytes of a PNG of RGB with 16 bits; Pillow gives the upper ones.

    They are what comes out if the numbers are taken for little-endian ones.
    """
    file = image.fp
    position = file.tell()
    file.seek(0)
    low: Any = opened(file)
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    low.load()
    file.seek(position)
    return low


def transparent(band: Image.Image, low: Image.Image | None) -> Bool[np.ndarray, "y x"] | None:
    """Where an RGB picture has the one colour that its file calls transparent. None if there is no such colour."""
    key = band.info.get("transparency")
    if band.mode != "RGB" or not isinstance(key, tuple):
        return None
    values = np.array(key)
    if low is None:
        return np.all(np.asarray(band) == values & 255, axis=-1)
    return np.all((np.asarray(band) == values >> 8) & (np.asarray(low) == values & 255), axis=-1)


def srgb_transform(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """From the colours of a profile with other primaries, as cameras and screens of a wide gamut have, to sRGB.

    None for a profile with sRGB's primaries, of which most pictures have one, and for one that cannot be read or has no
    primaries.
    """
    stored = image.info.get("icc_profile")
    if not stored or image.mode not in ("RGB", "RGBA"):
        return None
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(stored))
        primaries = [getattr(profile.profile, f"{name}_colorant") for name in ("red", "green", "blue")]
        if None in primaries or np.allclose([xyz for xyz, _ in primaries], _SRGB_PRIMARIES, atol=0.02):
            return None
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, image.mode)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # metadata is as often broken as absent
        return None
