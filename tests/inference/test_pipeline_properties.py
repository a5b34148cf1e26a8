"""What the recordings do not cover: mixed batches, several sources, tiles, seeds, callbacks, reasoning's exceptions."""

import copy
import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from internvlu_jax import InternVLUPipeline
from internvlu_jax.flow.noise import starting_noise
from internvlu_jax.flow.solver import schedule
from internvlu_jax.inference import encoding, programs, writing
from internvlu_jax.inference.options import Options
from tests.conftest import GOLDENS
from tests.helpers.measures import assert_close, relative_l2

SMALL = {"height": 32, "width": 48, "num_inference_steps": 2}
CHECKPOINT = GOLDENS / "base/checkpoint"


@pytest.fixture(scope="module")
def pipe():
    return InternVLUPipeline.from_pretrained(CHECKPOINT)


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values).resize((width, height))


def start(count: int) -> np.ndarray:
    return starting_noise("jax", 7, count, (4, 6, 16))


def same(first: Image.Image, second: Image.Image) -> bool:
    """Equal up to the rounding of another batch size: one level, rarely."""
    difference = np.abs(np.asarray(first).astype(int) - np.asarray(second))
    return difference.max() <= 1 and (difference > 0).mean() < 5e-3


def test_text_batch_equals_one_by_one(pipe):
    prompts = ["Describe this", "How many people can you see? Look at each one of them, and count.", "Say hello"]
    images = [picture(0), [picture(1), picture(2)], None]
    together = pipe(prompts, images, max_new_tokens=6)
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        alone = pipe([prompt], [image], max_new_tokens=6)
        np.testing.assert_array_equal(together.tokens[i], alone.tokens[0])


# The second mode draws as the first does; every number of pictures is a program of its own.
@pytest.mark.parametrize(
    ("mode", "count"),
    [
        pytest.param("text_image", 2, marks=pytest.mark.slow),
        pytest.param("text_image", 4, marks=pytest.mark.slow),
        pytest.param("image", 4, marks=pytest.mark.slow),
    ],
)
def test_mixed_batch_equals_one_by_one(pipe, mode, count):
    """Some prompts with a picture, one with two, one with none, of different lengths."""
    prompts = ["a cat", "make it blue, and then " * 6 + "red", "join them", "a dog under a tree"][:count]
    images = [None, picture(0), [picture(1), picture(2, 80, 40)], None][:count]
    writing = {} if mode == "image" else {"max_new_tokens": 7}
    together = pipe(prompts, images, mode, latents=start(count), **SMALL, **writing)
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        alone = pipe([prompt], [image], mode, latents=start(count)[i : i + 1], **SMALL, **writing)
        assert same(together.images[i], alone.images[0]), i


@pytest.mark.slow
def test_order_of_sources_matters(pipe):
    a, b = picture(1), picture(2)
    first, second = (
        pipe("join them", [pair], "image", latents=start(1), **SMALL).images[0] for pair in ([a, b], [b, a])
    )
    assert not same(first, second)


def test_sources_reach_the_picture(pipe):
    drawn = [pipe("change it", picture(n), "image", latents=start(1), **SMALL).images[0] for n in (1, 2)]
    assert not same(*drawn)


def test_callback_runs_between_steps_and_changes_nothing(pipe):
    seen = []
    looked = pipe(
        "a cat", generation_mode="image", latents=start(1), callback=lambda *a: seen.append(a), **SMALL
    ).images[0]
    whole = pipe("a cat", generation_mode="image", latents=start(1), **SMALL).images[0]
    assert [(step, total) for step, total, _ in seen] == [(1, 2), (2, 2)]
    assert seen[0][2].shape == (1, 4, 6, 16) and not np.array_equal(seen[0][2], seen[1][2])
    assert same(looked, whole)


def test_seed_and_number_of_pictures(pipe):
    draw = {"generation_mode": "image", **SMALL}
    one = pipe("a cat", seed=3, **draw).images
    three = pipe("a cat", seed=3, num_images_per_prompt=3, **draw).images
    other = pipe("a cat", seed=4, **draw).images
    assert len(three) == 3 and same(one[0], three[0])
    assert not same(three[0], three[1]) and not same(one[0], other[0])


def test_seeds_one_a_picture(pipe):
    draw = {"generation_mode": "image", **SMALL}
    three = pipe("a cat", seed=[5, 6, 5], num_images_per_prompt=3, **draw)
    alone = pipe("a cat", seed=6, **draw)
    assert three.seed == [5, 6, 5] and alone.seed == 6
    assert same(three.images[1], alone.images[0]) and same(three.images[0], three.images[2])
    assert not same(three.images[0], three.images[1])


@pytest.mark.parametrize(("mode", "expected"), [("text_image", (5, 7)), ("text", (5, 6, 7, 8))])
def test_text_is_written_with_the_first_seed_of_its_prompt(mode, expected):
    options = types.SimpleNamespace(mode=mode, num_images_per_prompt=2, seed=(5, 6, 7, 8))
    assert Options.text_seed(options) == expected
    options.seed = 5
    assert Options.text_seed(options) == 5


def test_a_seed_that_was_drawn_is_told(pipe):
    draw = {"generation_mode": "image", **SMALL}
    out = pipe("a cat", **draw)
    assert same(out.images[0], pipe("a cat", seed=out.seed, **draw).images[0])


@pytest.mark.parametrize("noise", ["torch-cpu", "torch-cuda", "jax"])
def test_whose_noise_a_seed_stands_for(pipe, noise):
    draw = {"generation_mode": "image", **SMALL}
    drawn = pipe("a cat", seed=3, **draw, **({} if noise == "torch-cpu" else {"noise": noise})).images[0]
    assert same(drawn, pipe("a cat", latents=starting_noise(noise, 3, 1, (4, 6, 16)), **draw).images[0])


def test_pictures_come_prompt_by_prompt(pipe):
    draw = {"generation_mode": "image", "latents": start(4), "num_images_per_prompt": 2, **SMALL}
    images = pipe(["a cat", "a very red and very long house"], **draw).images
    alone = pipe("a cat", generation_mode="image", latents=start(4)[1:2], **SMALL).images[0]
    assert len(images) == 4 and same(images[1], alone)


@pytest.mark.parametrize("size", [(33, 50), (47, 16)])
def test_odd_sizes_come_back_as_asked(pipe, size):
    out = pipe("a cat", generation_mode="image", height=size[0], width=size[1], num_inference_steps=1, seed=0)
    assert out.images[0].size == (size[1], size[0])


def test_tiles(pipe):
    """More tiles are more visual tokens, in a question and in an edit."""
    wide = picture(3, 220, 56)
    few, many = (pipe.processor.process("look", wide, "text", max_tiles=n)[0] for n in (1, 4))
    assert len(few.tiles) == 1 and len(many.tiles) == 5  # four and the thumbnail
    assert len(many.cond) - len(few.cond) == 4 * pipe.config.vlm.tokens_per_tile
    assert pipe("look", wide, max_tiles=4, max_new_tokens=4).tokens[0].size
    drawn = [pipe("red", wide, "image", max_tiles=n, latents=start(1), **SMALL).images[0] for n in (1, 4)]
    assert not same(*drawn)


def with_sources(pipe, sources: str) -> InternVLUPipeline:
    head = dataclasses.replace(pipe.config.generation_decoder, sources=sources)
    config = dataclasses.replace(pipe.config, generation_decoder=head)
    return InternVLUPipeline(config, pipe.params, pipe.processor)


@pytest.mark.slow
def test_what_the_head_gets_of_sources_holds_when_it_draws(pipe, monkeypatch):
    """By the context alone: no source is encoded. By the latents alone: what the language model saw is left out."""
    draw = {"prompt": "make it red", "generation_mode": "image", "latents": start(1), **SMALL}
    both = [pipe(image=picture(seed), **draw).images[0] for seed in (0, 1)]
    by_latents = [with_sources(pipe, "latents")(image=picture(seed), **draw).images[0] for seed in (0, 1)]
    monkeypatch.setattr(programs, "encode", None)
    by_context = [with_sources(pipe, "context")(image=picture(seed), **draw).images[0] for seed in (0, 1)]
    for one in (both, by_latents, by_context):
        assert not same(*one), "the source matters"
    assert not same(both[0], by_latents[0]) and not same(both[0], by_context[0])


def test_a_drawing_and_an_edit_whose_source_the_head_gets_by_the_context(pipe):
    """Neither has latents of a source, and they have unlike branches of guidance."""
    pipe = with_sources(pipe, "context")
    prompts, images = ["a cat", "make it blue"], [None, picture(0)]
    draw = {"generation_mode": "image", "output_type": "latent", **SMALL}
    together = pipe(prompts, images, latents=start(2), **draw).images
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        alone = pipe([prompt], [image], latents=start(2)[i : i + 1], **draw).images[0]
        assert_close(together[i], alone)


def test_without_guidance_only_the_dropped_prompt_is_left(pipe):
    """v = u + all (c - u): with a scale of 0 the prompt does not matter."""
    draw = {"generation_mode": "image", "latents": start(1), "all_cfg_scale": 0.0, **SMALL}
    assert same(pipe("a cat", **draw).images[0], pipe("a dog under the tree", **draw).images[0])
    draw["all_cfg_scale"] = 4.5
    assert not same(pipe("a cat", **draw).images[0], pipe("a dog under the tree", **draw).images[0])


def test_noise_levels_are_shifted_as_asked(pipe):
    """Against a pipeline whose checkpoint has that shift; the one that is there is the default."""
    draw = {"prompt": "a cat", "generation_mode": "image", "latents": start(1), **SMALL, "num_inference_steps": 4}
    shifted = copy.copy(pipe)
    head = dataclasses.replace(pipe.config.generation_decoder, flow_shift=1.2)
    shifted.config = dataclasses.replace(pipe.config, generation_decoder=head)
    assert same(shifted(**draw).images[0], pipe(**draw, flow_shift=1.2).images[0])
    assert not same(pipe(**draw).images[0], pipe(**draw, flow_shift=1.2).images[0])


def full_context(pipe, prompt: str, written: np.ndarray) -> np.ndarray:
    """Prompt, kept text and <img> read in one go: what the states of writing must equal."""
    tokenizer = pipe.processor.tokenizer
    (request,) = pipe.processor.process(prompt, None, "text_image")
    ids = np.concatenate([request.cond, writing.kept_text(written), [tokenizer.img_start]]).astype(np.int32)
    begin = int(np.flatnonzero(request.cond == tokenizer.im_start)[1])
    return np.asarray(programs.contexts(pipe.model, pipe.params, ids[None], np.arange(begin, len(ids))[None]))[0]


def reason(pipe, monkeypatch, **kwargs):
    """(written ids, context of the head)."""
    branches = []
    real = pipe._branches_after

    def keep(*args):
        branches.extend(real(*args))
        return branches

    monkeypatch.setattr(pipe, "_branches_after", keep)
    out = pipe("draw a cat", generation_mode="text_image", latents=start(1), **SMALL, **kwargs)
    return out.tokens[0], branches[0].context


def test_reasoning_reuses_states_exactly(pipe, monkeypatch):
    written, context = reason(pipe, monkeypatch, max_new_tokens=9)
    assert len(written) > 3
    assert_close(context, full_context(pipe, "draw a cat", written), 1e-5)


def test_reasoning_with_beams(pipe, monkeypatch):
    written, context = reason(pipe, monkeypatch, max_new_tokens=9, num_beams=3)
    assert_close(context, full_context(pipe, "draw a cat", written), 1e-5)


def test_special_tokens_in_the_text_are_read_again(pipe, monkeypatch):
    """Written with the language model's table, they condition the head with their own."""
    real = writing.generate

    def with_special(*args):
        out = real(*args)
        ref = pipe.processor.tokenizer.id_of("<ref>")
        tokens = np.asarray(out.tokens).copy()
        tokens[0, 2] = ref
        return out._replace(tokens=tokens)

    monkeypatch.setattr(writing, "generate", with_special)
    written, context = reason(pipe, monkeypatch, max_new_tokens=9)
    assert pipe.processor.tokenizer.id_of("<ref>") in writing.kept_text(written)
    assert_close(context, full_context(pipe, "draw a cat", written), 1e-5)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_text_that_stops_at_once_draws_from_the_prompt(pipe, monkeypatch, limit):
    written, context = reason(pipe, monkeypatch, max_new_tokens=limit)
    assert len(written) == limit and not len(writing.kept_text(written))
    assert_close(context, full_context(pipe, "draw a cat", written), 1e-5)


def test_kept_text_drops_two():
    assert writing.kept_text(np.arange(5)).tolist() == [0, 1, 2]
    assert writing.kept_text(np.arange(1)).tolist() == []


def test_new_prompts_do_not_compile_again(pipe):
    pipe("a cat", generation_mode="image", seed=0, **SMALL)
    pipe("a cat", max_new_tokens=5)
    names = ("draw", "contexts", "condition", "side_by_side", "embed")
    before = {name: getattr(programs, name)._cache_size() for name in names}
    pipe("a dog and another dog", generation_mode="image", seed=1, all_cfg_scale=3.0, **SMALL)
    pipe("Why is the sky", max_new_tokens=7)
    assert {name: getattr(programs, name)._cache_size() for name in before} == before


def test_sources_enter_the_vae_a_few_at_a_time(pipe, monkeypatch):
    """By pixels: here one of 16 x 32 at once."""
    sources = [np.asarray(picture(seed, 32, 16)) for seed in range(3)]
    want = [pipe._sources([source])[0] for source in sources]
    sizes, encode = [], programs.encode
    monkeypatch.setattr(programs, "encode", lambda model, params, x: sizes.append(x.shape) or encode(model, params, x))
    monkeypatch.setattr(encoding, "_VAE_PIXELS", 2 * 16 * 32 - 1)
    np.testing.assert_array_equal(pipe._sources(sources), want)
    assert sizes == [(1, 16, 32, 3)] * 3


def test_dropped_prompt_is_encoded_once(pipe, monkeypatch):
    pipe("a cat", generation_mode="image", seed=0, **SMALL)
    rows = []
    real = programs.contexts

    def count(model, params, ids, *args):
        rows.append(len(ids))
        return real(model, params, ids, *args)

    monkeypatch.setattr(programs, "contexts", count)
    pipe(["a dog", "a tree"], generation_mode="image", seed=0, **SMALL)
    assert rows == [2]


def test_sampled_text_is_keyed_by_row(pipe):
    options = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "max_new_tokens": 6, "seed": 11}
    first = pipe(["Say hello", "Say something quite different to me"], **options).tokens
    np.testing.assert_array_equal(pipe("Say hello", **options).tokens[0], first[0])
    again = pipe("Say hello", **{**options, "seed": 12}).tokens[0]
    assert not np.array_equal(again, first[0])


def test_text_is_sampled_with_the_released_defaults(pipe):
    """The library's top_k is 50 there, and nothing else is changed; each of the three can be given."""
    options = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "max_new_tokens": 6, "seed": 11}
    released = {"top_k": 50, "repetition_penalty": 1.0, "stop_strings": ()}
    text = pipe("Say hello", **options).tokens[0]
    np.testing.assert_array_equal(pipe("Say hello", **options, **released).tokens[0], text)
    assert not np.array_equal(pipe("Say hello", **options, **{**released, "top_k": 2}).tokens[0], text)


def test_bfloat16_draws_nearly_the_same(monkeypatch):
    """Two steps of the whole chain, language model included, at times that bfloat16 can tell.

    The head rounds its time to the compute dtype and then multiplies it by a million, so 999 and 1000 are far apart.
    """

    def rounded(*args):
        plan = schedule(*args)
        return plan._replace(timesteps=plan.timesteps.astype(jnp.bfloat16).astype(np.int32))

    monkeypatch.setattr("internvlu_jax.inference.pipeline.schedule", rounded)
    latents = {}
    for dtype in ("float32", "bfloat16"):
        own = InternVLUPipeline.from_pretrained(CHECKPOINT, dtype=dtype)
        own(
            "a cat", generation_mode="image", latents=start(1), all_cfg_scale=1.0,
            callback=lambda s, n, x, d=dtype: latents.__setitem__(d, x), **SMALL,
        )  # fmt: skip
    assert relative_l2(latents["bfloat16"], latents["float32"]) < 2e-2
