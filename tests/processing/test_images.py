"""Pictures: tiling, generation sizes, and pictures of every kind."""

import io
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from internvlu_jax.config import GenerationImageProcessorConfig, ImageProcessorConfig, SizeConfig
from internvlu_jax.config_files import read_config
from internvlu_jax.models.pixels import codec_values, vision_values
from internvlu_jax.processing.images import (
    as_picture,
    generation_pixels,
    load_image,
    opened_picture,
    smart_resize,
    tile_grid,
    to_rgb,
    vision_tiles,
)
from tests.helpers.measures import channels_last
from tests.helpers.pictures import noise

# --- recorded numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(6))
def test_recorded_pictures(golden, index):
    recorded, facts = golden.component("preprocess"), golden.component_json("preprocess")[str(index)]
    cfg = read_config(golden.checkpoint).processor
    picture = to_rgb(Image.open(golden.root / f"components/image_{index}.png"))
    assert list(picture.shape[1::-1]) == facts["size"]
    kwargs = cfg.image_processor_kwargs
    single = vision_tiles(picture, kwargs)
    np.testing.assert_array_equal(vision_values(single, kwargs), channels_last(recorded[f"single_{index}"]))
    tiled = vision_tiles(picture, kwargs, max_tiles=6)
    assert len(tiled) == facts["tiles"]
    np.testing.assert_array_equal(vision_values(tiled, kwargs), channels_last(recorded[f"tiled_{index}"]))
    if "generation_error" in facts:
        with pytest.raises(ValueError, match="16 pixels a side; this one is 7 x 5"):
            generation_pixels(picture, cfg.image_gen_processor_kwargs)
    else:
        pixels = codec_values(generation_pixels(picture, kwargs := cfg.image_gen_processor_kwargs), kwargs)
        np.testing.assert_array_equal(pixels, channels_last(recorded[f"generation_{index}"])[0])


def test_recorded_sizes(golden):
    rows = golden.component_json("smart_resize")
    assert len(rows) > 40
    for height, width, limits, expected in rows:
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=f"{width} x {height}"):
                smart_resize(height, width, **limits)
        else:
            assert smart_resize(height, width, **limits) == tuple(expected), (height, width, limits)


# --- tiling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "height, width, max_tiles, expected",
    [
        (100, 100, 1, (1, 1)),
        (100, 200, 1, (1, 1)),
        (100, 200, 2, (2, 1)),
        (200, 100, 2, (1, 2)),
        (100, 300, 6, (3, 1)),
        (200, 300, 6, (3, 2)),
        (1000, 1, 5, (1, 5)),
        # A square fits 1 x 1, 2 x 2, 3 x 3 equally: a later one needs more than half of its own pixels.
        (10, 10, 9, (1, 1)),
        (14, 14, 9, (1, 1)),
        (15, 15, 9, (2, 2)),
        (21, 21, 9, (2, 2)),
        (22, 22, 9, (3, 3)),
        # So does 2 : 1, as 2 x 1 and 4 x 2.
        (20, 40, 8, (4, 2)),
        (10, 20, 8, (2, 1)),
        # Half way between two ratios is a tie as well: 3/4 lies between 1/2 and 1.
        (4, 3, 2, (1, 1)),
        (16, 12, 2, (1, 2)),
    ],
)
def test_tile_grid(height, width, max_tiles, expected):
    assert tile_grid(height, width, 10, 10, max_tiles) == expected


def test_tile_grid_at_exactly_half_the_pixels():
    # 3 : 2 lies half way between 1 x 1 and 2 x 1 tiles; two tiles of 2 x 3 pixels have twice the picture's 6.
    assert tile_grid(2, 3, 2, 3, max_tiles=2) == (1, 1)
    assert tile_grid(4, 6, 2, 3, max_tiles=2) == (2, 1)


def test_tiles_are_cut_row_by_row_with_the_thumbnail_last():
    cfg = ImageProcessorConfig(SizeConfig(28, 28))
    picture = noise(56, 84)
    tiles = vision_tiles(picture, cfg, max_tiles=6)
    whole = vision_tiles(picture, ImageProcessorConfig(SizeConfig(56, 84)))[0]
    assert tiles.shape == (7, 28, 28, 3) and tiles.dtype == np.uint8
    for i in range(6):
        row, column = divmod(i, 3)
        expected = whole[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
        np.testing.assert_array_equal(tiles[i], expected)
    np.testing.assert_array_equal(tiles[6:], vision_tiles(picture, cfg))


# --- generation sizes ---------------------------------------------------------------------------------------------


def test_pixels_for_the_codec_lie_between_minus_one_and_one():
    cfg = GenerationImageProcessorConfig(min_dynamic_patch=16, max_dynamic_patch=256)
    picture = np.zeros((64, 48, 3), np.uint8)
    picture[:32] = 255
    pixels = codec_values(generation_pixels(picture, cfg), cfg)
    assert pixels.shape == (64, 48, 3)
    assert pixels[0, 0, 0] == 1 and pixels[-1, -1, -1] == -1


@pytest.mark.parametrize("size", [(15, 64), (64, 15), (4000, 30), (3200, 16)])
def test_pictures_too_narrow_for_editing(size):
    with pytest.raises(ValueError, match=f"{size[1]} x {size[0]}"):
        generation_pixels(np.zeros((*size, 3), np.uint8), GenerationImageProcessorConfig())


def test_narrow_picture_and_short_side_limit():
    cfg = GenerationImageProcessorConfig(min_dynamic_patch=16, max_dynamic_patch=256, max_length=128)
    with pytest.raises(ValueError, match=r"16 x 3200.*too narrow"):
        generation_pixels(np.zeros((3200, 16, 3), np.uint8), cfg)


# --- kinds of pictures --------------------------------------------------------------------------------------------


def reopened(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def converted(image, mode):
    # `convert("P")` would go to the web palette and dither.
    return image.quantize(8) if mode == "P" else image.convert(mode)


def test_rgb_is_unchanged():
    picture = noise(5, 7)
    np.testing.assert_array_equal(to_rgb(Image.fromarray(picture)), picture)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "PA"])
def test_alpha_is_laid_on_white(mode):
    colour = Image.new("RGBA", (3, 1), (80, 80, 80, 255))
    colour.putpixel((1, 0), (0, 0, 0, 0))
    colour.putpixel((2, 0), (0, 0, 0, 128))
    if mode == "PA":
        colour = colour.convert("RGB").quantize(4).convert("PA")
        colour.putalpha(Image.fromarray(np.array([[255, 0, 128]], np.uint8)))
    else:
        colour = colour.convert(mode)
    assert colour.mode == mode
    got = to_rgb(colour)[0].astype(int)
    np.testing.assert_allclose(got, [[80] * 3, [255] * 3, [127] * 3], atol=1)


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_colour_becomes_white(mode):
    image = Image.new("RGB", (4, 4), (9, 9, 9))
    image.putpixel((0, 0), (200, 200, 200))
    image = converted(image, mode)
    key = image.getpixel((0, 0))
    image = reopened(image, transparency=key)
    assert image.mode == mode and "transparency" in image.info
    got = to_rgb(image)
    assert got[0, 0].tolist() == [255, 255, 255] and got[1, 1].tolist() == [9, 9, 9]


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_other_kinds_keep_their_colours(mode):
    colour = (255, 255, 255) if mode in ("L", "1") else (200, 40, 120)
    image = Image.new("RGB", (6, 4), (0, 0, 0))
    image.paste(colour, (0, 0, 3, 4))
    got = to_rgb(converted(image, mode)).astype(int)
    assert got.shape == (4, 6, 3)
    np.testing.assert_allclose(got[:, :3], np.broadcast_to(colour, (4, 3, 3)), atol=3)
    np.testing.assert_allclose(got[:, 3:], 0, atol=3)


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I", "png"])
def test_16_bits_are_scaled_to_8(kind):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    if kind == "I":
        image = Image.fromarray(values.astype(np.int32))
    elif kind == "I;16B":
        image = Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())
    else:
        image = Image.fromarray(values)
        image = reopened(image) if kind == "png" else image
    got = to_rgb(image)
    np.testing.assert_array_equal(got[0, :, 0], [0, 0, 1, 1, 128, 255])
    np.testing.assert_array_equal(got[..., 0], got[..., 2])


def test_a_tiff_whose_zero_is_white(tmp_path):
    """Which Pillow turns round for 8 bits alone."""
    Image.fromarray(np.array([[0, 65535], [21845, 0]], np.uint16)).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as stored:
        assert stored.tag_v2[262] == 0 and stored.mode == "I;16"
        assert to_rgb(stored)[..., 0].tolist() == [[255, 0], [170, 255]]


def test_an_array_in_bfloat16_is_a_picture():
    levels = jnp.array([[[0, 0.5, 1]]], jnp.bfloat16)
    assert np.asarray(as_picture(levels)).tolist() == [[[0, 128, 255]]]


def test_12_bits_are_scaled_to_8(tmp_path):
    """Of a TIFF, as microscopes write them; Pillow gives the numbers as they are, in a mode of 16 bits."""
    fields = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 3)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    data = b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(4) + bytes.fromhex("fff7d0")
    (tmp_path / "a.tif").write_bytes(data)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "I;16" and np.asarray(image).tolist() == [[4095, 2000]]
    assert np.asarray(load_image(tmp_path / "a.tif"))[0, :, 1].tolist() == [255, 125]


def test_dark_16_bit_picture_stays_dark_but_8_bit_integers_keep_their_value():
    values = np.array([[0, 100, 255]])
    assert to_rgb(Image.fromarray(values.astype(np.uint16))).max() == 1
    assert to_rgb(Image.fromarray(values.astype(np.uint8)).convert("I"))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("image", [Image.new("F", (4, 4)), Image.fromarray(np.array([[-1, 70000]], np.int32))])
def test_numbers_of_no_known_range_are_refused(image):
    with pytest.raises(ValueError, match=r"convert it to 8( or 16)? bits"):
        to_rgb(image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_exif_orientation(orientation, mode):
    upright = noise(3, 5)[..., 0]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    if mode == "I;16":
        image = Image.fromarray(np.ascontiguousarray(stored.astype(np.uint16) * 257))
    else:
        image = Image.fromarray(np.ascontiguousarray(stored)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(to_rgb(reopened(image, exif=exif))[..., 1], upright)


def test_broken_exif_is_ignored():
    image = reopened(Image.fromarray(noise(4, 6)), exif=b"Exif\x00\x00garbage")
    np.testing.assert_array_equal(to_rgb(image), noise(4, 6))


def test_what_is_no_usable_picture_is_refused():
    with pytest.raises(ValueError, match="expected a PIL image, found str"):
        to_rgb("photo.png")
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        to_rgb(Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match=r"2 x 402 pixels.*201.*200"):
        to_rgb(Image.new("RGB", (2, 402)))
    assert to_rgb(Image.new("RGB", (2, 400))).shape == (400, 2, 3)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("AVIF", {}), ("GIF", {}), ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG2000", {}), ("BMP", {}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_pictures_that_were_cut_short(tmp_path, kind, options):
    """Wherever, but for the first bytes: no other format is named, nor none."""
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, kind, **options)
    whole, path = buffer.getvalue(), tmp_path / "half.img"
    for length in (20, 60, 100, len(whole) // 2, len(whole) * 3 // 5, len(whole) * 9 // 10):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"half\.img: (the picture|it begins as \w+ and) is truncated"):
            load_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_pictures(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, kind)
    data = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    with pytest.raises(ValueError, match="truncated"):
        to_rgb(Image.open(io.BytesIO(data)))
    path = tmp_path / "half.img"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"half\.img.*truncated"):
        load_image(path)


def test_load_image(tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(4, 6)).save(path, exif=exif)
    image = load_image(path)
    assert image.mode == "RGB" and image.size == (4, 6)
    np.testing.assert_array_equal(to_rgb(image), np.rot90(noise(4, 6), -1))
    with pytest.raises(ValueError, match=r"none\.png: no such picture"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"^/x{199}\.\.\.: File name too long$"):
        load_image("/" + "x" * 5000)  # as a picture in base64 is
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text\.png: not a picture"):
        load_image(tmp_path / "text.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.png: not a picture"):
        load_image(tmp_path / "empty.png")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "it is a git-LFS pointer, not the file",
        ),
        (b"<!DOCTYPE html><html>Sign in</html>", "it is an HTML page"),
        (b"\xef\xbb\xbf\r\n<HTML>", "it is an HTML page"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "it is a HEIC picture, as phones take them; save it as PNG or JPEG"),
        (b"\0\0\0\x24ftypmif1\0\0\0\0mif1heic", "it is a HEIC picture"),
        (b"\0\0\0\x20ftypisom\0\0\0\0isomavc1", "it is a video"),
        (b"<svg xmlns='x'/>", "it is an SVG drawing"),
        (b"%PDF-1.7", "it is a PDF document"),
        (b"nothing that is known", "known here$"),
    ],
)
def test_what_is_no_picture_is_named_for_what_it_is(tmp_path, content, said):
    """Whatever its suffix; also where it comes from memory, as that of a record does."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"photo.jpg: not a picture .*{said}"):
        load_image(path)
    with (
        pytest.raises(ValueError, match=rf"record 3: not a picture .*{said}"),
        opened_picture(io.BytesIO(content), "record 3"),
    ):
        pass
