"""GenEditEvalKit: pictures from prompts, or from pictures and instructions.

In its `infer/custom_models/load_model.py`, under "t2i" and "edit" of `MODEL_SETTINGS`:
`"internvl-u-jax": {"model_path": DIRECTORY, "module": "internvlu_jax.evaluation.plugins.geneditevalkit", "class":
"InternVLUJax", "model_kwargs": {}}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.processing.chat import IMAGE_MARK

_SEED = 42  # the harness's default


class InternVLUJax:
    """A checkpoint as a model of GenEditEvalKit. width, height: of its pictures, for the harness's blank ones.

    Args:
        model_path: as in `from_pretrained`; None is the model in the box.
        reasoning: 1 writes reasoning before it draws.
        options: further arguments of a call, as `num_inference_steps=20`.
    """

    def __init__(self, model_path: str | None = None, reasoning: int = 0, **options: Any) -> None:
        self._pipe = InternVLUPipeline.from_pretrained(model_path)
        self._mode, self._options = "text_image" if reasoning else "image", options
        self.model_name = model_path.rstrip("/").split("/")[-1] if model_path else "internvl-u-jax"
        head = self._pipe.config.generation_decoder
        self.width, self.height = head.gen_image_width, head.gen_image_height

    def generate(self, prompt: str | Sequence[str | Image.Image], seed: int = _SEED) -> Image.Image:
        """The picture for a prompt; or for pictures among texts, in their order, in the size of the first."""
        parts = [prompt] if isinstance(prompt, str) else list(prompt)
        pictures = [part.convert("RGB") for part in parts if isinstance(part, Image.Image)]
        text = "".join(part if isinstance(part, str) else f"{IMAGE_MARK}\n" for part in parts)
        output = self._pipe([text], image=[pictures], generation_mode=self._mode, seed=seed, **self._options)
        [picture] = output.images or []
        return picture
