"""Stand-ins for other harnesses and for the pipeline: what is documented of their calls."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from internvlu_jax.inference.pipeline import InternVLUPipeline, PipelineOutput


class Pipe:
    """Keeps every call's arguments. Answers are "1.", "2." and so on over all calls; pictures as asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.config = SimpleNamespace(generation_decoder=SimpleNamespace(gen_image_width=64, gen_image_height=48))
        self._written = 0

    def __call__(
        self, prompt: list[str], image: list[Any], generation_mode: str = "text", **options: Any
    ) -> PipelineOutput:
        self.calls.append({"prompt": prompt, "image": image, "mode": generation_mode, **options})
        text = images = None
        if generation_mode != "image":
            text = [f"{self._written + number}." for number in range(1, len(prompt) + 1)]
            self._written += len(prompt)
        if generation_mode != "text":
            sizes = [own[0].size if own else (options.get("width", 64), options.get("height", 48)) for own in image]
            images = [Image.new("RGB", size) for size in sizes]
        return PipelineOutput(text=text, images=images)


def plugged(monkeypatch: pytest.MonkeyPatch, plugin: str, **modules: dict[str, Any]) -> tuple[ModuleType, Pipe]:
    """A plug-in that finds these modules (dots as two underscores) for its harness, and the pipeline that it loads."""
    for name, contents in modules.items():
        module = ModuleType(name.replace("__", "."))
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    pipe = Pipe()
    monkeypatch.setattr(InternVLUPipeline, "from_pretrained", lambda *given, **options: pipe)
    name = f"internvlu_jax.evaluation.plugins.{plugin}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, module)  # and taken away at the end
    return module, pipe
