"""Text: prompts, and the requests that prompts and pictures become."""

import json

import numpy as np
import pytest
from PIL import Image

from internvlu_jax.config_files import read_config
from internvlu_jax.models.pixels import codec_values, vision_values
from internvlu_jax.processing import chat
from internvlu_jax.processing.images import vision_tiles
from internvlu_jax.processing.processor import Processor
from internvlu_jax.processing.rows import bucket, pad_right
from tests.conftest import GOLDENS
from tests.helpers.measures import channels_last


@pytest.fixture(scope="module")
def processor(golden):
    return Processor.from_pretrained(golden.checkpoint, read_config(golden.checkpoint).processor)


@pytest.fixture(scope="module")
def base():
    checkpoint = GOLDENS / "base/checkpoint"
    return Processor.from_pretrained(checkpoint, read_config(checkpoint).processor)


def picture(width=64, height=48, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def text_of(processor, ids):
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


def user_turn(processor, ids):
    """The user's message as it was encoded, visual tokens shortened to one `<ctx>` a picture."""
    turn = text_of(processor, ids).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    visual = "<IMG_CONTEXT>" * processor.cfg.image_seq_length
    return turn.replace(f"<img>{visual}</img>", "<ctx>")


# --- recorded requests --------------------------------------------------------------------------------------------


def recorded_images(golden, case):
    if case["images"] is None:
        return None
    return [[Image.open(golden.root / "pipeline" / name) for name in names] for names in case["images"]]


def test_recorded_requests(golden, processor):
    for name, case in golden.cases.items():
        recorded = golden.case(name)
        requests = processor.process(case["prompts"], recorded_images(golden, case), case["mode"])
        rows = [r.cond for r in requests]
        if case["mode"] != "text":
            # The released code has a text-dropped row for prompts without pictures, too.
            rows += [r.uncond if r.text_dropped is None else r.text_dropped for r in requests]
            rows += [r.uncond for r in requests]
        ids, mask = recorded["proc_input_ids"], recorded["proc_attention_mask"]
        assert len(rows) == len(ids), name
        for row, padded, valid in zip(rows, ids, mask, strict=True):
            np.testing.assert_array_equal(row, padded[valid == 1], err_msg=name)
        check_recorded_pictures(name, case, requests, recorded, golden.checkpoint)


def check_recorded_pictures(name, case, requests, recorded, checkpoint):
    if case["images"] is None:
        assert all(len(r.tiles) == 0 and not r.sources for r in requests), name
        return
    # The released code lists every picture once for the whole prompt and once for the text-dropped one.
    branches = 1 if case["mode"] == "text" else 2
    tiles = np.concatenate([r.tiles for r in requests] * branches)
    cfg = read_config(checkpoint).processor
    values = vision_values(tiles, cfg.image_processor_kwargs)
    np.testing.assert_array_equal(values, channels_last(recorded["proc_pixel_values"]), err_msg=name)
    if case["mode"] == "text":
        assert not any(r.sources for r in requests), name
        return
    sources = [source for r in requests for source in r.sources] * branches
    padded = channels_last(recorded["proc_pixel_values_gen"])
    grids = recorded["proc_image_grid_thw_gen"][recorded["proc_generation_flags"] == 0]
    assert len(sources) == len(padded) == len(grids)
    for source, pixels, grid in zip(sources, padded, grids, strict=True):
        assert source.shape[:2] == (8 * grid[1], 8 * grid[2]), name
        values = codec_values(source, cfg.image_gen_processor_kwargs)
        np.testing.assert_array_equal(values, pixels[: source.shape[0], : source.shape[1]], err_msg=name)


def test_recorded_texts(golden, processor):
    for name, case in golden.cases.items():
        if case["texts"] is not None:
            tokens = golden.case(name)["generated_tokens"]
            assert [processor.tokenizer.decode(row) for row in tokens] == case["texts"], name


def test_system_texts():
    recorded = json.loads((GOLDENS / "system_prompts.json").read_text(encoding="utf-8"))
    ours = (chat.UNDERSTANDING_SYSTEM, chat.GENERATION_SYSTEM, chat.EDITING_SYSTEM)
    assert tuple(recorded[f"qwen2_5-chat-v3{suffix}"] for suffix in ("", "-imgen", "-editing")) == ours


# --- prompts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a dog", "A dog."),
        ("  a dog!\n", "A dog!"),
        ("list:", "List:"),
        ("a; b;", "A; b;"),
        ("what?", "What?"),
        ("ends in a comma,", "Ends in a comma,"),
        ("画一只猫。", "画一只猫。."),
        ("ßeta", "SSeta."),
        ("<image> what is it", "<image> what is it."),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_normalise_user_text(text, expected):
    assert chat.normalise_user_text(text) == expected


@pytest.mark.parametrize(
    "text, images, expected",
    [
        ("a dog", 0, "A dog."),
        ("a dog", 1, "<image>\na dog."),
        ("a dog", 2, "<image>\n<image>\na dog."),
        ("compare <image> with it", 1, "Compare <image> with it."),
        ("compare <image> with it", 2, "<image>\ncompare <image> with it."),
        (" <image><image>", 2, "<image><image>."),
        ("", 1, "<image>."),
    ],
)
def test_user_message(text, images, expected):
    assert chat.user_message(text, images) == expected


def test_more_marks_than_images():
    with pytest.raises(ValueError, match="2 <image> marks but 1 image"):
        chat.place_images("<image> and <image>", 1)


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<img>", "</img>"])
def test_picture_tokens_in_a_prompt_are_refused(base, token):
    with pytest.raises(ValueError, match=f"prompt holds {token}"):
        base.process(f"what is {token}", picture())


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<image>", "<|im_start|>", "<|im_end|>"])
def test_structure_in_a_system_prompt_is_refused(base, token):
    with pytest.raises(ValueError, match="system_prompt holds"):
        base.process("hello", system_prompt=f"You see {token}")


def test_render():
    assert chat.render("S", "M.", final_img=False) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nM.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.render("S", "M.", final_img=True).endswith("assistant\n<img>")
    assert chat.render("S", "", final_img=False) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<|im_start|>assistant\n"
    )


# --- requests -----------------------------------------------------------------------------------------------------


def test_system_text_of_each_mode(base):
    def system(mode, image=None, **options):
        request = base.process("a dog", image, mode, **options)[0]
        rows = [r for r in (request.cond, request.text_dropped, request.uncond) if r is not None]
        (text,) = {text_of(base, r).split("<|im_end|>")[0].removeprefix("<|im_start|>system\n") for r in rows}
        return text

    assert system("text") == system("text", picture()) == chat.UNDERSTANDING_SYSTEM
    assert system("image") == system("text_image") == chat.GENERATION_SYSTEM
    assert system("image", picture()) == system("text_image", picture()) == chat.EDITING_SYSTEM
    assert system("image", picture(), system_prompt="Be brief") == "Be brief"


def test_text_to_image_has_one_dropped_row(base):
    request = base.process("a dog", mode="image")[0]
    assert request.text_dropped is None and request.uncond is not None
    assert request.tiles.shape == (0, 56, 56, 3) and request.sources == ()


def test_text_mode_has_no_dropped_rows_and_no_sources(base):
    request = base.process("a dog", picture())[0]
    assert request.text_dropped is None and request.uncond is None and request.sources == ()
    assert request.tiles.shape == (1, 56, 56, 3)


def test_rows_end_in_a_picture_only_in_image_mode(base):
    for mode, final in (("image", True), ("text_image", False)):
        request = base.process("a dog", picture(), mode)[0]
        for row in (request.cond, request.text_dropped, request.uncond):
            assert (row[-1] == base.tokenizer.img_start) == final


def test_several_images_for_one_prompt(base):
    pictures = [picture(64, 48, 1), picture(160, 80, 2)]
    request = base.process("mix <image> into the other", [pictures], "image", max_tiles=4)[0]
    cfg = base.cfg.image_processor_kwargs
    expected = [vision_tiles(np.asarray(p), cfg, max_tiles=4) for p in pictures]
    np.testing.assert_array_equal(request.tiles, np.concatenate(expected))
    assert [s.shape for s in request.sources] == [(48, 64, 3), (80, 160, 3)]
    first, second = (f"<img>{'<IMG_CONTEXT>' * (4 * n)}</img>" for n in (1, 3))
    assert f"user\n{first}\nmix {second} into the other.<" in text_of(base, request.cond)
    assert f"user\n{first}\n{second}\nGenerate an image based on reference images.<" in text_of(
        base, request.text_dropped
    )
    assert user_turn(base, request.uncond) == "Here is a random image <img_uncond>:"
    for row, count in ((request.cond, 16), (request.text_dropped, 16), (request.uncond, 0)):
        assert (row == base.tokenizer.img_context).sum() == count


@pytest.mark.parametrize("mode", chat.MODES)
def test_a_mixed_list_is_its_prompts_one_by_one(base, mode):
    prompts = ["a dog", "make it blue", "swap <image> and <image>", "a cat"]
    images = [None, picture(seed=1), [picture(seed=2), picture(80, 80, 3)], []]
    together = base.process(prompts, images, mode)
    for prompt, image, request in zip(prompts, images, together, strict=True):
        (alone,) = base.process([prompt], [image], mode)
        for name in ("cond", "text_dropped", "uncond", "tiles"):
            np.testing.assert_array_equal(getattr(request, name), getattr(alone, name))
        assert len(request.sources) == len(alone.sources) == (len(alone.tiles) if mode != "text" else 0)


def test_each_picture_is_prepared_once(base, monkeypatch):
    from internvlu_jax.processing import processor as module

    seen = []
    monkeypatch.setattr(module, "to_rgb", lambda image: seen.append(image) or np.asarray(image))
    base.process("a dog", picture(), "image")
    assert len(seen) == 1


def test_an_empty_prompt_is_accepted(base):
    assert base.process("")[0].cond.dtype == np.int32
    assert user_turn(base, base.process("", picture())[0].cond) == "<ctx>."


@pytest.mark.parametrize(
    "prompts, images, options, message",
    [
        ([], None, {}, "list of prompts is empty"),
        (None, None, {}, "prompt is a NoneType"),
        (["a", 3], None, {}, "prompt 1 is a int"),
        (["a", "b"], [None], {}, r"2 prompt\(s\) but 1 entries"),
        ("a", [None, None], {}, r"1 prompt\(s\) but 2 entries"),
        (["a", "b"], Image.new("RGB", (20, 20)), {}, "one picture for 2 prompts"),
        ("a", "photo.png", {}, "^photo.png: no such picture file"),
        ("a", [3.5], {}, "expected a PIL image, found float"),
        ("a", None, {"mode": "video"}, "unknown generation mode 'video'"),
        ("a", None, {"max_tiles": 0}, "max_tiles is 0"),
        ("see <image>", None, {}, "1 <image> marks but 0 image"),
        (["a", "see <image>"], None, {}, "prompt 1: the prompt has 1 <image>"),
        ("a", Image.new("RGB", (0, 4)), {}, "0 x 4 pixels"),
        ("a", Image.new("RGB", (603, 3)), {}, "aspect ratio of 201"),
        ("a", Image.new("RGB", (40, 15)), {"mode": "image"}, "at least 16 pixels a side"),
    ],
)
def test_bad_input(base, prompts, images, options, message):
    with pytest.raises(ValueError, match=message):
        base.process(prompts, images, **options)


# --- batches ------------------------------------------------------------------------------------------------------


def test_bucket_lengths():
    lengths = np.arange(1, 9000)
    padded = np.array([bucket(int(n)) for n in lengths])
    assert (padded >= lengths).all() and (np.diff(padded) >= 0).all()
    assert all(bucket(int(n)) == n for n in set(padded))
    assert ((padded - lengths)[lengths > 512] * 16 <= lengths[lengths > 512]).all()
    assert bucket(1) == 32 and bucket(33) == 64 and bucket(1025) == 1088
    assert len(set(padded)) < 100


def test_pad_right():
    rows = [np.array([1, 2, 3], np.int32), np.array([4], np.int32)]
    ids, lengths = pad_right(rows, 4, 9)
    np.testing.assert_array_equal(ids, [[1, 2, 3, 9], [4, 9, 9, 9]])
    np.testing.assert_array_equal(lengths, [3, 1])
    assert ids.dtype == lengths.dtype == np.int32
    with pytest.raises(ValueError, match="3 tokens does not fit 2"):
        pad_right(rows, 2, 9)
