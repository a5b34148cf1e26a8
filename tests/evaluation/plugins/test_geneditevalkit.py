"""GenEditEvalKit's documented calls."""

import importlib

from PIL import Image

from tests.helpers.harness import plugged


def test_prompts_and_edits(monkeypatch):
    module, pipe = plugged(monkeypatch, "geneditevalkit")
    setting = {"model_path": "checkpoints/InternVL-U/", "module": module.__name__, "class": "InternVLUJax"}
    loaded = getattr(importlib.import_module(setting["module"], package="custom_models"), setting["class"])
    model = loaded(model_path=setting["model_path"], **{"num_inference_steps": 4})
    assert (model.model_name, model.width, model.height) == ("InternVL-U", 64, 48)
    assert model.generate("a cat", seed=45).size == (64, 48)
    source = Image.new("RGBA", (100, 81))
    assert model.generate([source, "make it red"], seed=42).size == source.size
    drawn, edited = pipe.calls
    common = {"mode": "image", "num_inference_steps": 4}
    assert drawn == {"prompt": ["a cat"], "image": [[]], "seed": 45, **common}
    [[picture]] = edited.pop("image")
    assert picture.mode == "RGB" and picture.size == source.size
    assert edited == {"prompt": ["<image>\nmake it red"], "seed": 42, **common}


def test_reasoning_and_several_pictures(monkeypatch):
    module, pipe = plugged(monkeypatch, "geneditevalkit")
    model = module.InternVLUJax(None, reasoning=1)
    assert model.model_name == "internvl-u-jax"
    pictures = [Image.new("RGB", (16, 16)), Image.new("RGB", (24, 24))]
    assert model.generate([pictures[0], "wears", pictures[1], "hat"]).size == (16, 16)
    assert pipe.calls[0]["mode"] == "text_image" and pipe.calls[0]["seed"] == 42
    assert pipe.calls[0]["prompt"] == ["<image>\nwears<image>\nhat"]
