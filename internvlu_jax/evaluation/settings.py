"""The settings of a run of a benchmark: how the model is asked, and what decides about pictures and answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from internvlu_jax.config_files import to_json
from internvlu_jax.evaluation.task import Item
from internvlu_jax.inference.arguments import given_to, options_of
from internvlu_jax.inference.layers import unlisted
from internvlu_jax.inference.options import GUIDANCE, NEW_TOKENS, STEPS
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.processing.chat import system_text
from internvlu_jax.utils.checkout import commit
from internvlu_jax.utils.seeds import check_seed

Mode = Literal["text", "image", "text_image"]
_NOTED = ("checkpoint", "devices", "batch", "commit", "device", "jax")
"""Written down as the run began; one that goes on may have others, for the parameters themselves are compared."""


@dataclass(frozen=True)
class RunOptions:
    """How the model is asked.

    Attributes:
        seed: with an item's own seed and id it decides the noise.
        steps: of the sampler.
        height, width: pixels; None is the checkpoint's, and for an edit the size of its source.
        all_cfg_scale, part_cfg_scale: guidance; None is the pipeline's default in the mode.
        reasoning: words before each picture.
        max_new_tokens: of text; None is the pipeline's default in the mode.
        batch: pictures, or answers, that are made at once.
        limit: so many of the first items; None is all.
        host, hosts: this process takes the items whose number leaves `host` when divided by `hosts`.
    """

    seed: int = 0
    steps: int = STEPS
    height: int | None = None
    width: int | None = None
    all_cfg_scale: float | None = None
    part_cfg_scale: float | None = None
    reasoning: bool = False
    max_new_tokens: int | None = None
    batch: int = 8
    limit: int | None = None
    host: int = 0
    hosts: int = 1

    def check(self) -> None:
        """Raises ValueError naming the first option that no checkpoint could use."""
        check_seed(self.seed, "--seed")
        for name in ("steps", "batch", "hosts", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; expected at least 1")
        if not 0 <= self.host < self.hosts:
            raise ValueError(f"--host is {self.host}; expected 0 to {self.hosts - 1}, as there are {self.hosts} hosts")

    def check_for(self, pipe: InternVLUPipeline, item: Item) -> None:
        """Raises ValueError naming the first option that this checkpoint cannot use for an item."""
        asked = pipe, "", None, self.mode(item)
        given = given_to(InternVLUPipeline.__call__, *asked, **self.call(item), seed=0)
        options_of(given, pipe.config, lambda: 0).check(pipe.config, 1)

    def mode(self, item: Item) -> Mode:
        if item.path is None:
            return "text"
        return "text_image" if self.reasoning or item.reasoning else "image"

    def call(self, item: Item) -> dict[str, Any]:
        """The arguments of the pipeline, but for prompts, pictures and noise."""
        mode = self.mode(item)
        words: dict[str, Any] = {} if mode == "image" else {"max_new_tokens": self._new_tokens(item)}
        if mode == "text":
            return words
        part, whole = self._guidance(mode)
        return {
            **words,
            "height": self.height,
            "width": self.width,
            "num_inference_steps": self.steps,
            "all_cfg_scale": whole,
            "part_cfg_scale": part,
        }

    def seeds(self, item: Item) -> list[int]:
        """Of each picture that an item asks for, whatever else is drawn; of text there is one."""
        names = (f"{self.seed}/{item.seed}/{item.id}/{tile}" for tile in range(item.tiled))
        return [int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) for name in names]

    def _guidance(self, mode: Mode) -> tuple[float, float]:
        whole, part = GUIDANCE[mode]
        return (
            part if self.part_cfg_scale is None else self.part_cfg_scale,
            whole if self.all_cfg_scale is None else self.all_cfg_scale,
        )

    def _new_tokens(self, item: Item) -> int:
        chosen = (self.max_new_tokens, item.max_new_tokens, NEW_TOKENS[self.mode(item)])
        return next(tokens for tokens in chosen if tokens is not None)


def of_each_mode(items: Sequence[Item], options: RunOptions) -> dict[Mode, Item]:
    """The first item of every mode."""
    found: dict[Mode, Item] = {}
    for item in items:
        found.setdefault(options.mode(item), item)
    return found


def settings(
    benchmark: str, items: Sequence[Item], pipe: InternVLUPipeline, known: Mapping[str, Any], options: RunOptions
) -> dict[str, Any]:
    """What `run.json` holds: everything that decides about pictures and answers, and what else is worth knowing.

    "size" is the checkpoint's (height, width), which holds in a mode that gives none, unless a source has its own.

    Args:
        items: all of the benchmark. known: what the caller knows besides.
    """
    pictured = any(item.pictures for item in items)
    return {
        "benchmark": benchmark,
        "items": _digest(items),
        **known,
        "parameters": fingerprint(pipe),
        "quantize": pipe.model.quantization,
        "dtype": pipe.model.compute.dtype,
        "time": pipe.model.compute.time,
        "attention": pipe.model.compute.attention,
        "seed": options.seed,
        "size": [pipe.config.generation_decoder.gen_image_height, pipe.config.generation_decoder.gen_image_width],
        "modes": {
            mode: {"system prompt": system_text(mode, pictured), **options.call(item)}
            for mode, item in of_each_mode(items, options).items()
        },
        "first prompt": items[0].prompt,
        "max_tiles": sorted({item.max_tiles for item in items}),
        "batch": options.batch,
        "commit": commit(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def differing(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """The settings that decide and are not the same, each with both values."""
    old, new = ({n: v for n, v in _named(given) if n not in _NOTED} for given in (before, now))
    return [f"{n} {old.get(n)!r}, now {new.get(n)!r}" for n in {**old, **new} if old.get(n) != new.get(n)]


def _named(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its name, those of a mapping in a mapping as outer.inner."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def fingerprint(pipe: InternVLUPipeline) -> str:
    """A hash of the configuration and all parameters, whatever the checkpoint is called and how it is laid out."""
    digest = hashlib.sha256(json.dumps(to_json(pipe.config), sort_keys=True).encode())
    for path, leaf in jax.tree.leaves_with_path(unlisted(pipe.parameters(), pipe.config)):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf() if callable(leaf) else leaf).view(np.uint8).data)
    return digest.hexdigest()[:16]


def _digest(items: Sequence[Item]) -> str:
    """Of what is asked; pictures count by their number."""
    told = [{**vars(item), "pictures": len(item.pictures), "beside": sorted(item.beside)} for item in items]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=dict).encode()).hexdigest()[:16]
