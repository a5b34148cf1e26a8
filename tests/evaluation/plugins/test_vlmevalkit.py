"""VLMEvalKit's documented calls, from a stand-in of it."""

import pytest
from PIL import Image

from tests.helpers.harness import plugged

KINDS = {"MME": "Y/N", "MMMU_DEV_VAL": "MCQ", "OCRBench": "VQA", "MathVista_MINI": "VQA", "POPE": "Y/N"}
KINDS |= {"MME-RealWorld": "MCQ", "MVBench": "VIDEO"}


@pytest.fixture
def kit(monkeypatch):
    class BaseModel:
        def dump_image(self, line, dataset):
            return line["image_path"]

    modules = {"vlmeval": {}, "vlmeval__vlm": {}, "vlmeval__vlm__base": {"BaseModel": BaseModel}}
    module, pipe = plugged(monkeypatch, "vlmevalkit", **modules, vlmeval__dataset={"DATASET_TYPE": KINDS.get})
    return module.InternVLUJax("somewhere", devices="all"), pipe


def test_which_sets_have_prompts(kit):
    model, _ = kit
    assert model.INTERLEAVE
    assert [name for name in KINDS if model.use_custom_prompt(name)] == [
        *("MME", "MMMU_DEV_VAL", "OCRBench", "MathVista_MINI", "POPE")
    ]


def test_prompts_of_rows(kit):
    model, _ = kit
    row = {
        "question": "Which?",
        "A": "red",
        "B": "blue",
        "C": float("nan"),
        "hint": float("nan"),
        "image_path": ["a.png"],
    }
    assert model.build_prompt(row, "MMMU_DEV_VAL") == [
        {
            "type": "text",
            "value": "Which?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly.",
        },
        {"type": "image", "value": "a.png"},
    ]
    texts = [model.build_prompt(row, name)[0]["value"] for name in ("OCRBench", "MathVista_MINI", "MME", "POPE")]
    wish = "Answer the question using a single word or phrase."
    assert texts == [f"Which?\n{wish}", "Which?", f"Which? {wish}", "Which?"]


def test_messages_become_calls(kit, tmp_path):
    model, pipe = kit
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        Image.new("L", (10, 20)).save(path)
    pictures = [{"type": "image", "value": path} for path in paths]
    text = {"type": "text", "value": "Which?"}
    assert model.generate_inner([text, pictures[0]], "OCRBench") == "1."
    assert model.generate_inner([text, *pictures], "MMMU_DEV_VAL") == "2."
    one, two = pipe.calls
    assert (one["prompt"], one["max_tiles"], one["max_new_tokens"]) == (["<image>\nWhich?"], 24, 512)
    assert two["prompt"] == ["Image-1: <image>\nImage-2: <image>\nWhich?"] and two["max_tiles"] == 12
    assert [picture.size for picture in one["image"][0]] == [(10, 20)]
    assert [picture.size for picture in two["image"][0]] == [(20, 40), (10, 20)]  # the first is enlarged


def test_films_are_refused(kit):
    with pytest.raises(ValueError, match="the message has video; expected text and image alone"):
        kit[0].generate_inner([{"type": "video", "value": "a.mp4"}])
