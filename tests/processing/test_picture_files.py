"""Damaged or very large metadata hides no pixels, and what changes pixels is kept; wide gamuts become sRGB."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from internvlu_jax.processing.images import load_image, opened_picture, to_rgb, upright_size
from internvlu_jax.processing.picture_files import pixels_of

HEIGHT, WIDTH = 24, 40
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
LARGE = b"Comment\0" + bytes(2_000_000)


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def first_bytes(part: bytes) -> str:
    return part[:40].decode("latin-1").encode("unicode_escape").decode()


def png(before: bytes = b"", after: bytes = b"", header: bytes | None = None, rows: bytes | None = None) -> bytes:
    """A PNG of `PIXELS` in several IDAT chunks, with other chunks before and after them."""
    header = header or struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    packed = zlib.compress(rows or b"".join(b"\0" + row.tobytes() for row in PIXELS))
    data = b"".join(chunk(b"IDAT", packed[i : i + 700]) for i in range(0, len(packed), 700))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + data + after + chunk(b"IEND", b"")


def jpeg(segments: bytes, keep_jfif: bool = True) -> tuple[bytes, np.ndarray]:
    """A JPEG with segments after its start, and its pixels without them."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).resize((64, 48)).save(buffer, "jpeg", quality=95)
    data = buffer.getvalue()
    jfif_end = 4 + int.from_bytes(data[4:6], "big")
    return data[:2] + segments + (data[2:] if keep_jfif else data[jfif_end:]), np.asarray(Image.open(buffer))


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


ROTATED = exif(6)
ROTATED_TEXT = b"\nexif\n%8d\n" % len(ROTATED) + ROTATED.hex().encode()


def read(content: bytes) -> np.ndarray:
    with opened_picture(io.BytesIO(content), "x") as image:
        size = upright_size(image)
        pixels = to_rgb(image)
    assert pixels.shape == (*size, 3)
    return pixels


# --- PNG


@pytest.mark.parametrize(
    "kind_and_data",
    [
        (b"tEXt", LARGE),
        (b"tEXt", b"\xff\0\xff"),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000))),
        (b"zTXt", b"Comment\0\x07rubbish"),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2_000_000))),
        (b"zTXt", b"Raw profile type exif\0\x07rubbish"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0rubbish"),
        (b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000))),
        (b"iCCP", b"p\0\0" + b"rubbish"),
        (b"iCCP", b"p\0\x09" + zlib.compress(b"x")),
        (b"iCCP", b"p"),
        (b"iCCP", b""),
        (b"eXIf", b"rubbish"),
        (b"eXIf", bytes(2**21)),
        (b"cHRM", b"abc"),
        (b"gAMA", b"a"),
        (b"sRGB", b""),
        (b"pHYs", b"abcd"),
        (b"acTL", b"abc"),
        (b"acTL", struct.pack(">II", 2, 0)),
        (b"fcTL", b"abc"),
        (b"fcTL", struct.pack(">IIIIIHHBB", 7, 900, 900, 0, 0, 1, 1, 0, 0)),
        (b"fdAT", b"ab"),
        (b"bKGD", b""),
        (b"tIME", b"1"),
        (b"prVt", bytes(100)),
    ],
)
def test_no_chunk_hides_the_pixels(kind_and_data):
    """Before them and behind them, with the right checksum and with a wrong one."""
    for crc in (None, 7):
        part = chunk(*kind_and_data, crc)
        for content in (png(before=part), png(after=part), png(before=part * 2, after=part)):
            np.testing.assert_array_equal(read(content), PIXELS)


def test_a_second_frame_that_is_cut(tmp_path):
    path = tmp_path / "a.png"
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    assert b"fdAT" in content
    for end in (content.index(b"fdAT") + 30, content.index(b"fdAT") + 3, content.index(b"fdAT") - 2, len(content)):
        path.write_bytes(content[:end])
        np.testing.assert_array_equal(np.asarray(load_image(path)), PIXELS)


@pytest.mark.parametrize(
    "part",
    [
        chunk(b"eXIf", ROTATED.removeprefix(b"Exif\0\0")),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(ROTATED_TEXT)),
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>')),
    ],
    ids=first_bytes,
)  # fmt: skip
def test_an_orientation_is_kept(part):
    np.testing.assert_array_equal(read(png(before=part)), np.rot90(PIXELS, -1))


def test_damaged_pixels_are_still_refused():
    for broken in (
        png()[:-300],
        png().replace(b"IDAT", b"IDAT\0", 1),
        png(before=chunk(b"tRNS", b"\0")),
        png()[:20],
    ):
        with pytest.raises(ValueError, match="x: "):
            read(broken)


@pytest.mark.parametrize("transparent", [0, 0x1234, 65535])
def test_grey_of_16_bits_lies_on_white(transparent):
    """Only the very value is transparent, not those that come out the same in 8 bits."""
    values = np.array([[0, 1, 0x1234, 0x1235], [0x1233, 40000, 65534, 65535]], ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 4, 2, 16, 0, 0, 0, 0)
    got = read(png(chunk(b"tRNS", struct.pack(">H", transparent)), header=header, rows=rows))
    want = np.round(values.astype(np.float64) / 257).astype(np.uint8)
    want[values == transparent] = 255
    np.testing.assert_array_equal(got, np.repeat(want[..., None], 3, -1))


def test_large_text_is_not_read():
    content = png(before=chunk(b"tEXt", b"Comment\0" + bytes(30_000_000)))
    tracemalloc.start()
    read(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


# --- JPEG


@pytest.mark.parametrize(
    "part",
    [
        segment(0xE0, b"JFIF\0"),
        segment(0xE0, b"JFIF"),
        segment(0xE0, b""),
        segment(0xE1, b"Exif\0\0"),
        segment(0xE1, b"Exif\0\0rubbish"),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0rubbish"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\1\3rubbish"),
        segment(0xE2, b"MPF\0rubbish"),
        segment(0xE2, b"FPXR\0"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2ab"),
        segment(0xEE, b"Adobe"),
        segment(0xEE, b"Adobe\0"),
        segment(0xFE, bytes(60_000)) * 40,
        b"\xff\xff\xff" + segment(0xE7, b"abc"),
    ],
    ids=first_bytes,
)
def test_no_segment_hides_the_pixels(part):
    for keep_jfif in (True, False):
        content, want = jpeg(part, keep_jfif)
        np.testing.assert_array_equal(read(content), want)


def test_segments_that_change_pixels_are_kept():
    """Orientation, and the mark of pictures that are stored as red, green and blue."""
    content, want = jpeg(segment(0xE1, ROTATED))
    np.testing.assert_array_equal(read(content), np.rot90(want, -1))
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "jpeg", quality=100, keep_rgb=True)
    assert b"Adobe" in buffer.getvalue()
    np.testing.assert_allclose(read(buffer.getvalue()).astype(int), PIXELS, atol=2)


def test_a_jpeg_that_is_cut_is_refused():
    content, _ = jpeg(b"")
    for broken in (content[: len(content) // 2], content[:20], content[:2]):
        with pytest.raises(ValueError, match="x: "):
            read(broken)


# --- other files


@pytest.mark.parametrize("kind", ["gif", "bmp", "webp", "tiff", "ppm"])
def test_other_formats_are_left_alone(kind):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind)
    assert pixels_of(file) is file and file.tell() == 0


def test_seeking_in_what_is_left():
    content = png(before=chunk(b"tEXt", LARGE), after=chunk(b"tEXt", b"a\0b"))
    whole, spliced = png(), pixels_of(io.BytesIO(content))
    assert spliced.read() == whole
    for start, length in ((0, 5), (len(whole) - 9, 30), (100, 900), (len(whole), 4)):
        assert spliced.seek(start) == start == spliced.tell()
        assert spliced.read(length) == whole[start : start + length]
    assert spliced.seek(-12, io.SEEK_END) == len(whole) - 12
    assert spliced.read() == whole[-12:]


# --- colour profiles

# Columns: XYZ of red, green and blue under D50, as profiles have them.
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
DISPLAY_P3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0010, 0.0419, 0.7841]])
GAMMA = 2.19921875  # as profiles store 2.2


def profile(primaries: np.ndarray) -> bytes:
    """A profile of version 2 with these primaries, for the curve x ** GAMMA."""

    def fixed(values) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(GAMMA * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78 + 12)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0x\0\0\0", b"wtpt": b"XYZ \0\0\0\0" + fixed((0.9642, 1.0, 0.8249))}
    for name, column in zip((b"r", b"g", b"b"), primaries.T, strict=True):
        tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + fixed(column), name + b"TRC": curve}
    table, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += value
    size = offset + len(data)
    header = struct.pack(">I4sI", size, b"lcms", 0x02100000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    header += fixed((0.9642, 1.0, 0.8249))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("RGBA", "png"), ("RGB", "jpeg")])
def test_a_wide_gamut_becomes_srgb(tmp_path, mode, suffix):
    """Against the definition in float64: curve, primaries, sRGB's primaries, sRGB's curve, cut to the gamut."""
    smooth = np.stack(np.meshgrid(np.linspace(60, 200, 32), np.linspace(80, 220, 32)), -1)
    pixels = np.concatenate([smooth, np.full((32, 32, 1), 128)], -1).astype(np.uint8)
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(pixels).convert(mode)
    image.save(
        path, icc_profile=profile(DISPLAY_P3), **({"quality": 100, "subsampling": 0} if suffix == "jpeg" else {})
    )
    stored = np.asarray(Image.open(path).convert("RGB"))
    linear = (stored / 255) ** GAMMA @ DISPLAY_P3.T @ np.linalg.inv(SRGB).T
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    got = np.asarray(load_image(path)).astype(int)
    assert np.abs(got - stored).max() > 5
    np.testing.assert_allclose(got, 255 * encoded, atol=1.6)


def test_a_profile_of_srgb_or_of_nothing_changes_nothing(tmp_path):
    for content in (profile(SRGB), b"rubbish", profile(DISPLAY_P3)[:90], bytes(300)):
        for suffix in ("png", "webp"):
            path = tmp_path / f"a.{suffix}"
            Image.fromarray(PIXELS).save(path, lossless=True, icc_profile=content)
            np.testing.assert_array_equal(np.asarray(load_image(path)), PIXELS)
