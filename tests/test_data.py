"""From records to batches: rows as inference makes them, packing, mixtures, resuming, hosts, and broken data."""

import dataclasses
import gc
import json
import logging
import threading
import weakref
from io import BytesIO
from typing import ClassVar

import jax
import numpy as np
import pytest
from PIL import Image

from internvlu_jax.config_files import read_config
from internvlu_jax.data import buckets
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import PACKED, DataError, Drafter
from internvlu_jax.data.loader import Loader
from internvlu_jax.data.plan import Plan, Tally
from internvlu_jax.data.records import BrokenRecord, PictureFile, Record, picture_of
from internvlu_jax.data.sources import entry, open_source, write_shards
from internvlu_jax.processing import chat
from internvlu_jax.processing.images import normalise
from internvlu_jax.processing.processor import Processor
from internvlu_jax.processing.tokenizer import Tokenizer
from tests.conftest import GOLDENS

CHECKPOINT = GOLDENS / "base/checkpoint"
CFG = read_config(CHECKPOINT)
TOKENIZER = Tokenizer.from_directory(CHECKPOINT / "processor")
NO_DROPS = {"drop_all_t2i": 0.0, "drop_all_edit": 0.0, "drop_text_edit": 0.0}
DATA = DataConfig(
    batch_size=2, sides=(32, 64), max_aspect=2.0, text_lengths=(64, 160), pack_length=160, pack_tiles=3, threads=2,
    max_broken=0.5, **NO_DROPS,
)  # fmt: skip


def pixels(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def t2i(n: int, height: int = 64, width: int = 64, **more) -> Record:
    image = picture_of(f"{n}.png", pixels(n, height, width))
    return Record("t2i", f"t2i:{n}", prompt=f"picture {n}", image=image, **more)


def edit(n: int, *sizes: tuple[int, int], **more) -> Record:
    found = [pixels(100 * n + k, *size) for k, size in enumerate(sizes or [(64, 64)])]
    sources = tuple(picture_of(f"{n}-{k}.png", picture) for k, picture in enumerate(found))
    image = picture_of(f"{n}-edited.png", pixels(n))
    return Record("edit", f"edit:{n}", prompt=f"change {n}", image=image, sources=sources, **more)


def ask(n: int, pictures: int = 1, turns: int = 1) -> Record:
    seen = tuple(picture_of(f"{n}-{k}.png", pixels(1000 * n + k, 56, 56)) for k in range(pictures))
    said = tuple((f"question {n}.{k}?", f"answer {n}.{k}" + " more" * (n % 4)) for k in range(turns))
    return Record("understanding", f"ask:{n}", sources=seen, turns=said)


MIXED = ([t2i(n) for n in range(5)], [edit(n) for n in range(3)], [ask(n, n % 2, 1 + n % 3) for n in range(7)])


def loader(records=MIXED, data: DataConfig = DATA, weights=None, seed: int = 0, **options) -> Loader:
    named = tuple((f"source {n}", weight) for n, weight in enumerate(weights or [1.0] * len(records)))
    data = dataclasses.replace(data, sources=named)
    return Loader(CFG, TOKENIZER, data, seed=seed, sources=records, **options)


def steps(made: Loader, count: int) -> list:
    with made:
        return [next(made) for _ in range(count)]


def one(records, data: DataConfig = DATA, **options):
    """The first batch of one source, in order."""
    return steps(loader([records], dataclasses.replace(data, shuffle=False), **options), 1)[0][0]


def assert_same(first, second) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def plan(records, data: DataConfig = DATA, weights=None, seed: int = 0) -> Plan:
    named = tuple((f"source {n}", weight) for n, weight in enumerate(weights or [1.0] * len(records)))
    data = dataclasses.replace(data, sources=named)
    return Plan(Drafter(CFG, TOKENIZER, data), records, data, seed)


def drafts(made: Plan, count: int) -> list:
    return [draft for _ in range(count) for row in next(made).rows for draft in row]


# Rows


@pytest.mark.parametrize("max_tiles", [1, 4])
@pytest.mark.parametrize("drop", ["full", "text_dropped", "all_dropped"])
def test_a_prompt_is_what_inference_makes_of_it(drop, max_tiles):
    """Ids of all three guidance branches, and the tiles, which the device normalises."""
    record = edit(3, (40, 130), (64, 64))
    pictures = [Image.fromarray(source.pixels()) for source in record.sources]
    processor = Processor(CFG.processor, TOKENIZER)
    request = processor.process(record.prompt, [pictures], "image", max_tiles=max_tiles)[0]
    shares = {"drop_all_edit": float(drop == "all_dropped"), "drop_text_edit": float(drop == "text_dropped")}
    data = dataclasses.replace(DATA, batch_size=1, max_tiles=max_tiles, **shares)
    batch = one([record], data)
    expected = {"full": request.cond, "text_dropped": request.text_dropped, "all_dropped": request.all_dropped}[drop]
    np.testing.assert_array_equal(batch.text.ids[0, : len(expected)], expected)
    assert np.all(batch.text.ids[0, len(expected) :] == TOKENIZER.pad)
    assert not np.any(batch.text.weights)
    if drop == "all_dropped":
        assert batch.text.tiles is None and batch.picture.sources == ()
        return
    kwargs = CFG.processor.image_processor_kwargs
    np.testing.assert_array_equal(normalise(batch.text.tiles[0], kwargs.image_mean, kwargs.image_std), request.tiles)
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
    assert said == [turn.format(0) + "a thought\n<img>", turn.format(1) + "<img>"]
    assert batch.picture.positions.shape == (2, 4 * 4 + 64, 3)


def test_reasoning_and_the_start_of_the_picture_are_targets():
    batch = one([t2i(0, reasoning="a thought\n"), t2i(1)], dataclasses.replace(DATA, text_lengths=(64,)))
    weights, targets = batch.text.weights, batch.text.targets
    assert TOKENIZER.decode(targets[0][weights[0] == 1], skip_special_tokens=False) == "a thought\n<img>"
    assert not np.any(weights[1])
    np.testing.assert_array_equal(targets[0][weights[0] == 1], batch.text.ids[0][1:][weights[0, :-1] == 1])
    without = one([t2i(0, reasoning="a thought")], dataclasses.replace(DATA, batch_size=1, text_targets=False))
    assert without.text.targets is None and without.text.weights is None
    assert without.picture.context_lengths[0] == batch.picture.context_lengths[0]


@pytest.mark.parametrize("drop", ["text_dropped", "all_dropped"])
def test_a_dropped_prompt_has_no_reasoning(drop):
    draft = Drafter(CFG, TOKENIZER, DATA).draft(edit(0, reasoning="a thought"), drop)
    assert not np.any(draft.written) and draft.ids[-1] == TOKENIZER.img_start


def test_a_conversation_as_inference_renders_it():
    """Unmarked pictures come first; each turn is tokenised apart; answers and their ends are targets."""
    first, second = picture_of("a", pixels(0)), picture_of("b", pixels(1))
    turns = (("look", "Yes"), ("and <image> this?", "No"))
    draft = Drafter(CFG, TOKENIZER, DATA).draft(Record("understanding", "x:1", sources=(first, second), turns=turns))
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
        Drafter(CFG, TOKENIZER, DATA).draft(record)
    assert caught.value.where == record.where and reason in caught.value.reason


def test_a_context_that_the_head_cuts_short_still_fits_its_row():
    head = dataclasses.replace(CFG.generation_decoder, pad_to_fix_length=True, max_sequence_length=40)
    cfg = dataclasses.replace(CFG, generation_decoder=head)
    record = t2i(0, reasoning="word " * 50)
    data = dataclasses.replace(DATA, batch_size=1, sources=(("a", 1.0),))
    batch = steps(Loader(cfg, TOKENIZER, data, seed=0, sources=[[record]]), 1)[0][0]
    assert batch.picture.context_lengths == [40] and np.sum(batch.text.weights) > 50


# Buckets


@pytest.mark.parametrize(("side", "aspect"), [(64, 1.0), (64, 2.0), (512, 2.0), (1024, 2.0), (768, 4.0), (100, 3.0)])
def test_buckets(side, aspect):
    sizes = buckets.buckets(side, aspect, 16)
    ratios = np.log([height / width for height, width in sizes])
    assert all(height % 16 == width % 16 == 0 and height * width <= side * side for height, width in sizes)
    assert np.max(np.abs(ratios)) <= np.log(aspect) + 1e-9
    assert sorted(sizes) == sorted((width, height) for height, width in sizes)
    if side >= 512:
        assert np.max(np.diff(ratios), initial=0) < np.log(1.5)
        assert np.min(np.prod(sizes, axis=1)) > 0.85 * side * side


def test_buckets_that_are_too_narrow():
    with pytest.raises(ValueError, match=r"data.sides has 32: .* narrower than the 16 pixels"):
        Drafter(CFG, TOKENIZER, dataclasses.replace(DATA, sides=(32,), max_aspect=9.0))


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((100, 100), (64, 64)),
        ((63, 64), (32, 32)),
        ((10, 10), (32, 32)),
        ((900, 300), (80, 32)),
        ((300, 900), (32, 80)),
    ],
)
def test_choice_of_a_bucket(size, bucket):
    """No picture is enlarged if a side is small enough; the nearest ratio."""
    assert buckets.choose(size, (32, 64), 2.5, 16) == bucket


def test_fit_keeps_the_middle():
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 24:76] = 255
    fitted = buckets.fit(picture, (20, 20))
    assert fitted.shape == (20, 20, 3) and np.all(fitted == 255)
    np.testing.assert_array_equal(buckets.fit(picture, (40, 100)), picture)


def test_a_batch_has_one_shape():
    """Sizes of target and sources part the records; a source of the target's size shares its bucket."""
    sizes = [((64, 64),), ((64, 64),), ((64, 32),), ((64, 32),), ((64, 64), (64, 32)), ((64, 64), (64, 32))]
    records = [edit(n, *own) for n, own in enumerate(sizes)]
    made = steps(loader([records], dataclasses.replace(DATA, shuffle=False)), 3)
    shapes = [[source.shape[1:3] for source in batch.picture.sources] for (batch,) in made]
    assert shapes == [[(64, 64)], [(32, 16)], [(64, 64), (32, 16)]]
    assert all(batch.picture.target.shape == (2, 64, 64, 3) for (batch,) in made)
    without = one([edit(0)], dataclasses.replace(DATA, batch_size=1, condition_latents=False))
    assert without.picture.sources == () and without.text.tiles.shape[:2] == (1, 1)


def test_pixels_of_a_batch():
    record = edit(0, (64, 64), (128, 64))
    batch = one([record], dataclasses.replace(DATA, batch_size=1))
    np.testing.assert_array_equal(batch.picture.target[0], record.image.pixels())
    np.testing.assert_array_equal(batch.picture.sources[0][0], record.sources[0].pixels())
    np.testing.assert_array_equal(batch.picture.sources[1][0], buckets.fit(record.sources[1].pixels(), (64, 32)))


# Packing


def samples(text) -> list[tuple]:
    """(ids, positions, targets, weights, tiles that its visual tokens show) of each packed sample, row by row."""
    found = []
    per_tile = CFG.vlm.tokens_per_tile
    for r, row in enumerate(text.segments):
        for number in range(1, np.max(row) + 1):
            own = row == number
            arrays = [getattr(text, name)[r][own] for name in ("ids", "positions", "targets", "weights")]
            shown = np.zeros(0, int) if text.visual_index is None else text.visual_index[r][own]
            tiles = [text.tiles[r][index // per_tile] for index in shown[shown >= 0]]
            found.append((*arrays, np.array(tiles)))
    return found


def test_packed_is_unpacked():
    records = [ask(n, n % 3, 1 + n % 2) for n in range(9)]
    packed = samples(one(records).text)
    alone = [samples(one([record], dataclasses.replace(DATA, packed_rows=1, pack_length=length)).text)[0]
             for record in records for length in [len(Drafter(CFG, TOKENIZER, DATA).draft(record).ids)]]  # fmt: skip
    assert len(packed) > 3
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
    short, long = (len(Drafter(CFG, TOKENIZER, DATA).draft(ask(n, 0)).ids) for n in (0, 3))
    data = dataclasses.replace(data, pack_length=short + long)
    rows = next(plan([[ask(n, 0) for n in (3, 7, 0, 4, 8)]], data)).rows
    assert [[draft.where for draft in row] for row in rows] == [["ask:3", "ask:0"], ["ask:7", "ask:4"]]


def test_packed_samples_without_pictures_have_no_tiles():
    assert one([ask(n, 0) for n in range(9)]).text.tiles is None


# Order


def test_the_same_seed_gives_the_same_batches():
    first, again, other = (steps(loader(seed=seed, accumulate=2), 4) for seed in (1, 1, 2))
    assert_same(first, again)
    assert str(first) != str(other)


def test_resuming_is_exact_at_every_step():
    """The state is that of what was taken, however far ahead the loader is; through JSON."""
    data = dataclasses.replace(DATA, prefetch=3, drop_all_t2i=0.3, drop_text_edit=0.4)
    with loader(data=data, accumulate=2) as whole:
        states = [whole.state()]
        taken = []
        for _ in range(6):
            taken.append(next(whole))
            states.append(whole.state())
    for n, state in enumerate(states):
        resumed = loader(data=data, accumulate=2)
        resumed.restore(json.loads(json.dumps(state)))
        assert resumed.state() == state
        assert_same(steps(resumed, len(taken[n:])), taken[n:]) if taken[n:] else resumed.close()


def test_a_state_is_small():
    made = plan(MIXED)
    for _ in range(20):
        next(made)
    state = made.state()
    assert set(state) == {"position", "waiting", "read", "broken"} and len(state["waiting"]) < 20


def test_shares_of_a_mixture():
    made = plan([[t2i(n) for n in range(3)], [edit(n) for n in range(40)]], weights=[3.0, 1.0])
    read = drafts(made, 50)
    share = np.mean([draft.where.startswith("t2i") for draft in read])
    assert abs(share - 0.75) < 0.02


def test_every_pass_has_all_records_in_another_order():
    made = plan([[t2i(n) for n in range(10)]])
    passes = [[draft.where for draft in drafts(made, 5)] for _ in range(3)]
    assert all(sorted(order) == sorted(f"t2i:{n}" for n in range(10)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3
    in_order = plan([[t2i(n) for n in range(4)]], dataclasses.replace(DATA, shuffle=False))
    assert [draft.where for draft in drafts(in_order, 3)] == ["t2i:0", "t2i:1", "t2i:2", "t2i:3", "t2i:0", "t2i:1"]


def test_hosts_fill_their_rows_of_the_same_batches():
    data = dataclasses.replace(DATA, batch_size=4, pack_length=80)
    whole = steps(loader(data=data, accumulate=2), 4)
    parts = [steps(loader(data=data, accumulate=2, rows=lambda n, k=k: range(k, n, 2)), 4) for k in (0, 1)]
    joined = jax.tree.map(lambda a, b: np.stack([a, b], 1).reshape(-1, *a.shape[1:]), *parts)
    assert_same(joined, whole)


def test_rows_are_numbered_over_the_step_and_shapes_sorted():
    made = steps(loader(accumulate=3), 4)
    for step in made:
        np.testing.assert_array_equal(np.concatenate([batch.index for batch in step]), np.arange(6))
    orders = [[batch.picture is None for batch in step] for step in made]
    assert any(True in order and False in order for order in orders)
    assert all(order == sorted(order) for order in orders)


def test_shares_of_dropped_prompts():
    data = dataclasses.replace(DATA, drop_all_t2i=0.1, drop_all_edit=0.2, drop_text_edit=0.3)
    drafter, rng = Drafter(CFG, TOKENIZER, data), np.random.default_rng(0)
    t2i_drops = [drafter.choose_drop(t2i(0), rng) for _ in range(4000)]
    edit_drops = [drafter.choose_drop(edit(0), rng) for _ in range(4000)]
    shares = [np.mean([drop == name for drop in drops]) for drops in (t2i_drops, edit_drops)
              for name in ("all_dropped", "text_dropped")]  # fmt: skip
    np.testing.assert_allclose(shares, [0.1, 0, 0.2, 0.3], atol=0.03)
    assert drafter.choose_drop(ask(0), rng) == "full"


def test_which_prompt_is_dropped_depends_on_the_position_alone():
    data = dataclasses.replace(DATA, drop_all_t2i=0.5, shuffle=False)
    first, later = plan([[t2i(n) for n in range(4)]], data), plan([[t2i(n) for n in range(4)]], data)
    drops = [draft.drop for draft in drafts(first, 8)]
    later.restore({"position": 6, "waiting": [], "read": 6, "broken": 0})
    assert [draft.drop for draft in drafts(later, 5)] == drops[6:]
    assert set(drops) == {"full", "all_dropped"} and drops[:4] != drops[4:8]


def test_an_edit_with_nothing_left_is_a_row_like_any_picture_from_text():
    drafter = Drafter(CFG, TOKENIZER, DATA)
    bare, drawn = drafter.draft(edit(0), "all_dropped"), drafter.draft(t2i(0))
    assert bare.kind == drawn.kind and bare.seen == 0
    assert drafter.draft(edit(0), "text_dropped").kind == drafter.draft(edit(0)).kind


def test_what_waits_keeps_no_record():
    """A shard's record holds the bytes of its pictures, and thousands may wait."""

    class Fresh:
        made: ClassVar[weakref.WeakSet] = weakref.WeakSet()

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Record:
            record = t2i(index, 64, (64, 128, 32)[index])
            self.made.add(record)
            return record

    made = plan([Fresh()], dataclasses.replace(DATA, shuffle=False, batch_size=3))
    planned = next(made)
    gc.collect()
    assert len(made.state()["waiting"]) == 4 and not Fresh.made
    assert [row[0].read().where for row in planned.rows] == [planned.rows[0][0].where] * 3


# Broken data


def truncated(name: str) -> PictureFile:
    data = picture_of("p", pixels(0)).read()
    return PictureFile(name, lambda: BytesIO(data[: len(data) // 2]))


def test_broken_records_are_skipped_and_reported_once(tmp_path, caplog):
    Image.fromarray(pixels(0)).save(tmp_path / "a.png")
    good = '{"task": "t2i", "prompt": "a", "image": "a.png"}'
    lines = [good, "{oops", good, good.replace("a.png", "missing.png"), good]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING, "internvlu_jax.data"):
        data = dataclasses.replace(DATA, sources=((str(tmp_path / "all.jsonl"), 1.0),))
        with Loader(CFG, TOKENIZER, data, seed=0) as made:
            for _ in range(6):
                assert np.all(next(made)[0].picture.weight == 1)
            state = made.state()
    said = sorted(record.getMessage() for record in caplog.records)
    assert len(said) == 2
    assert f"{tmp_path}/all.jsonl:2: not valid JSON" in said[0]
    assert f"{tmp_path}/all.jsonl:4: missing.png: there is no such picture file" in said[1]
    assert state["position"] == state["read"] == 20 and state["broken"] == 8


def test_a_row_whose_picture_cannot_be_read_does_not_count(caplog):
    broken = dataclasses.replace(t2i(1, reasoning="so"), image=truncated("half.png"))
    batch = one([t2i(0, reasoning="so"), broken])
    np.testing.assert_array_equal(batch.picture.weight, [1, 0])
    assert np.any(batch.text.weights[0]) and not np.any(batch.text.weights[1])
    assert np.any(batch.picture.target[0]) and not np.any(batch.picture.target[1])
    assert "t2i:1: half.png: the picture is truncated" in caplog.text


def test_a_packed_sample_whose_picture_cannot_be_read_leaves_its_neighbours(caplog):
    broken = dataclasses.replace(ask(1), sources=(truncated("half.png"),))
    records = [ask(0), broken, ask(2), *(ask(n) for n in range(4, 12))]
    data = dataclasses.replace(DATA, pack_length=400, packed_rows=1)
    whole, found = samples(one([ask(0), ask(1), *records[2:]], data).text), samples(one(records, data).text)
    assert not np.any(found[1][3]) and not np.any(found[1][4])
    for n in (0, 2):
        for a, b in zip(found[n], whole[n], strict=True):
            np.testing.assert_array_equal(a, b)
    assert "ask:1: half.png" in caplog.text


def test_sizes_that_are_not_those_of_the_picture():
    wrong = PictureFile("a.png", picture_of("a.png", pixels(0, 56, 56)).open, (56, 112))
    with pytest.raises(DataError, match=r"edit:0: its pictures make 1 tiles, but 3 by the sizes"):
        one([dataclasses.replace(edit(0), sources=(wrong,))], dataclasses.replace(DATA, batch_size=1, max_tiles=2))


def test_a_source_without_a_valid_record():
    broken = [dataclasses.replace(t2i(n), prompt="<img>") for n in range(3)]
    with loader([broken]) as made:
        for _ in range(2):  # whoever asks again hears the same
            with pytest.raises(DataError, match=r"3 of the 3 records read so far cannot be used.*t2i:\d: the prompt"):
                next(made)


def test_pictures_that_can_never_be_read():
    with pytest.raises(DataError, match=r"2 of the 2 records .*t2i:0: half.png: the picture is truncated"):
        one([dataclasses.replace(t2i(0), image=truncated("half.png"))])


@pytest.mark.parametrize(("share", "every", "stops"), [(0.01, 200, False), (0.01, 30, True), (0.0, 500, True)])
def test_the_share_of_broken_records_that_is_borne(share, every, stops):
    """Fewer than the share are borne even where chance brings some early; more are not."""
    tally = Tally(share, 10**6)

    def read() -> None:
        for n in range(3000):
            tally.read += 1
            if n % every == 5:
                tally.bad(BrokenRecord(f"a:{n}", "why"))

    if not stops:
        return read()
    with pytest.raises(DataError, match=rf"data.max_broken is {share:g}; the last one is a:\d+: why"):
        read()


def test_conversations_need_text_targets():
    with pytest.raises(DataError, match=r"ask:\d: a conversation has nothing but answers to learn"):
        one([ask(0)], dataclasses.replace(DATA, text_targets=False))


def test_no_sources():
    with pytest.raises(DataError, match=r"data.sources is empty"):
        Loader(CFG, TOKENIZER, DATA, seed=0)


# Computed beforehand


def stored(record: Record, **changes) -> Record:
    """A record as `experiments.precompute` writes it: no pictures, their latents and the contexts instead."""
    drafter, rng = Drafter(CFG, TOKENIZER, DATA), np.random.default_rng(0)
    factor, width = CFG.vae.downsample_factor, CFG.generation_decoder.input_hidden_size
    draft = drafter.draft(record)
    names = ["target", *(f"source/{n}" for n in range(len(draft.kind.sources)))]
    arrays = {
        name: rng.normal(size=(size[0] // factor, size[1] // factor, CFG.vae.z_dim)).astype(np.float32)
        for name, size in zip(names, (draft.kind.target, *draft.kind.sources), strict=True)
    }
    for drop in ("full", "text_dropped", "all_dropped"):
        length = drafter.draft(record, drop).length
        arrays[f"context/{drop}"] = rng.normal(size=(length, width)).astype(np.float32)
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
    context, length = record.stored["context/full"], fresh.picture.context_lengths[0]
    np.testing.assert_array_equal(batch.picture.context[0, :length], context)
    assert batch.picture.context.shape == (1, 64, context.shape[1]) and not np.any(batch.picture.context[0, length:])
    for name in ("context_lengths", "positions", "weight"):
        np.testing.assert_array_equal(getattr(batch.picture, name), getattr(fresh.picture, name))


def test_stored_contexts_follow_the_drop():
    record = stored(t2i(0))
    batch = one([record], dataclasses.replace(DATA, batch_size=1, drop_all_t2i=1.0))
    context = record.stored["context/all_dropped"]
    np.testing.assert_array_equal(batch.picture.context[0, : len(context)], context)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": np.zeros((4, 4, 16), np.float32)}, r"target should be \(8, 8, 16\) .* and \(4, 4, 16\) is stored"),
        ({"context/full": np.zeros((3, 5), np.float32)}, r"context/full should be \(\d+, \d+\) .* \(3, 5\) is stored"),
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


# The loader's thread


def test_closing_ends_the_threads():
    before = set(threading.enumerate())
    made = loader()
    next(made)
    made.close()
    made.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(RuntimeError, match=r"closed"):
        next(made)


def test_restoring_comes_first():
    with loader() as made:
        state = made.state()
        next(made)
        with pytest.raises(RuntimeError, match=r"before the first step"):
            made.restore(state)
