"""Which batches a run reads: order, mixtures, resuming, hosts, and broken data."""

import dataclasses
import gc
import json
import logging
import shutil
import threading
import weakref
from typing import ClassVar

import jax
import numpy as np
import pytest
from PIL import Image

from internvlu_jax.data.examples import DataError, ExampleBuilder
from internvlu_jax.data.loader import Loader
from internvlu_jax.data.records import BrokenRecord, PictureFile, Record
from internvlu_jax.data.sources import entry, write_shards
from internvlu_jax.data.tally import Tally
from tests.helpers.data import (
    CFG,
    DATA,
    MIXED,
    TOKENIZER,
    ask,
    assert_same,
    drafts,
    edit,
    loader,
    one,
    picture_of,
    pixels,
    plan,
    samples,
    steps,
    t2i,
    truncated,
)

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
    assert set(state) == {"position", "waiting", "read", "broken", "records"} and len(state["waiting"]) < 20


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
    builder, rng = ExampleBuilder(CFG, TOKENIZER, data), np.random.default_rng(0)
    t2i_drops, edit_drops = ([builder.choose_branch(r, rng) for _ in range(4000)] for r in (t2i(0), edit(0)))
    shares = [np.mean([drop == name for drop in drops]) for drops in (t2i_drops, edit_drops)
              for name in ("uncond", "text_dropped")]  # fmt: skip
    np.testing.assert_allclose(shares, [0.1, 0, 0.2, 0.3], atol=0.03)
    assert builder.choose_branch(ask(0), rng) == "cond"


def test_which_prompt_is_dropped_depends_on_the_position_alone():
    data = dataclasses.replace(DATA, drop_all_t2i=0.5, shuffle=False)
    first, later = plan([[t2i(n) for n in range(4)]], data), plan([[t2i(n) for n in range(4)]], data)
    drops = [draft.branch for draft in drafts(first, 8)]
    later.restore({"position": 6, "waiting": [], "read": 6, "broken": 0})
    assert [draft.branch for draft in drafts(later, 5)] == drops[6:]
    assert set(drops) == {"cond", "uncond"} and drops[:4] != drops[4:8]


def test_an_edit_with_nothing_left_is_a_row_like_any_picture_from_text():
    builder = ExampleBuilder(CFG, TOKENIZER, DATA)
    bare, drawn = builder.draft(edit(0), "uncond"), builder.draft(t2i(0))
    assert bare.kind == drawn.kind and bare.seen == 0
    assert builder.draft(edit(0), "text_dropped").kind == builder.draft(edit(0)).kind


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


# Other data


def lines_file(path, count: int, prompt: str = "a") -> str:
    Image.fromarray(pixels(0)).save(path.parent / "a.png")
    line = {"task": "t2i", "prompt": prompt, "image": "a.png"}
    path.write_text("".join(json.dumps({**line, "prompt": f"{prompt}{n}"}) + "\n" for n in range(count)))
    return str(path)


def shards(path, count: int) -> str:
    shutil.rmtree(path, ignore_errors=True)
    write_shards(path, (entry({"task": "t2i", "prompt": f"a{n}", "image": "a.png"}) for n in range(count)), 4)
    return str(path)


@pytest.mark.parametrize("make", [lines_file, shards])
def test_data_that_grew_or_shrank_or_changed_are_not_gone_on_with(tmp_path, make):
    kept = lines_file(tmp_path / "kept.jsonl", 3)

    def opened() -> Loader:
        data = dataclasses.replace(DATA, sources=((kept, 1.0), (str(tmp_path / "data"), 1.0)))
        return Loader(CFG, TOKENIZER, data, seed=0)

    make(tmp_path / "data", 9)
    state = json.loads(json.dumps(opened().state()))
    opened().restore(state)
    opened().restore({name: value for name, value in state.items() if name != "records"})  # of before
    for count in (8, 10):
        make(tmp_path / "data", count)
        with pytest.raises(DataError, match=rf"data: when the run last saved it had 9 records and has {count} now"):
            opened().restore(state)
    make(tmp_path / "data", 9)
    opened().restore(state)
    if make is lines_file:
        make(tmp_path / "data", 9, "b")
    else:
        (tmp_path / "data/00000.array_record").rename(tmp_path / "data/9.array_record")
    with pytest.raises(DataError, match=r"data: when the run last saved it had 9 other records\."):
        opened().restore(state)


# Broken data


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
    assert state["position"] == state["read"] == 20
    assert sorted(state["broken"]) == [f"{tmp_path}/all.jsonl:2", f"{tmp_path}/all.jsonl:4"]


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
    with pytest.raises(DataError, match=r"1 of the 1 records .*t2i:0: half.png: the picture is truncated"):
        one([dataclasses.replace(t2i(0), image=truncated("half.png"))])


@pytest.mark.parametrize(("share", "every", "stops"), [(0.01, 200, False), (0.01, 30, True), (0.0, 500, True)])
def test_the_share_of_broken_records_that_is_borne(share, every, stops):
    """Fewer than the share are borne even where chance brings some early; more are not."""
    tally = Tally(share, [10**6], [1.0])

    def read() -> None:
        for n in range(3000):
            tally.read += 1
            if n % every == 25:
                tally.bad(BrokenRecord(f"a:{n}", "why"))
            tally.settle()

    if not stops:
        return read()
    with pytest.raises(DataError, match=rf"data.max_broken is {share:g}; the last one is a:\d+: why"):
        read()


@pytest.mark.parametrize(
    ("size", "broken", "stops"),
    [(20, 1, False), (60, 2, False), (60, 4, True), (20, 3, True), (8, 1, False), (8, 2, True), (15, 12, True)],
)
def test_a_broken_record_counts_once_however_many_passes(size, broken, stops):
    """Before, one of 20 ended a run in its third pass, and one of 60 in its 34th; and of 15 any 14 were borne."""
    tally = Tally(0.01, [size], [1.0])

    def passes(count: int, first: int = 0) -> None:
        for n in range(first, count * size):
            tally.read += 1
            if n % size >= size - broken:
                tally.bad(BrokenRecord(f"a:{n % size}", "why"))
            tally.settle()

    if stops:
        with pytest.raises(DataError, match=r"of the \d+ records read so far cannot be used"):
            passes(1)
        return
    passes(50)
    tally.restore(tally.read, list(tally.broken))
    passes(100, first=50 * size)
    assert list(tally.broken) == [f"a:{size - broken + n}" for n in range(broken)] and tally.records() == size


def test_one_of_few_is_not_borne_where_none_is_to_be():
    tally = Tally(0.0, [8], [1.0])
    tally.read = 7
    tally.settle()
    tally.read = 8
    with pytest.raises(DataError, match=r"1 of the 8 records read so far cannot be used, and data.max_broken is 0"):
        tally.bad(BrokenRecord("a:7", "why"))


def test_records_of_a_mixture_are_counted_by_source():
    tally = Tally(0.01, [10, 1000], [1.0, 1.0])
    for read, records in ((8, 8), (20, 20), (100, 60), (10**6, 1010)):
        tally.read = read
        assert tally.records() == records


def test_records_that_are_lost_later_end_the_run():
    """All of them, or too many."""
    for share, lost, said in ((0.5, 10, "10 of the 10"), (0.01, 10, "2 of the 10"), (0.01, 40, r"\d of the 40")):
        tally = Tally(share, [lost], [1.0])
        tally.read = lost
        tally.settle()
        with pytest.raises(DataError, match=f"{said} records read so far cannot be used"):
            for n in range(lost):
                tally.read += 1
                tally.bad(BrokenRecord(f"a:{n}", "no such file"))
                tally.settle()


def test_one_broken_picture_of_twenty_for_many_passes(tmp_path, caplog):
    """Its header is whole, so it is met when the pixels are read; resumed on the way."""
    for n in range(20):
        Image.fromarray(pixels(n, 16, 16)).save(tmp_path / f"{n}.png")
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:-300])
    records = [{"task": "t2i", "prompt": "a", "image": f"{n}.png"} for n in range(20)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, records)))
    data = dataclasses.replace(DATA, sources=((str(tmp_path / "all.jsonl"), 1.0),), batch_size=10, max_broken=0.01)
    state = None
    for _ in range(2):
        with Loader(CFG, TOKENIZER, data, seed=0) as made:
            if state is not None:
                made.restore(state)
            weights = [float(np.sum(next(made)[0].picture.weight)) for _ in range(20)]
            state = made.state()
        assert sum(weights) == 190
    assert len([r for r in caplog.records if "7.png: the picture is truncated" in r.getMessage()]) == 2


def test_conversations_need_text_targets():
    with pytest.raises(DataError, match=r"ask:\d: a conversation has nothing but answers to learn"):
        one([ask(0)], dataclasses.replace(DATA, text_targets=False))


def test_no_sources():
    with pytest.raises(DataError, match=r"data.sources is empty"):
        Loader(CFG, TOKENIZER, DATA, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_are_none(seed):
    with pytest.raises(ValueError, match=rf"seed is {seed}; expected a whole number from 0 to 4294967295"):
        loader(seed=seed)


def test_the_largest_seed():
    assert_same(*(steps(loader(seed=2**32 - 1), 2) for _ in range(2)))


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
