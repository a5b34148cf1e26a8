"""An edit keeps the size of its source, and prompts of several sizes come back in their order."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from internvlu_jax import InternVLUPipeline
from internvlu_jax.checkpoints.loading import BUILT_IN
from internvlu_jax.config import GenerationImageProcessorConfig
from internvlu_jax.config_files import read_config
from internvlu_jax.inference import drawing, pipeline
from internvlu_jax.inference.drawing import Branch, PictureInputs
from internvlu_jax.inference.encoding import PromptEmbeds, source_size
from internvlu_jax.inference.options import Options
from internvlu_jax.inference.outputs import PipelineOutput, SourceSize, by_size, sized, within
from internvlu_jax.processing.processor import Processor
from tests.conftest import GOLDENS

RELEASED = GenerationImageProcessorConfig()


@pytest.mark.parametrize(
    ("limits", "size", "returned"),
    [
        (RELEASED, (700, 1000), (700, 1000)),
        (RELEASED, (30, 20), (30, 20)),
        (RELEASED, (3000, 4000), (768, 1024)),
        (RELEASED, (5000, 20), (1024, 4)),
        (dataclasses.replace(RELEASED, max_length=None), (1024, 2048), (724, 1448)),  # 16384 * 64 pixels
    ],
)
def test_a_source_is_kept_or_made_smaller(limits, size, returned):
    assert within(limits, size) == returned


@pytest.fixture(scope="module")
def pipe():
    return InternVLUPipeline.from_pretrained(GOLDENS / "base/checkpoint")


def picture(seed: int, width: int, height: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def test_an_edit_keeps_the_size_of_its_source(pipe):
    """It is drawn as large as the source enters the head, and resized."""
    source = picture(0, 75, 50)
    options = {"generation_mode": "image", "num_inference_steps": 1, "seed": 3}
    drawn = pipe.source_size(source)
    assert drawn != (50, 75)
    (kept,), (large,) = (
        pipe("make it blue", source, **options, **sides).images
        for sides in ({}, dict(zip(("height", "width"), drawn, strict=True)))
    )
    assert kept.size == (75, 50)
    np.testing.assert_array_equal(kept, large.resize((75, 50), Image.Resampling.LANCZOS))


OPTIONS = Options(
    mode="text_image", height=64, width=96, num_inference_steps=1, flow_shift=1.0, all_cfg_scale=1.0,
    part_cfg_scale=1.0, num_images_per_prompt=2, seed=tuple(range(8)), noise="jax", latents=None, max_new_tokens=1,
    do_sample=False, temperature=1.0, top_p=1.0, top_k=None, repetition_penalty=1.0, num_beams=1, stop_strings=(),
    system_prompt=None, max_tiles=1, callback=None, progress=False,
)  # fmt: skip
SOURCES = [SourceSize((50, 75), (48, 80)), None, SourceSize((64, 40), (64, 48)), SourceSize((50, 75), (48, 80))]


def called(asked):
    """What is run, by its prompts, and what comes out: texts that name the prompts, pictures as large as the seed."""
    calls = {}

    def run(places, options):
        calls[tuple(places)] = options.height, options.width, options.returned, options.seed
        images = [Image.new("L", (seed + 1, 1)) for seed in options.seed]
        return PipelineOutput([str(n) for n in places], [np.array([n]) for n in places], images)

    return calls, by_size(run, [sized(OPTIONS, source, asked, RELEASED) for source in SOURCES])


def test_prompts_of_one_size_run_together_and_come_back_in_order():
    calls, out = called((None, None))
    assert calls == {
        (0, 3): (48, 80, (50, 75), (0, 1, 6, 7)),
        (1,): (64, 96, (64, 96), (2, 3)),
        (2,): (64, 48, (64, 40), (4, 5)),
    }
    assert out.text == ["0", "1", "2", "3"] and [int(*one) for one in out.tokens] == [0, 1, 2, 3]
    assert [image.width for image in out.images] == list(range(1, 9))


def test_sides_that_are_asked_for_hold():
    assert list(called((64, 96))[0].values()) == [(64, 96, (64, 96), tuple(range(8)))]
    calls, _ = called((None, 32))
    assert [sizes for *sizes, _ in calls.values()] == [[48, 32, (48, 32)], [64, 96, (64, 96)], [64, 32, (64, 32)]]


def test_one_seed_is_that_of_every_size():
    options = dataclasses.replace(OPTIONS, seed=5)
    seeds = []
    own = [sized(options, source, (None, None), RELEASED) for source in SOURCES]
    by_size(lambda _, own: seeds.append(own.seed) or PipelineOutput(images=[]), own)
    assert seeds == [5, 5, 5]


def test_a_side_that_is_not_asked_for_is_the_sources_before_the_size_is_checked(monkeypatch):
    """The model in the box draws 4096 pixels: of a source of 32 x 128 not twice as many, but all of its own width."""
    config, drawn = read_config(BUILT_IN), []
    pipe = InternVLUPipeline(config, {}, Processor.from_pretrained(BUILT_IN, config.processor))
    monkeypatch.setattr(pipe, "_draw", lambda pictures, own: drawn.append((own.height, own.width)) or [])
    monkeypatch.setattr(pipe, "_encode", lambda prompts, grid: read(prompts, True))
    given = {"prompt": ["a", "b"], "image": [picture(0, 128, 32), None], "generation_mode": "image"}
    with pytest.raises(ValueError, match="height 64 x width 128 is over the checkpoint's limit of 4096"):
        pipe(**given, height=64)
    assert not drawn
    given = {name: one[:1] if isinstance(one, list) else one for name, one in given.items()}
    pipe(**given, width=128)
    assert drawn == [(32, 128)]
    for call in (pipe, pipe.stream):
        with pytest.raises(ValueError, match="height 64 x width 128"):
            call("a", given["image"], "text_image", height=64)


NOTHING = Branch(np.zeros((1, 1)), None)


def read(prompts, taken: bool) -> list[PictureInputs]:
    """What reading gives, without a model. taken: whether the head gets latents of sources."""
    return [
        PictureInputs(
            NOTHING, NOTHING if prompt.sources else None, NOTHING,
            tuple(np.zeros((s.shape[0] // 8, s.shape[1] // 8, 16)) for s in prompt.sources if taken),
        )
        for prompt in prompts
    ]  # fmt: skip


@pytest.mark.parametrize("by_embeds", [False, True])
@pytest.mark.parametrize(
    ("asked", "sources", "groups"),
    [
        ({}, "both", [1, 2, 1, 1]),
        ({"width": 32}, "both", [1, 2, 1, 1]),
        ({"height": 48, "width": 64}, "both", [1, 2, 1, 1]),
        ({}, "context", [1, 3, 1]),
        ({"height": 48, "width": 64}, "context", [1, 4]),
    ],
)
def test_steps_count_through_all_that_a_call_draws(pipe, monkeypatch, asked, sources, groups, by_embeds):
    """Prompts of several sizes, with none, one and two sources; reading, drawing and decoding are stand-ins."""
    head = dataclasses.replace(pipe.config.generation_decoder, sources=sources)
    pipe = InternVLUPipeline(dataclasses.replace(pipe.config, generation_decoder=head), {}, pipe.processor)
    images = [None, picture(0, 64, 48), picture(1, 48, 64), [picture(2, 64, 48)] * 2, picture(3, 64, 48)]
    drawn, seen = [], []

    def draw(on, model, params, pictures, start, plan, scales, report):
        drawn.append(len(pictures))
        report(0, 1000, start)
        report(1, 500, start)
        return start

    monkeypatch.setattr(drawing, "draw", draw)
    monkeypatch.setattr(pipeline, "resized", lambda pictures, *_: pictures)
    monkeypatch.setattr(pipe, "_encode", lambda prompts, grid: read(prompts, sources == "both"))
    monkeypatch.setattr(pipe, "_decode", lambda latents: np.zeros((len(latents), 8, 8, 3), np.uint8))
    given = {"prompt": ["a"] * 5, "image": images}
    if by_embeds:
        prompts = pipe.processor.process(*given.values(), "image")
        pictures, sizes = tuple(read(prompts, sources == "both")), tuple(map(source_size, prompts))
        given = {"prompt_embeds": PromptEmbeds(pictures, sizes)}
    pipe(
        **given, **asked, generation_mode="image", num_inference_steps=2, progress=True,
        callback=lambda step, total, _: seen.append((step, total)),
    )  # fmt: skip
    assert sorted(drawn) == sorted(groups)
    assert seen == [(n + 1, 2 * len(groups)) for n in range(2 * len(groups))]
