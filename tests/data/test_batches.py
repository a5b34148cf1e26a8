"""From records to batches: rows as inference makes them, buckets, packing, and what was computed beforehand."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from internvlu_jax.config import ConfigError
from internvlu_jax.data import buckets
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import PACKED, DataError, ExampleBuilder
from internvlu_jax.data.loader import Loader
from internvlu_jax.data.records import BrokenRecord, Record
from internvlu_jax.data.sources import entry, open_source, write_shards
from internvlu_jax.inference.writing import kept_text
from internvlu_jax.processing import chat
from internvlu_jax.processing.processor import Processor
from internvlu_jax.processing.tokenizer import Tokenizer
from tests.helpers.data import (
    CFG,
    DATA,
    TOKENIZER,
    ask,
    assert_same,
    edit,
    loader,
    one,
    picture_of,
    pixels,
    plan,
    samples,
    steps,
    t2i,
)

# Rows


@pytest.mark.parametrize("max_tiles", [1, 4])
@pytest.mark.parametrize("branch", ["cond", "text_dropped", "uncond"])
def test_a_prompt_is_what_inference_makes_of_it(branch, max_tiles):
    """Ids of all three guidance branches, and the tiles."""
    record = edit(3, (40, 130), (64, 64))
    pictures = [Image.fromarray(source.pixels()) for source in record.sources]
    processor = Processor(CFG.processor, TOKENIZER)
    request = processor.process(record.prompt, [pictures], "image", max_tiles=max_tiles)[0]
    shares = {"drop_all_edit": float(branch == "uncond"), "drop_text_edit": float(branch == "text_dropped")}
    data = dataclasses.replace(DATA, batch_size=1, max_tiles=max_tiles, **shares)
    batch = one([record], data)
    expected = getattr(request, branch)
    np.testing.assert_array_equal(batch.text.ids[0, : len(expected)], expected)
    assert np.all(batch.text.ids[0, len(expected) :] == TOKENIZER.pad)
    assert not np.any(batch.text.weights)
    if branch == "uncond":
        assert batch.text.tiles is None and batch.picture.sources == ()
        return
    np.testing.assert_array_equal(batch.text.tiles[0], request.tiles)
    shown = batch.text.visual_index[0]
    np.testing.assert_array_equal(shown >= 0, batch.text.ids[0] == TOKENIZER.img_context)
    np.testing.assert_array_equal(shown[shown >= 0], np.arange(len(request.tiles) * CFG.vlm.tokens_per_tile))


def test_the_context_is_the_users_turn_up_to_the_picture():
    batch = one([t2i(0, reasoning="a thought"), t2i(1)], dataclasses.replace(DATA, text_lengths=(64,)))
    said = []
    for row, index, length in zip(
        batch.text.ids, batch.picture.context_index, batch.picture.context_lengths, strict=True
    ):
        said.append(TOKENIZER.decode(row[index[:length]], skip_special_tokens=False))
    turn = "<|im_start|>user\nPicture {}.<|im_end|>\n<|im_start|>assistant\n"
    assert said == [turn.format(0) + "a thought<img>", turn.format(1) + "<img>"]
    assert batch.picture.positions.shape == (2, 4 * 4 + 64, 3)


@pytest.mark.parametrize("reasoning", ["a thought", "So it is.", "So it is.\n", "one\n\ntwo.\n\n"])
def test_a_picture_after_reasoning_is_drawn_from_what_inference_keeps_of_it(reasoning):
    """Also where the tokenizer would join the full stop and the line break."""
    tokenizer = Tokenizer.trained(["So it is.\nAnd so.\n"] * 5, 60)
    assert len(tokenizer.encode(".\n")) == 1
    data = dataclasses.replace(DATA, text_lengths=(160,))
    draft = ExampleBuilder(CFG, tokenizer, data).draft(edit(0, (64, 64), reasoning=reasoning))
    picture = Image.fromarray(edit(0).sources[0].pixels())
    request = Processor(CFG.processor, tokenizer).process("change 0", picture, "text_image")[0]
    np.testing.assert_array_equal(draft.ids[~draft.written], request.cond)
    kept = kept_text(draft.ids[draft.written])
    assert tokenizer.decode(kept) == reasoning.removesuffix("\n")
    start = np.flatnonzero(request.cond == tokenizer.im_start)[1]
    whole = np.concatenate([request.cond[start:], kept, [tokenizer.img_start]])
    np.testing.assert_array_equal(draft.ids[draft.context], whole)
    assert sum(length for _, length in draft.layout.runs) == len(draft.context) == len(whole)
    alone = ExampleBuilder(CFG, tokenizer, dataclasses.replace(data, text_targets=False))
    drawn = alone.draft(edit(0, (64, 64), reasoning=reasoning))
    np.testing.assert_array_equal(drawn.ids, np.concatenate([request.cond, kept, [tokenizer.img_start]]))
    np.testing.assert_array_equal(drawn.context, np.arange(start, len(drawn.ids)))


def test_reasoning_and_the_start_of_the_picture_are_targets():
    batch = one([t2i(0, reasoning="a thought\n"), t2i(1)], dataclasses.replace(DATA, text_lengths=(64,)))
    weights, targets = batch.text.weights, batch.text.targets
    assert TOKENIZER.decode(targets[0][weights[0] == 1], skip_special_tokens=False) == "a thought\n<img>"
    assert not np.any(weights[1])
    np.testing.assert_array_equal(targets[0][weights[0] == 1], batch.text.ids[0][1:][weights[0, :-1] == 1])
    without = one([t2i(0, reasoning="a thought")], dataclasses.replace(DATA, batch_size=1, text_targets=False))
    assert without.text.targets is None and without.text.weights is None
    assert without.picture.context_lengths[0] == batch.picture.context_lengths[0]


@pytest.mark.parametrize("branch", ["text_dropped", "uncond"])
def test_a_dropped_prompt_has_no_reasoning(branch):
    draft = ExampleBuilder(CFG, TOKENIZER, DATA).draft(edit(0, reasoning="a thought"), branch)
    assert not np.any(draft.written) and draft.ids[-1] == TOKENIZER.img_start


def test_a_conversation_as_inference_renders_it():
    """Unmarked pictures come first; each turn is tokenised apart; answers and their ends are targets."""
    first, second = picture_of("a", pixels(0)), picture_of("b", pixels(1))
    turns = (("look", "Yes"), ("and <image> this?", "No"))
    draft = ExampleBuilder(CFG, TOKENIZER, DATA).draft(
        Record("understanding", "x:1", sources=(first, second), turns=turns)
    )
    seen = "<img>" + "<IMG_CONTEXT>" * CFG.vlm.tokens_per_tile + "</img>"
    text = (
        f"<|im_start|>system\n{chat.UNDERSTANDING_SYSTEM}<|im_end|>\n<|im_start|>user\n{seen}\nlook.<|im_end|>\n"
        f"<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nAnd {seen} this?<|im_end|>\n"
        "<|im_start|>assistant\nNo<|im_end|>"
    )
    assert TOKENIZER.decode(draft.ids, skip_special_tokens=False) == text
    assert TOKENIZER.decode(draft.ids[draft.written], skip_special_tokens=False) == "Yes<|im_end|>No<|im_end|>"
    picture = Image.fromarray(first.pixels())
    asked = Processor(CFG.processor, TOKENIZER).process("look", picture)[0].cond
    np.testing.assert_array_equal(draft.ids[: len(asked)], asked)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (t2i(0, reasoning="word " * 300), "data.text_lengths ends at 160"),
        (ask(0, turns=30), "data.pack_length 160"),
        (ask(0, pictures=4), "4 tiles; one row holds"),
        (dataclasses.replace(t2i(0), prompt="a <IMG_CONTEXT>"), "the prompt holds <IMG_CONTEXT>"),
        (t2i(0, reasoning="so <img>"), "the reasoning holds <img>"),
        (dataclasses.replace(ask(0), turns=(("a", "b<|im_end|>"),)), "the answer holds <|im_end|>"),
        (dataclasses.replace(ask(0), turns=(("<image><image>", "b"),)), "2 <image> marks but there are 1 picture(s)"),
    ],
)
def test_records_that_cannot_be_rendered(record, reason):
    with pytest.raises(BrokenRecord) as caught:
        ExampleBuilder(CFG, TOKENIZER, DATA).draft(record)
    assert caught.value.where == record.where and reason in caught.value.reason


def test_a_context_that_the_head_cuts_short_still_fits_its_row():
    head = dataclasses.replace(CFG.generation_decoder, pad_to_fix_length=True, max_sequence_length=40)
    cfg = dataclasses.replace(CFG, generation_decoder=head)
    record = t2i(0, reasoning="word " * 65)
    data = dataclasses.replace(DATA, batch_size=1, sources=(("a", 1.0),))
    batch = steps(Loader(cfg, TOKENIZER, data, seed=0, sources=[[record]]), 1)[0][0]
    assert batch.picture.context_lengths == [40] and np.sum(batch.text.weights) > 50


# Buckets


def test_a_batch_has_one_shape():
    """Sizes of target and sources part the records; a source of the target's size shares its bucket."""
    sizes = [((64, 64),), ((64, 64),), ((64, 32),), ((64, 32),), ((64, 64), (64, 32)), ((64, 64), (64, 32))]
    records = [edit(n, *own) for n, own in enumerate(sizes)]
    made = steps(loader([records], dataclasses.replace(DATA, shuffle=False)), 3)
    shapes = [[source.shape[1:3] for source in batch.picture.sources] for (batch,) in made]
    assert shapes == [[(64, 64)], [(32, 16)], [(64, 64), (32, 16)]]
    assert all(batch.picture.target.shape == (2, 64, 64, 3) for (batch,) in made)
    head = dataclasses.replace(CFG.generation_decoder, sources="context")
    blind = dataclasses.replace(CFG, generation_decoder=head)
    without = one([edit(0)], dataclasses.replace(DATA, batch_size=1), config=blind)
    assert without.picture.sources == () and without.text.tiles.shape[:2] == (1, 1)


def test_pixels_of_a_batch():
    record = edit(0, (64, 64), (128, 64))
    batch = one([record], dataclasses.replace(DATA, batch_size=1))
    np.testing.assert_array_equal(batch.picture.target[0], record.image.pixels())
    np.testing.assert_array_equal(batch.picture.sources[0][0], record.sources[0].pixels())
    np.testing.assert_array_equal(batch.picture.sources[1][0], buckets.fit(record.sources[1].pixels(), (64, 32)))


# Packing


def test_packed_is_unpacked():
    records = [ask(n, n % 3, 1 + n % 2) for n in range(9)]
    text = one(records, dataclasses.replace(DATA, pack_length=400)).text
    assert np.max(text.visual_index, axis=1).tolist() == [3 * CFG.vlm.tokens_per_tile - 1] * 2
    packed = samples(text)
    lengths = [len(ExampleBuilder(CFG, TOKENIZER, DATA).draft(record).ids) for record in records]
    alone = [
        samples(one([record], dataclasses.replace(DATA, packed_rows=1, pack_length=length)).text)[0]
        for record, length in zip(records, lengths, strict=True)
    ]
    assert len(packed) > 4
    for sample in packed:
        twin = next(other for other in alone if np.array_equal(other[0], sample[0]))
        for a, b in zip(sample, twin, strict=True):
            np.testing.assert_array_equal(a, b)


def test_packing_is_first_fit():
    """What has too many tiles, or tokens, for the first row goes into the next; what fits in none ends the batch."""
    data = dataclasses.replace(DATA, pack_length=1000, shuffle=False)
    made = plan([[ask(n, pictures) for n, pictures in enumerate([2, 2, 1, 1, 3, 0])]], data)
    planned = next(made)
    assert [[draft.where for draft in row] for row in planned.rows] == [["ask:0", "ask:2"], ["ask:1", "ask:3"]]
    assert planned.kind == dataclasses.replace(PACKED, tiles=3)
    assert made.state()["waiting"] == [4]
    short, long = (len(ExampleBuilder(CFG, TOKENIZER, DATA).draft(ask(n, 0)).ids) for n in (0, 3))
    data = dataclasses.replace(data, pack_length=short + long)
    rows = next(plan([[ask(n, 0) for n in (3, 7, 0, 4, 8)]], data)).rows
    assert [[draft.where for draft in row] for row in rows] == [["ask:3", "ask:0"], ["ask:7", "ask:4"]]


def test_packed_samples_without_pictures_have_no_tiles():
    assert one([ask(n, 0) for n in range(9)]).text.tiles is None


# Computed beforehand


def stored(record: Record, **changes) -> Record:
    """A record as `experiments.precompute` writes it: no pictures, their latents and the contexts instead."""
    builder, rng = ExampleBuilder(CFG, TOKENIZER, DATA), np.random.default_rng(0)
    factor, width = CFG.vae.downsample_factor, CFG.generation_decoder.input_hidden_size
    draft = builder.draft(record)
    names = ["target", *(f"source/{n}" for n in range(len(draft.kind.sources)))]
    arrays = {
        name: rng.normal(size=(size[0] // factor, size[1] // factor, CFG.vae.z_dim)).astype(np.float32)
        for name, size in zip(names, (draft.kind.target, *draft.kind.sources), strict=True)
    }
    for branch in ("cond", "text_dropped", "uncond"):
        length = len(builder.draft(record, branch).context)
        arrays[f"context/{branch}"] = rng.normal(size=(length, width)).astype(np.float32)
    return dataclasses.replace(record, stored={**arrays, **changes})


def test_stored_records_in_place_of_pictures(tmp_path):
    record = stored(edit(0))
    sizes = {name: list(picture.size()) for name, picture in record.pictures().items()}
    described = {"task": "edit", "prompt": record.prompt, "source": ["0-0.png"], "image": "0-edited.png"}
    described["sizes"] = sizes
    write_shards(tmp_path / "shards", [entry(described, arrays=record.stored)], 10)
    batch = one(open_source(tmp_path / "shards"), dataclasses.replace(DATA, batch_size=1))
    fresh = one([edit(0)], dataclasses.replace(DATA, batch_size=1))
    assert batch.text is None and batch.picture.context_index is None
    np.testing.assert_array_equal(batch.picture.target[0], record.stored["target"])
    np.testing.assert_array_equal(batch.picture.sources[0][0], record.stored["source/0"])
    context, length = record.stored["context/cond"], fresh.picture.context_lengths[0]
    np.testing.assert_array_equal(batch.picture.context[0, :length], context)
    assert batch.picture.context.shape == (1, 64, context.shape[1]) and not np.any(batch.picture.context[0, length:])
    for name in ("context_lengths", "positions", "weight"):
        np.testing.assert_array_equal(getattr(batch.picture, name), getattr(fresh.picture, name))


def test_stored_contexts_follow_the_branch():
    record = stored(t2i(0))
    batch = one([record], dataclasses.replace(DATA, batch_size=1, drop_all_t2i=1.0))
    context = record.stored["context/uncond"]
    np.testing.assert_array_equal(batch.picture.context[0, : len(context)], context)


def test_contexts_that_were_stored_under_former_names_are_read():
    record = stored(t2i(0))
    former = {"context/cond": "context/full", "context/uncond": "context/all_dropped"}
    old = dataclasses.replace(record, stored={former.get(name, name): a for name, a in record.stored.items()})
    for share in (0.0, 1.0):
        data = dataclasses.replace(DATA, batch_size=1, drop_all_t2i=share)
        assert_same(one([old], data), one([record], data))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": np.zeros((4, 4, 16), np.float32)}, r"target should be \(8, 8, 16\) .* and \(4, 4, 16\) is stored"),
        ({"context/cond": np.zeros((3, 5), np.float32)}, r"context/cond should be \(\d+, \d+\) .* \(3, 5\) is stored"),
    ],
)
def test_what_was_stored_for_another_configuration(changes, said):
    with pytest.raises(DataError, match=said):
        one([stored(t2i(0), **changes)] * 2)


def test_reasoning_cannot_be_learned_from_stored_contexts():
    record = stored(t2i(0, reasoning="so"))
    with pytest.raises(DataError, match=r"t2i:0: reasoning cannot be learned .* set data.text_targets to False"):
        one([record])
    batch = one([record], dataclasses.replace(DATA, text_targets=False, batch_size=1))
    assert batch.picture.weight == [1]


# Configuration, and the data that is shipped


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": 0}, "data.batch_size is 0; expected at least 1"),
        ({"packed_rows": 0}, "data.packed_rows is 0; expected at least 1"),
        ({"max_broken": 1.5}, "data.max_broken is 1.5; expected a share"),
        ({"drop_all_edit": 0.7, "drop_text_edit": 0.6}, "0.7 and data.drop_text_edit 0.6; .* at most 1 together"),
        ({"sides": (1024, 512)}, r"data.sides is \(1024, 512\); expected positive numbers in increasing order"),
        ({"text_lengths": ()}, r"data.text_lengths is \(\)"),
        ({"max_aspect": 0.5}, "data.max_aspect is 0.5"),
        ({"max_aspect": float("inf")}, "data.max_aspect is inf"),
        ({"sources": (("a", 0.0),)}, "every weight must be a number over 0"),
        ({"sources": (("a", float("nan")),)}, "every weight must be a number over 0"),
    ],
)
def test_configurations_that_cannot_be(given, said):
    with pytest.raises(ConfigError, match=said):
        DataConfig(**given)
