"""Which tokens condition the head, and where its tokens are: by hand, for each kind of prompt and of head."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.ops.msrope import THETA, msrope_table
from internvlu_jax.ops.rope import rotary_table
from internvlu_jax.presets import debug_config
from internvlu_jax.processing import chat
from internvlu_jax.processing.layout import layout
from internvlu_jax.processing.positions import msrope_positions
from internvlu_jax.processing.tokenizer import Tokenizer

CFG = debug_config()
TOKENIZER = Tokenizer.byte_level(chat.FIXED_TEXTS)
TILE = CFG.vlm.tokens_per_tile
GRID, SOURCE = (8, 12), (8, 8)  # latents; two of them a side are one token of the head


def head_with(**changes):
    return dataclasses.replace(CFG, generation_decoder=dataclasses.replace(CFG.generation_decoder, **changes))


def prompt(pictures: int = 0, mode: str = "image") -> np.ndarray:
    message = chat.expand_images(chat.user_message("make it blue", pictures), [TILE] * pictures)
    text = chat.render(chat.system_text(mode, pictures > 0), message, final_img=mode == "image")
    return np.array(TOKENIZER.encode(text), np.int32)


def said(ids: np.ndarray, span: np.ndarray) -> str:
    return TOKENIZER.decode(ids[span].tolist(), skip_special_tokens=False)


USER = "<|im_start|>user\n"
REST = "Make it blue.<|im_end|>\n<|im_start|>assistant\n<img>"
PICTURE = f"<img>{'<IMG_CONTEXT>' * TILE}</img>\n"


def test_the_context_is_the_users_turn():
    made = layout(CFG, TOKENIZER, ids := prompt(), (), GRID)
    assert said(ids, made.span) == USER + REST
    assert made.runs == [(False, len(made.span))]
    np.testing.assert_array_equal(made.positions(len(made.span)), msrope_positions((4, 6), made.runs))


# What the head gets of source pictures: (in the context, as latents)
SIGNALS = {"both": (True, True), "context": (True, False), "latents": (False, True)}


@pytest.mark.parametrize("sources", SIGNALS)
def test_what_the_head_gets_of_source_pictures(sources):
    in_context, as_latents = SIGNALS[sources]
    cfg, ids = head_with(sources=sources), prompt(2)
    made = layout(cfg, TOKENIZER, ids, [SOURCE, SOURCE], GRID)
    # Without the pictures' own tokens the line breaks behind them stay: they are text.
    assert said(ids, made.span) == USER + (2 * PICTURE if in_context else "\n\n") + REST.replace("M", "m")
    assert [length for visual, length in made.runs if visual] == [TILE] * (2 * in_context)
    assert made.pictures == ((4, 6), *[(4, 4)] * (2 * as_latents))
    latents = 4 * 6 + 2 * 16 * as_latents
    positions = made.positions(len(made.span) + 3)
    assert positions.shape == (latents + len(made.span) + 3, 3)
    assert not positions[-3:].any()
    np.testing.assert_array_equal(np.unique(positions[:latents, 0]), np.arange(1 + 2 * as_latents))


def test_tokens_that_are_numbered_through_have_the_rotary_positions_of_a_text():
    made = layout(head_with(positions="sequence"), TOKENIZER, prompt(1), [SOURCE], GRID)
    count = 4 * 6 + 4 * 4 + len(made.span)
    positions = made.positions(len(made.span) + 2)
    np.testing.assert_array_equal(positions, np.repeat([*range(count), 0, 0], 3).reshape(-1, 3))
    turned = msrope_table(positions, (32, 0, 0))
    numbers = jnp.asarray(positions[None, :, 0], jnp.int32)
    for ours, texts in zip(turned, rotary_table(numbers, 32, THETA), strict=True):
        np.testing.assert_allclose(ours, texts[0], atol=1e-4)  # angles of up to 100 in float32


def test_what_was_written_stands_for_no_picture():
    ids = np.append(prompt(1, "text_image"), [TOKENIZER.img_context] * TILE + [TOKENIZER.img_start]).astype(np.int32)
    made = layout(CFG, TOKENIZER, ids, [SOURCE], GRID, written=TILE + 1)
    assert [length for visual, length in made.runs if visual] == [TILE]
    assert made.span[-1] == len(ids) - 1


def test_the_context_is_cut_where_the_head_has_a_fixed_length():
    cfg = head_with(pad_to_fix_length=True, max_sequence_length=10)
    made = layout(cfg, TOKENIZER, ids := prompt(1), [SOURCE], GRID)
    np.testing.assert_array_equal(made.span, np.flatnonzero(ids == TOKENIZER.im_start)[1] + np.arange(10))
    assert sum(length for _, length in made.runs) == 10


def test_what_cannot_be_laid_out_is_refused():
    with pytest.raises(ValueError, match="1 turns; expected a system turn and a user turn"):
        layout(CFG, TOKENIZER, np.array([TOKENIZER.im_start, 5], np.int32), (), GRID)
    made = layout(CFG, TOKENIZER, prompt(), (), GRID)
    with pytest.raises(ValueError, match="does not fit the padded length 2"):
        made.positions(2)
