"""Pictures to 8-bit arrays: what the vision encoder reads (fixed tiles), what the VAE reads (a size near the original).

The model normalises them (`models.pixels`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageCms

from internvlu_jax.config import GenerationImageProcessorConfig, ImageProcessorConfig
from internvlu_jax.processing.picture_files import pixels_of
from internvlu_jax.processing.resize import resize_bicubic
from internvlu_jax.utils.files import foreign_kind

MAX_ASPECT_RATIO = 200

# XYZ of red, green and blue, under the white of profiles (D50).
_SRGB_PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))

# EXIF orientation to the transposition that undoes it; 1 is upright.
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXCHANGING = [_ORIENTATIONS[number] for number in (5, 6, 7, 8)]  # height and width


def load_image(path: str | Path) -> Image.Image:
    """Reads a picture file as upright 8-bit RGB, so that its `width` and `height` are those one sees.

    Raises:
        ValueError: the file is missing, is not a picture, is truncated, or cannot be used (see `to_rgb`); names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such picture file")
    with opened_picture(path, str(path)) as image:
        return Image.fromarray(to_rgb(image))


@contextmanager
def opened_picture(file: Path | BufferedReader | BytesIO, name: str) -> Iterator[Image.Image]:
    """The picture in `file`, its header read and its pixels not. All that goes wrong in the block names it.

    Raises:
        ValueError: `name`, and what is wrong.
    """
    try:
        opening = file.open("rb") if isinstance(file, Path) else nullcontext(file)
        with opening as opened, Image.open(pixels_of(opened)) as image:
            yield image
    except Image.UnidentifiedImageError as error:
        kind = _foreign_kind(file)
        instead = f"; it is {kind}" if kind else ""
        raise ValueError(f"{name}: not a picture in a format that is known here{instead}") from error
    except Exception as error:  # a broken header, like broken pixels, can raise nearly anything in Pillow
        raise ValueError(f"{name}: {error}") from error


def _foreign_kind(file: Path | BufferedReader | BytesIO) -> str | None:
    if isinstance(file, Path):
        return foreign_kind(file)
    file.seek(0)
    return foreign_kind(file.read(256))


def to_rgb(image: Any) -> UInt8[np.ndarray, "y x 3"]:
    """Upright RGB values of a PIL picture of any kind.

    EXIF orientation is applied, colours of a profile with other primaries than sRGB's become sRGB's, transparency is
    laid on white, 16-bit grey is scaled to 8 bits.

    Raises:
        ValueError: `image` is not a PIL picture, is truncated or damaged, has no pixels, has sides in a ratio over 200,
            or holds numbers of no known range.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected a PIL image, found {type(image).__name__}")
    _check_sides(image.height, image.width)
    try:
        image.load()
    except Exception as error:  # a broken file can raise nearly anything in Pillow's decoders
        raise ValueError(f"the picture is truncated or damaged: {error}") from error
    image = _in_srgb(_upright(image))
    if image.mode.startswith("I"):
        grey = _grey_from_integers(image)
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[np.asarray(image) == transparent] = 255
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.asarray(_opaque(image))


def _check_sides(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"the picture is {width} x {height} pixels; it needs at least one each way")
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise ValueError(
            f"the picture is {width} x {height} pixels: an aspect ratio of {ratio:.4g}, over {MAX_ASPECT_RATIO}"
        )


def _upright(image: Image.Image) -> Image.Image:
    method = _turn(image)
    return image if method is None else image.transpose(method)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of what `to_rgb` gives, without reading pixels.

    An orientation that stands behind the pixels of a PNG is not seen.

    Raises:
        ValueError: the picture has no pixels or an aspect ratio over 200.
    """
    _check_sides(image.height, image.width)
    turned = image.format != "TIFF" and _turn(image) in _EXCHANGING  # of a TIFF Pillow gives the upright size
    return (image.width, image.height) if turned else (image.height, image.width)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright; metadata that cannot be read leaves it as it is stored."""
    try:
        # PNG's own method would read all pixels first
        return _ORIENTATIONS.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # metadata is as often broken as absent, and the pixels are fine without it
        return None


def _in_srgb(image: Image.Image) -> Image.Image:
    """Colours of a profile with other primaries, as cameras and screens of a wide gamut have, in sRGB.

    A profile with sRGB's primaries, of which most pictures have one, changes nothing, and neither does one that cannot
    be read or has no primaries.
    """
    stored = image.info.get("icc_profile")
    if not stored or image.mode not in ("RGB", "RGBA"):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(stored))
        primaries = [getattr(profile.profile, f"{name}_colorant") for name in ("red", "green", "blue")]
        if None in primaries or np.allclose([xyz for xyz, _ in primaries], _SRGB_PRIMARIES, atol=0.02):
            return image
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=image.mode) or image
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # metadata is as often broken as absent
        return image


def _grey_from_integers(image: Image.Image) -> UInt8[np.ndarray, "y x"]:
    """8-bit grey of a picture with integers of 16 bits (modes I;16...) or 32 (mode I).

    Mode I says nothing of its range: it holds 16-bit values from files, 8-bit ones after `convert("I")`. Up to 255 they
    are taken for 8-bit ones.
    """
    values = np.asarray(image).astype(np.int64)
    low, high = np.min(values), np.max(values)
    if low < 0 or high > 65535:
        raise ValueError(f"the picture holds integers from {low} to {high}; convert it to 8 or 16 bits first")
    if image.mode == "I" and high <= 255:
        return values.astype(np.uint8)
    return ((values + 128) // 257).astype(np.uint8)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("the picture holds floating-point numbers of no known range; convert it to 8 bits first")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=32)
def _grids(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) of at most `max_tiles` tiles, by the number of tiles and then by columns."""
    pairs = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles // c + 1)]
    return tuple(sorted(pairs, key=lambda pair: pair[0] * pair[1]))


def tile_grid(height: int, width: int, tile_height: int, tile_width: int, max_tiles: int) -> tuple[int, int]:
    """(columns, rows) of tiles whose ratio is nearest to that of the picture.

    Of equally near ones a later one wins if the picture has more than half as many pixels as its tiles.
    """
    best, best_distance = (1, 1), math.inf
    for columns, rows in _grids(max_tiles):
        distance = abs(width / height - columns / rows)
        roomy = height * width > 0.5 * tile_height * tile_width * columns * rows
        if distance < best_distance or (distance == best_distance and roomy):
            best, best_distance = (columns, rows), distance
    return best


def vision_tiles(
    picture: UInt8[np.ndarray, "y x 3"], cfg: ImageProcessorConfig, max_tiles: int = 1
) -> UInt8[np.ndarray, "n p q 3"]:
    """8-bit tiles for the vision encoder: the picture cut row by row, and if cut at all, the whole of it last."""
    tile_height, tile_width = cfg.size.height, cfg.size.width
    height, width, _ = picture.shape
    columns, rows = tile_grid(height, width, tile_height, tile_width, max_tiles)
    canvas = resize_bicubic(picture, rows * tile_height, columns * tile_width)
    tiles = canvas.reshape(rows, tile_height, columns, tile_width, 3).swapaxes(1, 2)
    tiles = tiles.reshape(rows * columns, tile_height, tile_width, 3)
    if len(tiles) > 1:
        tiles = np.concatenate([tiles, resize_bicubic(picture, tile_height, tile_width)[None]])
    return tiles


def tile_count(height: int, width: int, cfg: ImageProcessorConfig, max_tiles: int = 1) -> int:
    """How many tiles `vision_tiles` makes of a picture of this size."""
    columns, rows = tile_grid(height, width, cfg.size.height, cfg.size.width, max_tiles)
    return columns * rows + (columns * rows > 1)


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int, max_length: int | None = None
) -> tuple[int, int]:
    """(height, width) in multiples of `factor` near the given ones, within the limits on area and side.

    The steps and their roundings are the released code's: where limits contradict each other the last one wins, and a
    narrow side may come out as 0.

    Raises:
        ValueError: a side is below `factor`, or one is over 200 times the other.
    """
    if height < factor or width < factor:
        raise ValueError(f"a source picture needs at least {factor} pixels a side; this one is {width} x {height}")
    _check_sides(height, width)
    if max_length is not None and max(height, width) > max_length:
        scale = max_length / max(height, width)
        # At least 1, where the released code would go on to divide by zero.
        height, width = max(int(height * scale), 1), max(int(width * scale), 1)
    out_height, out_width = round(height / factor) * factor, round(width / factor) * factor
    if out_height * out_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        out_height, out_width = (math.floor(side / shrink / factor) * factor for side in (height, width))
    elif out_height * out_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        out_height, out_width = (math.ceil(side * grow / factor) * factor for side in (height, width))
    if max_length is not None and max(out_height, out_width) > max_length:
        scale = max_length / max(out_height, out_width)
        out_height, out_width = (math.floor(side * scale / factor) * factor for side in (out_height, out_width))
    return out_height, out_width


def generation_pixels(
    picture: UInt8[np.ndarray, "y x 3"], cfg: GenerationImageProcessorConfig
) -> UInt8[np.ndarray, "p q 3"]:
    """A source picture for the VAE: resized by Pillow's bicubic to `smart_resize`.

    Raises:
        ValueError: see `smart_resize`; or the picture is so narrow that nothing of it would be left within the limits.
    """
    height, width, _ = picture.shape
    out_height, out_width = smart_resize(
        height,
        width,
        factor=cfg.factor,
        min_pixels=cfg.min_pixels,
        max_pixels=cfg.max_pixels,
        max_length=cfg.max_length,
    )
    if not (out_height and out_width):
        limits = f"{cfg.min_pixels} to {cfg.max_pixels} pixels and {cfg.max_length or 'any length'} a side"
        raise ValueError(f"a source picture of {width} x {height} pixels is too narrow to fit {limits}")
    return np.asarray(Image.fromarray(picture).resize((out_width, out_height), Image.Resampling.BICUBIC))
