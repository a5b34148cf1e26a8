"""The arguments that diffusers' users know: what they do is what other arguments do, or what is worked out by hand."""

import jax
import numpy as np
import pytest
from PIL import Image

from internvlu_jax import InternVLUPipeline
from internvlu_jax.flow import solver
from internvlu_jax.flow.noise import starting_noise
from internvlu_jax.inference import programs
from internvlu_jax.inference.outputs import collected
from internvlu_jax.utils.seeds import numbered_keys
from tests.conftest import GOLDENS

DRAW = {"generation_mode": "image", "height": 32, "width": 48, "num_inference_steps": 2}
CAT = {"prompt": "a cat", **DRAW}


@pytest.fixture(scope="module")
def pipe():
    return InternVLUPipeline.from_pretrained(GOLDENS / "base/checkpoint")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8))


def start(count: int = 1) -> np.ndarray:
    return starting_noise("jax", 7, count, (4, 6, 16))


def differ(one, other) -> float:
    return np.abs(np.asarray(one).astype(float) - np.asarray(other)).max()


@pytest.mark.parametrize(
    ("generator", "instead"),
    [
        pytest.param(3, {"seed": 3}, marks=pytest.mark.slow),
        ([3, 4], {"seed": [3, 4]}),
        (jax.random.key(3), {"seed": 3, "noise": "jax"}),
        pytest.param(jax.random.PRNGKey(3), {"seed": 3, "noise": "jax"}, marks=pytest.mark.slow),
        (jax.random.split(jax.random.key(3)), None),
    ],
)
def test_generator(pipe, generator, instead):
    count = 2 if isinstance(generator, list) or instead is None else 1
    options = {**CAT, "num_images_per_prompt": count}
    out = pipe(generator=generator, **options)
    assert out.seed is generator
    if instead is None:  # each picture has the noise of the first number of its key, which is none of a seed
        noise = [jax.random.normal(jax.random.fold_in(key, 0), (4, 6, 16)) for key in generator]
        instead = {"latents": np.stack(noise)}
    for got, want in zip(out.images, pipe(**instead, **options).images, strict=True):
        np.testing.assert_array_equal(got, want)


def test_keys_stand_for_their_seeds():
    data = [np.asarray(jax.random.key_data(keys)) for keys in (
        numbered_keys(5, 3), numbered_keys(jax.random.key(5), 3),
        numbered_keys([5, 6], 2), numbered_keys([jax.random.key(5), 6], 2),
    )]  # fmt: skip
    np.testing.assert_array_equal(data[0], data[1])
    np.testing.assert_array_equal(data[2], data[3])
    assert not np.array_equal(data[0][0], data[0][1])


def test_output_type_and_return_dict(pipe):
    pil = pipe(latents=start(), **CAT)
    array = pipe(latents=start(), output_type="np", **CAT).images
    assert array.shape == (1, 32, 48, 3) and array.dtype == np.float32
    np.testing.assert_array_equal(np.rint(array[0] * 255), pil.images[0])
    latents = pipe(latents=start(), output_type="latent", **CAT).images
    decoded = programs.decode(pipe.model, pipe.params, latents)
    np.testing.assert_array_equal(decoded[0], pil.images[0])
    (images,) = pipe(latents=start(), return_dict=False, **CAT)
    np.testing.assert_array_equal(images[0], pil.images[0])
    (texts,) = pipe("a", max_new_tokens=2, return_dict=False)
    assert texts == pipe("a", max_new_tokens=2).text


def test_pictures_of_several_sizes_are_a_list_of_arrays():
    wide, tall = np.zeros((50, 70, 3)), np.ones((64, 40, 3))
    assert [image.shape for image in collected([wide, tall])] == [(50, 70, 3), (64, 40, 3)]
    assert collected([wide, wide]).shape == (2, 50, 70, 3)


def test_callback_on_step_end_sees_every_step_and_changes_nothing(pipe):
    seen = []
    out = pipe(latents=start(), callback_on_step_end=lambda *given: seen.append(given), **CAT)
    plan = solver.schedule(2, pipe.config.generation_decoder.flow_shift)
    assert [(p, step, time) for p, step, time, _ in seen] == [(pipe, n, t) for n, t in enumerate(plan.timesteps)]
    assert differ(out.images[0], pipe(latents=start(), **CAT).images[0]) <= 1  # the loop in one program
    last = seen[-1][-1]["latents"]
    np.testing.assert_array_equal(last, pipe(latents=start(), callback=print, output_type="latent", **CAT).images)


def test_time_can_be_what_the_released_weights_saw(pipe):
    rounded = InternVLUPipeline.from_pretrained(GOLDENS / "base/checkpoint", time="bfloat16")
    assert (pipe.model.compute.time, rounded.model.compute.time, rounded.model.compute.dtype) == (
        None, "bfloat16", "float32",
    )  # fmt: skip
    with pytest.raises(ValueError, match="time is 'float16'; expected one of None, 'float32', 'bfloat16'"):
        InternVLUPipeline.from_pretrained(GOLDENS / "base/checkpoint", time="float16")
    with pytest.raises(ValueError, match="dtype is 'float16'; expected one of 'float32', 'bfloat16'"):
        InternVLUPipeline.from_pretrained(GOLDENS / "base/checkpoint", dtype=np.float16)


def test_a_picture_that_is_not_finite_is_an_error(pipe):
    """Of damaged weights; it was black."""
    params = {**pipe.params, "head": jax.tree.map(lambda x: x * np.nan, pipe.params["head"])}
    damaged = InternVLUPipeline(pipe.config, params, pipe.processor, pipe.model.compute)
    for options in ({}, {"callback": lambda *_: None}):
        with pytest.raises(ValueError, match=r"1 of 1 pictures are not finite: .* Take less guidance"):
            damaged(latents=start(), **options, **CAT)


def test_callback_on_step_end_changes_latents(pipe):
    """The last step goes on from them as equation (2) of the solver has it: to x0 = x - sigma v."""
    given = start(2)[1:]

    def change(pipe, step, timestep, held):
        return {"latents": given + 1} if step == 1 else {"latents": held["latents"]}

    changed = pipe(latents=start(), callback_on_step_end=change, output_type="latent", **CAT).images
    np.testing.assert_array_equal(changed, given + 1)
    first = pipe(
        latents=start(),
        callback_on_step_end=lambda p, step, t, held: {"latents": given} if step == 0 else held,
        output_type="latent", **CAT,
    ).images  # fmt: skip
    plan = solver.schedule(2, pipe.config.generation_decoder.flow_shift)
    alone = pipe(
        latents=given, timesteps=[float(1000 * plan.sigmas[1])], output_type="latent",
        **{**CAT, "num_inference_steps": 1},
    ).images  # fmt: skip
    np.testing.assert_allclose(first, alone, atol=1e-4)


def test_callback_on_step_end_stops(pipe):
    """What is there is decoded; the next call draws to the end again; an exception comes through."""
    latents = []

    def stop(pipe, step, timestep, held):
        latents.append(held["latents"])
        pipe._interrupt = True

    out = pipe(latents=start(), callback_on_step_end=stop, output_type="latent", **CAT).images
    assert len(latents) == 1
    np.testing.assert_array_equal(out, latents[0])
    whole = pipe(latents=start(), output_type="latent", **CAT).images
    assert differ(whole, out) > 1e-2

    def fail(*given):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(latents=start(), callback_on_step_end=fail, **CAT)


@pytest.mark.parametrize(
    ("returned", "message"), [(3, "returned 3; expected a dict"), ({"latents": np.zeros(3)}, r"of shape \(3,\)")]
)
def test_what_a_callback_cannot_return(pipe, returned, message):
    with pytest.raises(ValueError, match=message):
        pipe(latents=start(), callback_on_step_end=lambda *given: returned, **CAT)


def test_noise_levels_that_are_given(pipe):
    """Those of the default are the default; others are not; a whole number of timesteps is told to the network."""
    plan = solver.schedule(2, pipe.config.generation_decoder.flow_shift)
    whole = pipe(latents=start(), **CAT).images[0]
    unsaid = {name: value for name, value in CAT.items() if name != "num_inference_steps"}
    given = pipe(latents=start(), sigmas=plan.sigmas[:-1], **unsaid).images[0]
    assert differ(given, whole) <= 1
    other = pipe(latents=start(), sigmas=[1.0, 0.5], **unsaid).images[0]
    assert differ(other, whole) > 1
    np.testing.assert_array_equal(other, pipe(latents=start(), timesteps=np.array([1000, 500]), **unsaid).images[0])


@pytest.mark.parametrize("levels", [[1.0, 0.75, 0.25], [0.9]])
def test_schedules_of_noise_levels(levels):
    plan = solver.schedule_of_sigmas(levels)
    np.testing.assert_allclose(plan.sigmas, [*levels, 0], rtol=1e-7)
    np.testing.assert_array_equal(plan.timesteps, [int(1000 * level) for level in levels])
    for number, coefficient in solver.steps(plan)._asdict().items():
        assert np.isfinite(coefficient).all(), number
    again = solver.schedule_of_timesteps([1000 * level for level in levels])
    np.testing.assert_array_equal(again.sigmas, plan.sigmas)


def test_guidance_scale_is_another_name(pipe):
    one, other = (pipe(latents=start(), **{name: 2.5}, **CAT).images[0] for name in ("guidance_scale", "all_cfg_scale"))
    np.testing.assert_array_equal(one, other)


def test_negative_prompt_takes_the_place_of_the_dropped_one(pipe):
    """v = u + s (c - u): with equal prompts the scale does not matter, and with a scale of 0 only the negative one."""
    options = {name: value for name, value in CAT.items() if name != "prompt"}
    equal = [
        pipe("a cat", negative_prompt="a cat", guidance_scale=s, latents=start(), **options).images[0]
        for s in (0.0, 3.0)
    ]
    assert differ(*equal) <= 1
    alone = pipe("a dog", negative_prompt=["a cat"], guidance_scale=0.0, latents=start(), **options).images[0]
    assert differ(alone, equal[0]) <= 1
    unsaid = pipe("a cat", guidance_scale=3.0, latents=start(), **options).images[0]
    assert differ(equal[1], unsaid) > 1
    np.testing.assert_array_equal(
        unsaid, pipe("a cat", negative_prompt="", guidance_scale=3.0, latents=start(), **options).images[0]
    )


def test_negative_prompt_of_an_edit(pipe):
    """It stands in both dropped prompts: with the pictures, and alone."""
    (request,) = pipe.processor.process("make it red", picture(0), "image", negative_prompt="blue")
    (whole,) = pipe.processor.process("blue", picture(0), "image")
    system = request.cond[: int(np.flatnonzero(request.cond == pipe.processor.tokenizer.im_start)[1])]
    assert request.text_dropped.tolist() == whole.cond.tolist() and len(system) < len(whole.cond)
    (plain,) = pipe.processor.process("blue", None, "image", system_prompt=None)
    turn = int(np.flatnonzero(plain.cond == pipe.processor.tokenizer.im_start)[1])
    own = int(np.flatnonzero(request.uncond == pipe.processor.tokenizer.im_start)[1])
    assert request.uncond[own:].tolist() == plain.cond[turn:].tolist()


def test_prompts_are_encoded_once_for_many_pictures(pipe, monkeypatch):
    prompts, images = ["a cat", "make it blue, all of it"], [None, picture(0)]
    options = {"latents": start(2), **DRAW}
    want = pipe(prompts, images, **options).images
    embeds = pipe.encode_prompt(prompts, images)
    assert len(embeds) == 2
    read = []
    real = programs.contexts
    monkeypatch.setattr(programs, "contexts", lambda *given: read.append(1) or real(*given))
    monkeypatch.setattr(programs, "encode", None)
    monkeypatch.setattr(programs, "visual_tokens", None)
    for got, one in zip(pipe(prompt_embeds=embeds, **options).images, want, strict=True):
        np.testing.assert_array_equal(got, one)
    assert not read


@pytest.mark.slow
def test_embeds_are_drawn_in_any_size(pipe):
    prompts, images = ["a cat", "make it blue, all of it"], [None, picture(0)]
    embeds = pipe.encode_prompt(prompts, images)
    options = {"generation_mode": "image", "height": 48, "width": 32, "seed": 3, "num_inference_steps": 1}
    want = pipe(prompts, images, **options).images
    for got, one in zip(pipe(prompt_embeds=embeds, **options).images, want, strict=True):
        np.testing.assert_array_equal(got, one)


@pytest.mark.slow
def test_an_edit_by_embeds_keeps_the_size_of_its_source(pipe):
    options = {"generation_mode": "image", "num_inference_steps": 1, "seed": 3}
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 75, 3), np.uint8))
    kept = pipe(prompt_embeds=pipe.encode_prompt("make it blue", source), **options).images[0]
    assert kept.size == (75, 50)
    np.testing.assert_array_equal(kept, pipe("make it blue", source, **options).images[0])


def test_pictures_may_be_files_and_arrays(pipe, tmp_path):
    own = picture(0)
    own.save(tmp_path / "a.png")
    values = np.asarray(own)
    as_floats, as_jax = values.astype(np.float32) / 255, jax.numpy.asarray(values)
    want = pipe.processor.process("a", own)[0]
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), values, as_floats, as_jax, [values], [[values]]):
        got = pipe.processor.process("a", given)[0]
        np.testing.assert_array_equal(got.tiles, want.tiles)
        np.testing.assert_array_equal(got.cond, want.cond)
    grey = pipe.processor.process("a", values[..., :1])[0].tiles
    np.testing.assert_array_equal(grey, pipe.processor.process("a", Image.fromarray(values[..., 0]))[0].tiles)
