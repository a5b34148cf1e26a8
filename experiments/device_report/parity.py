"""Pictures and answers that were recorded from the released code, drawn again on this device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from experiments.rows import Row
from internvlu_jax import InternVLUPipeline
from internvlu_jax.inference import programs

CASES = ("t2i", "edit", "text_image", "reason_t2i")


def rows(recorded: Path, dtype: Literal["bfloat16", "float32"], cases: Sequence[str] = CASES) -> list[Row]:
    """A row for each case, and each part: what of it is as recorded, and how far the rest is off.

    Args:
        recorded: a recorded checkpoint, as `tests/goldens/base`.
        dtype: of the computation, but for times, which are not rounded to it: in what was recorded they are not.

    Raises:
        ValueError: it is not there.
    """
    meta = recorded / "pipeline/meta.json"
    if not meta.is_file():
        raise ValueError(f"{meta} is missing; run from a clone of the repository, or give --goldens")
    known = json.loads(meta.read_text(encoding="utf-8"))
    pipe = InternVLUPipeline.from_pretrained(recorded / "checkpoint", dtype=dtype, time="float32")
    found: list[Row] = []
    for case in cases:
        found.append({"case": case, "dtype": dtype, **_apart(pipe, recorded, case, known[case])})
    for part, apart in parts(pipe, recorded):
        found.append({"case": part, "dtype": dtype, "relative L2": apart})
    return found


def parts(pipe: InternVLUPipeline, recorded: Path) -> Iterator[tuple[str, float]]:
    """Parts by themselves, relative L2 from what was recorded."""
    edit, drawn = (np.load(recorded / f"pipeline/{case}.npz") for case in ("edit", "t2i"))
    processor = pipe.config.processor
    tiles = _pixels(edit["proc_pixel_values"], processor.image_processor_kwargs)
    tokens = programs.visual_tokens(pipe.model, pipe.params, tiles)
    yield "vision encoder", _relative(tokens, edit["vit_features"].reshape(tokens.shape))
    source = _pixels(edit["proc_pixel_values_gen"][:1], processor.image_gen_processor_kwargs)
    latents = np.moveaxis(edit["cond_latents"], -3, -1)[:1]
    yield "VAE encoder", _relative(programs.encode(pipe.model, pipe.params, source), latents)
    seen = drawn["proc_attention_mask"][0].astype(bool)
    states = programs.contexts(
        pipe.model, pipe.params, drawn["proc_input_ids"][0][seen][None], np.arange(seen.sum())[None]
    )
    layers = pipe.config.generation_decoder.vlm_select_layer
    read = np.concatenate([drawn[f"vlm_hidden_{layer}"][0][seen] for layer in layers], axis=-1)
    yield "language model", _relative(states[0], read)


def _pixels(values: np.ndarray, cfg: Any) -> np.ndarray:
    """The 8 bits that were recorded as normalised values, channels last."""
    return np.round(255 * (np.moveaxis(values, -3, -1) * cfg.image_std + cfg.image_mean)).astype(np.uint8)


def _relative(got: Any, recorded: np.ndarray) -> float:
    true = recorded.astype(np.float64)
    return float(np.linalg.norm(np.asarray(got, np.float64) - true) / np.linalg.norm(true))


def _apart(pipe: InternVLUPipeline, recorded: Path, case: str, meta: dict[str, Any]) -> Row:
    numbers = np.load(recorded / f"pipeline/{case}.npz")
    images = meta["images"] and [[Image.open(recorded / "pipeline" / name) for name in row] for row in meta["images"]]
    start = {"latents": np.moveaxis(numbers["initial_latents"], -3, -1)} if "initial_latents" in numbers else {}
    out = pipe(meta["prompts"], images, meta["mode"], **meta["kwargs"], **start)
    row: Row = {}
    if out.text is not None:
        row["texts equal"] = "yes" if out.text == meta["texts"] else "no"
    if out.images is not None:
        pictures = np.stack([np.asarray(picture) for picture in out.images]).astype(int)
        levels = np.abs(pictures - numbers["images"])
        row |= {"mean level apart": float(levels.mean()), "most": float(levels.max())}
    return row
