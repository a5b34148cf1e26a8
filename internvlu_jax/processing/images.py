"""Pictures to 8-bit arrays: what the vision encoder reads (fixed tiles), what the VAE reads (a size near the original).

The model normalises them (`models.pixels`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageCms

from internvlu_jax.config import GenerationImageProcessorConfig, ImageProcessorConfig
from internvlu_jax.processing import decoding
from internvlu_jax.processing.picture_files import pixels_of
from internvlu_jax.processing.resize import resize_bicubic
from internvlu_jax.utils.files import foreign_kind
from internvlu_jax.utils.regular_files import open_file

MAX_ASPECT_RATIO = 200

# EXIF orientation to what undoes it; 1 is upright. The last four exchange height and width.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
_EXCHANGING = (5, 6, 7, 8)


def load_image(path: str | Path) -> Image.Image:
    """Reads a picture file as upright 8-bit RGB, so that its `width` and `height` are those one sees.

    Raises:
        ValueError: the file is missing or out of reach, is not a picture, is truncated, or cannot be used (see
            `to_rgb`); names it.
    """
    path = Path(path)
    try:
        is_there = path.exists() and not path.is_dir()
    except OSError as error:  # a folder that may not be entered; a name that is too long for any file
        name = str(path)
        raise ValueError(f"{name if len(name) <= 200 else name[:200] + '...'}: {error.strerror}") from error
    if not is_there:
        raise ValueError(f"{path}: no such picture file")
    with opened_picture(path, str(path)) as image:
        return Image.fromarray(to_rgb(image))


def as_picture(value: Any) -> Any:
    """A picture given as the name of a file, or as an array: whole numbers to 255 or floats to 1, [y, x], [y, x, 1],
    [y, x, 3] or [y, x, 4], as a PIL one; anything else as it is, for `to_rgb` to judge.

    Raises:
        ValueError: the file cannot be read (`load_image`), or the array is no picture.
    """
    if isinstance(value, str | Path):
        return load_image(value)
    if not (hasattr(value, "__array__") and hasattr(value, "dtype") and hasattr(value, "shape")):
        return value
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":  # which NumPy does not count among floats
        array = array.astype(np.float32)
    kind = array.dtype.kind
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    levels = 1 if kind == "f" else 255
    shaped = array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4)))
    if not (shaped and kind in "uif" and array.min() >= 0 and array.max() <= levels):
        raise ValueError(
            f"an array of shape {array.shape} and dtype {array.dtype} is no picture; expected [y, x, 3], [y, x, 4] or "
            "[y, x], of whole numbers from 0 to 255 or floats from 0 to 1 (several go into a list)"
        )
    return Image.fromarray(np.rint(array * 255).astype(np.uint8) if kind == "f" else array.astype(np.uint8))


@contextmanager
def opened_picture(file: Path | BufferedReader | BytesIO, name: str) -> Iterator[Image.Image]:
    """The picture in `file`, its header read and its pixels not. All that goes wrong in the block names it.

    Raises:
        ValueError: `name`, and what is wrong.
    """
    try:
        opening = open_file(file) if isinstance(file, Path) else nullcontext(file)
        with opening as opened, decoding.opened(pixels_of(opened)) as image:
            decoding.check_size(image)
            decoding.reduce_while_decoding(image)
            yield image
    except Image.DecompressionBombError as error:  # of a decoder that looks itself
        raise ValueError(f"{name}: the picture has over 179 million pixels; make it smaller") from error
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

    EXIF orientation is applied, RGB and RGBA of a profile with other primaries than sRGB's become sRGB's, transparency
    is laid on white, 12 and 16-bit grey is scaled to 8 bits, a picture of over 67 million pixels is halved.

    Raises:
        ValueError: `image` is not a PIL picture, is truncated or damaged, has no pixels, has sides in a ratio over 200,
            or holds numbers of no known range.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected a PIL image, found {type(image).__name__}")
    _check_sides(image.height, image.width)
    low = decoding.loaded(image)
    step, to_srgb = decoding.step(image), decoding.srgb_transform(image)
    most = _most_grey(image) if image.mode.startswith("I") else 255
    photometric = getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation)
    white_is_zero = image.mode.startswith("I;") and photometric == 0  # which Pillow turns round for 8 bits alone
    pixels = np.empty((-(-image.height // step), -(-image.width // step), 3), np.uint8)
    for top, bottom in decoding.bands(image):
        low_rows = low and decoding.rows_of(low, top, bottom)
        band = _rgb_band(decoding.rows_of(image, top, bottom), low_rows, to_srgb, most, white_is_zero)
        small = band if step == 1 else np.asarray(Image.fromarray(band).reduce(step))
        pixels[top // step : -(-bottom // step)] = small
    upright = _UPRIGHT.get(_orientation(image))
    return pixels if upright is None else np.ascontiguousarray(upright(pixels))


def _rgb_band(
    band: Image.Image,
    low: Image.Image | None,
    to_srgb: ImageCms.ImageCmsTransform | None,
    most: int,
    white_is_zero: bool,
) -> UInt8[np.ndarray, "y x 3"]:
    """RGB values of some rows as they are stored. `low`: see `decoding.loaded`; `most`, `white_is_zero`: of grey with
    more than 8 bits, see `_most_grey`."""
    if band.mode.startswith("I"):
        values = np.asarray(band).astype(np.int32)
        grey = ((values * 255 + most // 2) // most).astype(np.uint8)
        if white_is_zero:
            grey = 255 - grey
        if isinstance(transparent := band.info.get("transparency"), int):
            grey[values == transparent] = 255
        return np.repeat(grey[..., None], 3, axis=-1)
    key = decoding.transparent(band, low)
    shown = band if to_srgb is None else to_srgb.apply(band)
    if key is None:
        return np.asarray(_opaque(shown))
    return np.where(key[..., None], np.uint8(255), np.asarray(shown))


def _check_sides(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"the picture is {width} x {height} pixels; it needs at least one each way")
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise ValueError(
            f"the picture is {width} x {height} pixels: an aspect ratio of {ratio:.4g}, over {MAX_ASPECT_RATIO}"
        )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of what `to_rgb` gives, without reading pixels.

    An orientation that stands behind the pixels of a PNG is not seen.

    Raises:
        ValueError: the picture has no pixels or an aspect ratio over 200.
    """
    _check_sides(image.height, image.width)
    turned = image.format != "TIFF" and _orientation(image) in _EXCHANGING  # of a TIFF Pillow gives the upright size
    height, width = (-(-side // decoding.step(image)) for side in (image.height, image.width))
    return (width, height) if turned else (height, width)


def _orientation(image: Image.Image) -> int:
    """As EXIF counts it; metadata that cannot be read leaves the picture as it is stored."""
    try:
        # PNG's own method would read all pixels first
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # metadata is as often broken as absent, and the pixels are fine without it
        return 1


def _most_grey(image: Image.Image) -> int:
    """Which integer of a picture of 16 bits (modes I;16...) or 32 (mode I) is white; a TIFF of the first may have 12.

    Mode I says nothing of its range: it holds 16-bit values from files, 8-bit ones after `convert("I")`. Up to 255 they
    are taken for 8-bit ones.
    """
    if image.mode != "I":
        return 4095 if getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample) == (12,) else 65535
    low, high = cast(tuple[int, int], image.getextrema())
    if low < 0 or high > 65535:
        raise ValueError(f"the picture holds integers from {low} to {high}; convert it to 8 or 16 bits first")
    return 255 if high <= 255 else 65535


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


def entering_size(height: int, width: int, cfg: GenerationImageProcessorConfig) -> tuple[int, int]:
    """(height, width) at which a source picture of this size enters the VAE: `smart_resize` within a model's limits."""
    return smart_resize(
        height, width, factor=cfg.factor, min_pixels=cfg.min_pixels, max_pixels=cfg.max_pixels,
        max_length=cfg.max_length,
    )  # fmt: skip


def generation_pixels(
    picture: UInt8[np.ndarray, "y x 3"], cfg: GenerationImageProcessorConfig
) -> UInt8[np.ndarray, "p q 3"]:
    """A source picture for the VAE: resized by Pillow's bicubic to `entering_size`.

    Raises:
        ValueError: see `smart_resize`; or the picture is so narrow that nothing of it would be left within the limits.
    """
    height, width, _ = picture.shape
    out_height, out_width = entering_size(height, width, cfg)
    if not (out_height and out_width):
        limits = f"{cfg.min_pixels} to {cfg.max_pixels} pixels and {cfg.max_length or 'any length'} a side"
        raise ValueError(f"a source picture of {width} x {height} pixels is too narrow to fit {limits}")
    return np.asarray(Image.fromarray(picture).resize((out_width, out_height), Image.Resampling.BICUBIC))
