"""The exact texts, and the tiles."""

import numpy as np
import pytest
from PIL import Image

from internvlu_jax.evaluation import prompts


@pytest.mark.parametrize(
    "data_set, pictures, most",
    [
        ("OCRBench", 1, 24),
        ("MMMU_DEV_VAL", 1, 12),
        ("mmmu_val", 7, 9),  # 64 for all of them
        ("ChartQA_TEST", 1, 12),
        ("DocVQA_VAL", 1, 18),
        ("InfoVQA_VAL", 2, 24),
        ("OCRBench", 3, 21),
        ("MME", 1, 6),
        (None, 1, 6),
        (None, 0, 6),
        ("MUIRBench", 100, 1),
    ],
)
def test_tiles(data_set, pictures, most):
    assert prompts.tiles(data_set, pictures) == most


def test_questions():
    assert prompts.question("TextVQA_VAL", "What?") == "What?\nAnswer the question using a single word or phrase."
    assert prompts.question("MathVista_MINI", "What?") == "What?" == prompts.question("MMVet", "What?")
    assert prompts.yes_or_no("Is it? Please answer yes or no.") == (
        "Is it? Please answer yes or no. Answer the question using a single word or phrase."
    )


def test_choices():
    options = {"A": "red", "B": "blue"}
    assert prompts.multiple_choice("Which?", options, hint="Look.") == (
        "Look.\nWhich?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )
    assert prompts.multiple_choice("哪个？", options) == "哪个？\nA. red\nB. blue\n请直接回答选项字母。"
    assert prompts.multiple_choice("How many?", {}) == "How many?\nAnswer the question directly."
    assert prompts.multiple_choice("多少？", {}) == "多少？\n请直接回答问题。"


def test_where_pictures_stand():
    assert prompts.with_pictures("What?", 0) == "What?"
    assert prompts.with_pictures("What?", 1) == "<image>\nWhat?"
    assert prompts.with_pictures("What?", 2) == "Image-1: <image>\nImage-2: <image>\nWhat?"
    assert prompts.interleaved(["a", None, "b"]) == "<image>\na\nb"
    assert prompts.interleaved(["a", None, None]) == "Image-1: <image>\nImage-2: <image>\na"
    assert prompts.interleaved([None, "a", None]) == "Image-1: <image>\nImage-2: <image>\n<Image-1>a<Image-2>"
    assert prompts.interleaved(["a", "b"]) == "ab"


def test_enlarged_pictures_are_twice_as_large():
    small = np.zeros((2, 3, 4), np.uint8)
    small[..., 0], small[:, 1:, 1] = 200, 100
    large = prompts.enlarged(Image.fromarray(small, "RGBA"))
    assert large.mode == "RGB" and large.size == (6, 4)
    assert np.array(large)[0, :, 1].tolist() == [0, 25, 75, 100, 100, 100]  # bilinear: at 1/4 and 3/4 between two
