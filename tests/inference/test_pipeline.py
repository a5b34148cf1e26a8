"""Every recorded case of the released pipeline, through the public API and the real converter."""

import functools
import json
import sys

import numpy as np
import pytest
from PIL import Image

from internvlu_jax import InternVLUPipeline
from internvlu_jax.inference import layers, programs
from tests.conftest import GOLDENS, sizes_only
from tests.helpers.measures import assert_close, channels_last

CASES = json.loads((GOLDENS / "base/pipeline/meta.json").read_text(encoding="utf-8"))
assert set(CASES) == set(json.loads((GOLDENS / "mlp/pipeline/meta.json").read_text(encoding="utf-8")))


@functools.cache
def load(name: str) -> InternVLUPipeline:
    return InternVLUPipeline.from_pretrained(GOLDENS / name / "checkpoint")


def run(golden, case: str, **kwargs):
    """(pipeline, output, recorded numbers) of one case, from the recorded noise."""
    pipe, meta, recorded = load(golden.name), golden.cases[case], golden.case(case)
    images = meta["images"] and [[Image.open(golden.root / "pipeline" / f) for f in row] for row in meta["images"]]
    if "initial_latents" in recorded:
        kwargs["latents"] = channels_last(recorded["initial_latents"])
    return pipe, pipe(meta["prompts"], images, meta["mode"], **meta["kwargs"], **kwargs), recorded


@pytest.mark.parametrize("golden", ["base"], indirect=True)
@pytest.mark.parametrize("case", ["text_batch", "text_beam"])
def test_a_list_of_layers_writes_what_was_recorded(golden, case, monkeypatch):
    """As a large model is served."""
    monkeypatch.setattr(layers, "_LIST_FROM", 0)
    pipe = InternVLUPipeline.from_pretrained(GOLDENS / golden.name / "checkpoint")
    assert pipe.model.compute.layers == "unrolled"
    monkeypatch.setattr(sys.modules[__name__], "load", lambda name: pipe)
    assert run(golden, case)[1].text == golden.cases[case]["texts"]


# Of the second checkpoint a case of each kind: the others take no branch that these and the first one's do not.
_EACH_MODE = ("text_multi_image", "t2i_batch")
_GOLDEN_CASES = [
    pytest.param(name, case, marks=[pytest.mark.slow] if name == "mlp" and case not in _EACH_MODE else [])
    for name in ("base", "mlp")
    for case in CASES
]


@pytest.mark.parametrize(("golden", "case"), _GOLDEN_CASES, indirect=["golden"])
def test_case_equals_the_released_code(golden, case):
    steps = []
    mode = golden.cases[case]["mode"]
    look = {} if mode == "text" else {"callback": lambda step, total, latents: steps.append((step, total, latents))}
    pipe, out, recorded = run(golden, case, **look)
    assert out.text == golden.cases[case]["texts"]
    if mode != "image":
        # Rows that ended early are filled with the stop token in the recording.
        filled = np.full_like(recorded["generated_tokens"], pipe.processor.tokenizer.im_end)
        for row, tokens in zip(filled, out.tokens, strict=True):
            row[: len(tokens)] = tokens
        np.testing.assert_array_equal(filled, recorded["generated_tokens"])
    if mode == "text":
        assert out.images is None
        return
    total = golden.cases[case]["kwargs"]["num_inference_steps"]
    assert [s[:2] for s in steps] == [(i + 1, total) for i in range(total)]
    assert_close(
        np.stack([s[2] for s in steps]), channels_last(recorded["latents_by_step"]), 5e-5, "latents after each step"
    )
    pictures = np.stack([np.asarray(picture) for picture in out.images]).astype(int)
    difference = np.abs(pictures - recorded["images"])
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3


@sizes_only
@pytest.mark.parametrize(
    "case", ["t2i", *(pytest.param(case, marks=pytest.mark.slow) for case in ("edit_resized", "reason_edit"))]
)
def test_the_loop_in_one_program_gives_the_recorded_pictures(golden, case):
    _, out, recorded = run(golden, case)
    difference = np.abs(np.stack([np.asarray(p) for p in out.images]).astype(int) - recorded["images"])
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3


def pixels_of(values, cfg):
    """The 8 bits that were recorded as normalised values."""
    pixels = 255 * (channels_last(values) * np.array(cfg.image_std) + np.array(cfg.image_mean))
    assert np.abs(pixels - np.round(pixels)).max() < 1e-3
    return np.round(pixels).astype(np.uint8)


@pytest.mark.parametrize("case", ["edit", "edit_batch", "text_multi_image"])
def test_visual_tokens(golden, case):
    pipe, recorded = load(golden.name), golden.case(case)
    cfg = pipe.config.processor.image_processor_kwargs
    got = programs.visual_tokens(pipe.model, pipe.params, pixels_of(recorded["proc_pixel_values"], cfg))
    assert_close(got, recorded["vit_features"].reshape(got.shape), 1e-5)


@pytest.mark.parametrize("case", ["edit", "edit_resized"])
def test_latents_of_the_source(golden, case):
    pipe, recorded = load(golden.name), golden.case(case)
    cfg = pipe.config.processor.image_gen_processor_kwargs
    got = programs.encode(pipe.model, pipe.params, pixels_of(recorded["proc_pixel_values_gen"][:1], cfg))
    assert_close(got, channels_last(recorded["cond_latents"])[:1], 1e-5)


@pytest.mark.parametrize("case", ["t2i", "t2i_batch", "reason_t2i"])
def test_hidden_states_that_condition_the_head(golden, case):
    """The reasoning case among them: prompt, kept text and `<img>`, as the released code encodes them again."""
    pipe, recorded = load(golden.name), golden.case(case)
    prefix = "vlm_" if "vlm_input_ids" in recorded else "proc_"
    ids, mask = recorded[f"{prefix}input_ids"], recorded[f"{prefix}attention_mask"].astype(bool)
    for row, (own, seen) in enumerate(zip(ids, mask, strict=True)):
        got = programs.contexts(pipe.model, pipe.params, own[seen][None], np.arange(seen.sum())[None])[0]
        layers = pipe.config.generation_decoder.vlm_select_layer
        want = np.concatenate([recorded[f"vlm_hidden_{layer}"][row][seen] for layer in layers], axis=-1)
        assert_close(got, want, 1e-5, f"row {row}")
