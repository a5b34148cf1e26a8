"""Large pictures: refused by their header, halved, the same band by band; transparent values of 8 and 16 bits.

And what no decoder gets to see: programs.
"""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from internvlu_jax.data.records import PictureFile
from internvlu_jax.processing import decoding
from internvlu_jax.processing.images import load_image, opened_picture, to_rgb, upright_size


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 40 + 100], -1).astype(np.uint8)


def stored(image: Image.Image, kind: str, **options) -> PictureFile:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return PictureFile(f"a.{kind.lower()}", lambda: io.BytesIO(buffer.getvalue()))


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = number
    return exif


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def webp(height: int, width: int) -> bytes:
    """The head of an extended one, with one picture that is not there."""
    canvas = bytes([0x10, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas


def jpeg(height: int, width: int) -> bytes:
    """The head says that it is so large."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    before, frame, after = buffer.getvalue().partition(bytes.fromhex("ffc0001108"))
    return before + frame + struct.pack(">HH", height, width) + after[4:]


# Halving


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("height", "width"), [(120, 160), (121, 161)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_a_large_picture_is_halved(monkeypatch, kind, height, width, orientation):
    monkeypatch.setattr(decoding, "_HALVED", 10_000)
    monkeypatch.setattr(decoding, "_BAND", 1000)
    whole = smooth(height, width)
    options = {} if kind == "BMP" else {"exif": oriented(orientation)}
    picture = stored(Image.fromarray(whole), kind, **options)
    turned = orientation == 6 and kind != "BMP"
    first = turned and kind == "TIFF"  # which Pillow turns itself
    expected = np.asarray(Image.fromarray(np.rot90(whole, -1) if first else whole).reduce(2))
    if turned and not first:
        expected = np.rot90(expected, -1)
    got = picture.pixels()
    assert picture.size() == got.shape[:2] == expected.shape[:2]
    assert np.mean(np.abs(got.astype(int) - expected)) < (4 if kind in ("JPEG", "WEBP") else 0.01)


def test_a_picture_at_the_limit_is_not(monkeypatch):
    monkeypatch.setattr(decoding, "_HALVED", 120 * 160)
    np.testing.assert_array_equal(stored(Image.fromarray(smooth(120, 160)), "PNG").pixels(), smooth(120, 160))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "1", "I;16", "I"])
def test_bands_make_no_difference(monkeypatch, mode):
    image = Image.fromarray(smooth(37, 20))
    if mode.startswith("I"):
        image = Image.fromarray(np.arange(740, dtype=np.uint16).reshape(37, 20) * 80).convert(mode)
        image.info["transparency"] = 800
    elif mode == "PA":
        image = image.quantize().convert("PA")
    else:
        image = image.convert(mode)
    if mode == "RGB":
        image.info["transparency"] = tuple(smooth(37, 20)[5, 5].tolist())
    whole, info = to_rgb(image), dict(image.info)
    monkeypatch.setattr(decoding, "_BAND", 200)
    assert len(list(decoding.bands(image))) > 3
    np.testing.assert_array_equal(to_rgb(image), whole)
    assert image.info == info


# Limits


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (webp(14000, 14000), "over 179 million pixels"),
        (png(14000, 14000, 8, 2, b""), "14000 x 14000 pixels; a PNG of its kind is read up to 150 million"),
        (png(12500, 12500, 8, 2, b""), "12500 x 12500 pixels; a PNG of its kind is read up to 150 million"),
        (png(10000, 10000, 16, 2, b"", chunk(b"tRNS", bytes(6))), "a PNG of its kind is read up to 90 million"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_would_take_over_1_gb_is_refused_by_its_header(data, said):
    picture = PictureFile("a.png", lambda: io.BytesIO(data))
    for use in (PictureFile.size, PictureFile.pixels):
        with pytest.raises(ValueError, match=rf"^a\.png: .*{said}.*make it smaller"):
            use(picture)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png(9500, 9500, 8, 2, b""), (4750, 4750)),
        (jpeg(9500, 9500), (4750, 4750)),
        (jpeg(12240, 16320), (6120, 8160)),  # 200 million, as some telephones take
        (jpeg(20000, 20000), (5000, 5000)),
    ],
)
def test_below_our_limit_nothing_is_said_of_the_decoders_own(data, size):
    """That warns from 89 million pixels on and refuses 179; others in the process keep it."""
    before = Image.MAX_IMAGE_PIXELS
    assert PictureFile("a", lambda: io.BytesIO(data)).size() == size
    assert Image.MAX_IMAGE_PIXELS == before == 89_478_485
    with pytest.raises((Image.DecompressionBombWarning, Image.DecompressionBombError)):
        Image.open(io.BytesIO(data))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of formats that few have
def test_pictures_are_opened_as_others_open_them():
    """Of every format that can be written here, by the same decoder and with the same pixels."""
    Image.init()
    formats = []
    for kind in sorted(Image.SAVE.keys() - {"EPS"}):  # which Pillow reads where there is Ghostscript
        buffer = io.BytesIO()
        try:
            Image.fromarray(smooth(16, 16)).save(buffer, kind)
            theirs = Image.open(io.BytesIO(buffer.getvalue()))
            theirs.load()
        except (OSError, ValueError, KeyError):
            continue
        ours = decoding.opened(io.BytesIO(buffer.getvalue()))
        ours.load()
        assert (ours.format, type(ours), ours.info) == (theirs.format, type(theirs), theirs.info)
        assert ours.tobytes() == theirs.tobytes()
        formats.append(kind)
    assert len(formats) > 10, formats
    for data in (b"", b"P", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"not a picture of any kind"):
        with pytest.raises(Image.UnidentifiedImageError):
            Image.open(io.BytesIO(data))
        begins = data[:1] in (b"\x89", b"\xff")
        kind, said = (ValueError, "it begins as ") if begins else (Image.UnidentifiedImageError, "not a picture")
        with pytest.raises(kind, match=said):
            decoding.opened(io.BytesIO(data))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(a program) pop\nshowpage\n%%EOF\n"


def iptc(data: bytes) -> bytes:
    """A file that has another one within, which Pillow opens by any decoder."""
    fields = {(3, 60): b"\1\0", (3, 20): b"\0\x40", (3, 30): b"\0\x40", (3, 120): b"\5", (8, 10): data}
    return b"".join(b"\x1c" + bytes(tag) + struct.pack(">H", len(value)) + value for tag, value in fields.items())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (EPS, "it is a PostScript program; save its page as PNG or JPEG"),
        (struct.pack("<4sIII", b"\xc5\xd0\xd3\xc6", 32, len(EPS), 0) + bytes(16) + EPS, "it is a PostScript program"),
        (iptc(EPS), "known here$"),
    ],
)
def test_no_program_is_run(monkeypatch, tmp_path, data, said):
    """Whatever the name says, also where it lies in another file, and where the caller has opened it."""
    run = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: run.append(args))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.png: not a picture .*{said}"):
        load_image(path)
    with pytest.raises(ValueError, match=f"a: not a picture .*{said}"), opened_picture(io.BytesIO(data), "a") as image:
        to_rgb(image)
    with Image.open(io.BytesIO(data)) as theirs, pytest.raises(ValueError, match="which is not read"):
        to_rgb(theirs)
    assert not run


def test_limits_go_by_the_decoder(monkeypatch):
    monkeypatch.setattr(decoding, "_MEMORY", 5 * 1000)  # bytes
    image = Image.fromarray(smooth(30, 40))
    assert stored(image, "JPEG").size() == (30, 40)
    for kind, options in {"WEBP": {}, "JPEG": {"progressive": True}, "TIFF": {}}.items():
        with pytest.raises(ValueError, match=f"40 x 30 pixels; a {kind} of its kind is read up to"):
            stored(image, kind, **options).size()


LARGE = """
import re, sys
from pathlib import Path
from internvlu_jax.processing.images import load_image
def kilobytes(name):
    return int(re.search(rf"{name}:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = kilobytes("VmRSS")
load_image(sys.argv[1])
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "side", "options"),
    [
        ("PNG", 12200, {}), ("PNG", 8190, {}), ("JPEG", 13300, {}), ("WEBP", 6100, {}), ("GIF", 12200, {}),
        ("JPEG", 10500, {"progressive": True, "subsampling": 0}), ("JPEG2000", 6100, {}), ("TIFF", 9400, {}),
        ("AVIF", 6100, {}), ("JPEG", 21200, {}),
    ],
)  # fmt: skip
def test_no_picture_takes_over_1_gb(tmp_path, monkeypatch, kind, side, options):
    path = tmp_path / "large"
    turned = {} if kind in ("JPEG2000", "GIF") else {"exif": oriented(6)}
    Image.new("RGB", (side, side), (9, 99, 200)).save(path, kind, **options, **turned)
    command = [sys.executable, "-W", "error", "-c", LARGE, str(path)]
    grown = int(subprocess.run(command, check=True, capture_output=True, env=dict(os.environ)).stdout)
    print(kind, side, grown)
    assert grown < 1e9


# RGB of 16 bits with a transparent value


@pytest.mark.parametrize("band", [2**22, 16])
def test_rgb_of_16_bits_with_a_transparent_value(monkeypatch, band, tmp_path):
    """White where all 16 bits are the value's, and only there; the upper 8 bits elsewhere."""
    monkeypatch.setattr(decoding, "_BAND", band)
    values = np.random.default_rng(0).integers(0, 2**16, (6, 5, 3)).astype(">u2")
    key = values[1, 2]
    values[4, 4] = key
    values[5, 0] = key ^ 1  # as transparent to whoever has the upper bits alone
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(png(6, 5, 16, 2, rows, chunk(b"tRNS", key.tobytes())))
    expected = (values >> 8).astype(np.uint8)
    expected[[1, 4], [2, 4]] = 255
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), expected)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"cut\.png: the picture is truncated or damaged"):
        load_image(tmp_path / "cut.png")


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3)])
def test_a_transparent_value_of_8_bits_is_read_from_its_lower_ones(colour, samples):
    values = np.arange(12 * samples, dtype=np.uint8).reshape(3, 4, samples)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    key = b"".join(b"\x01" + bytes([sample]) for sample in values[1, 1])
    data = png(3, 4, 8, colour, rows, chunk(b"tRNS", key))
    with opened_picture(io.BytesIO(data), "a") as image:
        got = to_rgb(image)
        assert upright_size(image) == (3, 4)
    expected = np.broadcast_to(values, (3, 4, 3)).copy()
    expected[1, 1] = 255
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_transparent_value_of_few_bits(bits):
    """White, whatever its higher bits say. Pillow spreads the pixels over 8 bits, and not it."""
    most = 2**bits - 1
    row = bytes([sum((n & most) << (8 - bits * (n + 1)) for n in range(8 // bits))])
    data = png(1, 8 // bits, bits, 0, b"\0" + row, chunk(b"tRNS", b"\1\1"))
    for _ in range(2):
        with opened_picture(io.BytesIO(data), "a") as image:
            got = to_rgb(image)
            np.testing.assert_array_equal(to_rgb(image), got)
    levels = [(n & most) * 255 // most for n in range(8 // bits)]
    assert got[0, :, 0].tolist() == [255 if level == 255 // most else level for level in levels]
