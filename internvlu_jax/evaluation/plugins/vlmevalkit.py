"""VLMEvalKit: answers to its data sets, with the prompts and tiles that it has for InternVL.

In its `vlmeval/config.py`: `"InternVL-U-JAX": partial(InternVLUJax, model_path="InternVL-U/InternVL-U")`.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from vlmeval.dataset import DATASET_TYPE
from vlmeval.vlm.base import BaseModel

from internvlu_jax.evaluation import prompts
from internvlu_jax.inference.options import NEW_TOKENS
from internvlu_jax.inference.pipeline import InternVLUPipeline

# Sets whose own prompts InternVL takes in VLMEvalKit.
_THEIR_PROMPTS = ("MMDU", "MME-RealWorld", "WeMath_COT", "MMAlignBench", "ChartQAPro", "ChartMuseum", "LEGO")


class InternVLUJax(BaseModel):  # type: ignore[misc]  # the harness has no types
    """A checkpoint as a model of VLMEvalKit. Greedy.

    Args:
        model_path: as in `from_pretrained`; None is the model in the box.
        max_new_tokens: of an answer; of no set here does one come near it.
        loading: further arguments of `from_pretrained`, as `devices="all"`.
    """

    INTERLEAVE = True

    def __init__(self, model_path: str | None = None, max_new_tokens: int = NEW_TOKENS["text"], **loading: Any) -> None:
        super().__init__()
        self._pipe = InternVLUPipeline.from_pretrained(model_path, **loading)
        self._max_new_tokens = max_new_tokens

    def use_custom_prompt(self, dataset: str) -> bool:
        """Whether `build_prompt` puts the questions of a set."""
        own = not any(name in dataset for name in _THEIR_PROMPTS)
        return own and DATASET_TYPE(dataset) in ("Y/N", "MCQ", "VQA")

    def build_prompt(self, line: Any, dataset: str) -> list[dict[str, str]]:
        """The text and then the pictures of a row. line: a row of the set's table (pandas)."""
        text, kind = line["question"], DATASET_TYPE(dataset)
        if kind == "MCQ":
            letters = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
            options = {letter: line[letter] for letter in letters if _there(line, letter)}
            text = prompts.multiple_choice(text, options, line["hint"] if _there(line, "hint") else None)
        elif kind == "VQA":
            text = prompts.question(dataset, text)
        elif "MME" in dataset:
            text = prompts.yes_or_no(text)
        pictures = [{"type": "image", "value": path} for path in self.dump_image(line, dataset)]
        return [{"type": "text", "value": text}, *pictures]

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """The answer to texts and pictures. message: {"type": "text" or "image", "value": text or path}.

        Raises:
            ValueError: a part is of another type.
        """
        if unknown := {part["type"] for part in message} - {"text", "image"}:
            raise ValueError(f"the message has {', '.join(sorted(unknown))}; expected text and image alone")
        prompt = prompts.interleaved([part["value"] if part["type"] == "text" else None for part in message])
        pictures = [_opened(part["value"]) for part in message if part["type"] == "image"]
        if pictures and "MMMU" in (dataset or ""):
            pictures[0] = prompts.enlarged(pictures[0])
        output = self._pipe(
            [prompt], image=[pictures], max_new_tokens=self._max_new_tokens,
            max_tiles=prompts.tiles(dataset, len(pictures)),
        )  # fmt: skip
        [answer] = output.text or []
        return answer


def _there(line: Any, name: str) -> bool:
    """Empty cells of a table are not a number, which is not equal to itself."""
    return name in line and line[name] is not None and line[name] == line[name]


def _opened(path: str) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
