"""lmms-eval: answers and pictures for its tasks.

`pip install 'internvlu-jax[lmms]'` makes `lmms-eval --model internvlu_jax --model_args pretrained=DIR,mode=text` work:
our package's metadata name `manifest` as an entry point of the group `lmms_eval.models`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image

from internvlu_jax.evaluation import prompts
from internvlu_jax.inference.stream import before_stop
from internvlu_jax.processing.chat import IMAGE_MARK, MODES
from internvlu_jax.utils.files import written_whole


def manifest() -> Any:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest  # while lmms-eval is being imported

    return ModelManifest("internvlu_jax", simple_class_path=f"{__name__}.InternVLUJax")


class InternVLUJax(lmms):  # type: ignore[misc]  # the harness has no types
    """A checkpoint as a model of lmms-eval.

    Args:
        pretrained: as in `from_pretrained`; None is the model in the box.
        mode: "text" answers as the task says; "image" and "text_image" draw as the pipeline does, and answer with JSON:
            {"text", "images": [files]}.
        output_dir: where pictures go.
        seed: of pictures and drawn tokens; the number of the document is added, and repeats of one have others.
        batch_size: prompts of a call.
        num_inference_steps: of the sampler.
        device, max_batch_size: lmms-eval gives them; JAX's devices are chosen by `devices` in `loading`.
        loading: further arguments of `from_pretrained`.

    Raises:
        ValueError: the mode is unknown, or lmms-eval runs in several processes.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        mode: str = "text",
        output_dir: str = "internvlu_jax_pictures",
        seed: int = 0,
        batch_size: int | str = 1,
        num_inference_steps: int = 20,
        device: str | None = None,
        max_batch_size: int | None = None,
        **loading: Any,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode={mode}; expected one of {', '.join(MODES)}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("lmms-eval runs in several processes; start one, and give devices=all to use all devices")
        # lmms-eval imports this file whenever it starts, whatever its model: JAX only when it is this one
        from internvlu_jax.inference.pipeline import InternVLUPipeline

        self._pipe = InternVLUPipeline.from_pretrained(pretrained, **loading)
        self._mode, self._seed, self._steps = mode, seed, num_inference_steps
        self._batch, self._folder = int(batch_size), Path(output_dir)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer a request, in their order. Requests with the same options share calls."""
        times = Counter[str]()
        asked = [_apart(self._asked(*request.args), times) for request in requests]
        answers: dict[int, str] = {}
        for numbers in _batches([one.options for one in asked], self._batch):
            for number, answer in zip(numbers, self._answers([asked[n] for n in numbers]), strict=True):
                answers[number] = answer
                self.cache_hook.add_partial("generate_until", requests[number].args[:2], answer)
        return [answers[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """All answers of each request: after each the task says what is asked next, or that it has ended."""
        times = Counter[str]()
        return [self._rounds(times, *request.args) for request in requests]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: tasks that compare the likelihood of given answers have a form that asks for an answer."""
        raise NotImplementedError("internvlu_jax writes answers; choose the generate_until form of the task")

    def _rounds(
        self, times: Counter[str], context: str, options: dict[str, Any], to_visual: Callable[[Any], Any],
        to_text: Callable[..., Any], number: int, task: str, split: str,
    ) -> list[str]:  # fmt: skip
        document, told, answers, rounds = self.task_dict[task][split][number], None, [], 0
        while True:
            asked = _apart(self._asked(context, options, to_visual, number, task, split), times)
            answers += self._answers([asked])
            rounds += 1
            visuals, context, ended, answers, told = to_text(
                document, previous_output=answers, round_idx=rounds, previous_round_info=told
            )
            answers = list(answers)
            if ended:
                return answers
            to_visual = partial(_given, visuals)

    def _asked(
        self, context: str, options: Mapping[str, Any], to_visual: Callable[[Any], Any], number: int, task: str,
        split: str,
    ) -> _Asked:  # fmt: skip
        pictures = [_opened(visual) for visual in to_visual(self.task_dict[task][split][number]) or ()]
        text = context if IMAGE_MARK in context else prompts.with_pictures(context, len(pictures))
        # What a task says of its answers says nothing of words before a picture, whose sources enter as the paper's do.
        chosen: dict[str, Any] = {"num_inference_steps": self._steps}
        if self._mode == "text":
            chosen = {"max_tiles": prompts.tiles(task, len(pictures)), **_writing(options)}
        return _Asked(text, pictures, chosen, self._seed + number, f"{task}_{split}_{number}")

    def _answers(self, asked: Sequence[_Asked]) -> list[str]:
        """Of prompts with the same options, in one call."""
        options = asked[0].options
        output = self._pipe(
            [one.text for one in asked], image=[one.pictures for one in asked], generation_mode=self._mode,
            seed=[one.seed for one in asked], **options,
        )  # fmt: skip
        texts = [before_stop(text, options.get("stop_strings", ())) for text in output.text or [""] * len(asked)]
        if output.images is None:
            return texts
        return [self._kept(*of) for of in zip(texts, output.images, asked, strict=True)]

    def _kept(self, text: str, picture: Image.Image, asked: _Asked) -> str:
        path = self._folder / f"{asked.name}.png"
        with written_whole(path) as unfinished:
            picture.save(unfinished)
        return json.dumps({"text": text, "images": [str(path)]}, ensure_ascii=False)


@dataclass(frozen=True)
class _Asked:
    """One prompt. options: of the pipeline's call, but for the seed. name: of its picture."""

    text: str
    pictures: list[Image.Image]
    options: dict[str, Any]
    seed: int
    name: str


def _apart(asked: _Asked, times: Counter[str]) -> _Asked:
    """With a seed and a file of its own, where the document was asked before: repeats are further samples.

    times: how often each name was, counted here.
    """
    before = times[asked.name]
    times[asked.name] += 1
    if not before:
        return asked
    seed = int.from_bytes(hashlib.sha256(f"{asked.seed}/{before}".encode()).digest()[:4])
    return replace(asked, seed=seed, name=f"{asked.name}-{before}")


def _writing(options: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's options for lmms-eval's: a temperature of 0 is greedy; what has no counterpart is left out."""
    chosen = {name: options[name] for name in ("max_new_tokens", "num_beams") if options.get(name) is not None}
    until = options.get("until") or ()
    chosen["stop_strings"] = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
    if options.get("do_sample", True) and (options.get("temperature") or 0) > 0:
        top_p = {"top_p": float(options["top_p"])} if options.get("top_p") is not None else {}
        chosen |= {"do_sample": True, "temperature": float(options["temperature"]), **top_p}
    return chosen


def _batches(options: Sequence[dict[str, Any]], size: int) -> Iterator[list[int]]:
    """Positions with the same options, at most so many together."""
    groups: dict[str, list[int]] = {}
    for number, own in enumerate(options):
        groups.setdefault(repr(own), []).append(number)
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _opened(visual: Any) -> Image.Image:
    """A picture, or the name of its file.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(visual, Image.Image):
        return visual.convert("RGB")
    if not isinstance(visual, str):
        raise ValueError(f"the task shows a {type(visual).__name__}; expected pictures or names of their files")
    with Image.open(visual) as picture:
        return picture.convert("RGB")


def _given(visuals: Any, document: Any) -> Any:
    """What a round shows, whatever the document shows."""
    return visuals
