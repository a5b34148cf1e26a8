"""Shards of records, and the script that packs them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from experiments import pack
from internvlu_jax.data import sources
from internvlu_jax.data.records import BrokenRecord
from internvlu_jax.data.sources import entry, open_source, write_shards
from tests.data.test_records import ASK, EDIT, T2I, TALK, picture_bytes, write_lines


def described(record) -> tuple:
    """All that a record holds, pictures decoded."""
    pictures = {name: (picture.size(), picture.pixels().tolist()) for name, picture in record.pictures().items()}
    image = None if record.image is None else record.image.name
    seen = [picture.name for picture in record.sources]
    return record.task, record.prompt, record.reasoning, record.turns, image, seen, pictures, dict(record.stored)


def run_pack(*args) -> int:
    return pack.main([str(arg) for arg in args])


# Shards


def test_shards_give_the_same_records(tmp_path):
    lines = write_lines(tmp_path / "in", T2I, EDIT, ASK, TALK, T2I)
    assert run_pack(lines, tmp_path / "out", "--shard-size", 2) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    plain, packed = open_source(lines), open_source(tmp_path / "out")
    assert len(packed) == 5
    assert [described(record) for record in packed] == [described(record) for record in plain]
    assert packed[1].where.endswith("/00000.array_record:2") and packed[2].where.endswith("/00001.array_record:1")
    assert packed[1].sources[1].read() == (tmp_path / "in/c.jpg").read_bytes()
    assert packed[0].image.known_size == (8, 5) and plain[0].image.known_size is None


def test_stored_arrays(tmp_path):
    arrays = {
        "target": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32).swapaxes(0, 1),
        "context/cond": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
        "context/uncond": np.zeros((0, 3), np.float16),
    }
    write_shards(tmp_path / "out", [entry({**T2I, "sizes": {"b.png": [4, 6]}}, arrays=arrays)], 10)
    record = open_source(tmp_path / "out")[0]
    assert record.stored.keys() == arrays.keys()
    assert all(record.stored[name].dtype == array.dtype for name, array in arrays.items())
    assert all(np.array_equal(record.stored[name], array) for name, array in arrays.items())
    assert record.image.size() == (4, 6)
    with pytest.raises(ValueError, match=r"b\.png: its pixels are not in the shard"):
        record.image.pixels()


def test_broken_entries(tmp_path):
    no_record = entry(T2I, {"b.png": b""}).replace(b'"record"', b'"recodr"')
    found = [entry(T2I), b"nothing", no_record, entry({"task": 1}), entry(T2I, arrays={"x": np.zeros(2)}), entry(TALK)]
    write_shards(tmp_path / "out", found, 10)
    source = open_source(tmp_path / "out")
    reasons = ["b.png is not in the shard", "not safetensors", "no array record", "task is 1", r"holds x \(F64\)"]
    for n, reason in enumerate(reasons):
        with pytest.raises(BrokenRecord, match=rf"00000\.array_record:{n + 1}: .*{reason}"):
            source[n]
    assert source[5].task == "understanding"
    with pytest.raises(IndexError):
        source[6]


def test_a_damaged_entry_harms_no_other(tmp_path):
    pictures = [picture_bytes(seed, "PNG", 40, 40) for seed in range(3)]
    write_shards(tmp_path / "out", [entry(T2I, {"b.png": data}) for data in pictures], 10)
    path = tmp_path / "out/00000.array_record"
    data = bytearray(path.read_bytes())
    data[data.index(pictures[1]) + 1000] ^= 255
    path.write_bytes(data)
    source = open_source(tmp_path / "out")
    for _ in range(2):
        with pytest.raises(BrokenRecord, match=r"00000\.array_record:2: cannot be read: .*hash mismatch"):
            source[1]
        assert [source[n].image.read() for n in (0, 2)] == [pictures[0], pictures[2]]


def test_shards_appear_whole_or_not_at_all(tmp_path):
    def failing():
        yield entry(TALK)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_shards(tmp_path / "out", failing(), 1)
    with pytest.raises(ValueError, match="there is no record to write"):
        write_shards(tmp_path / "out", [], 1)
    with pytest.raises(ValueError, match="shards of 0 records"):
        write_shards(tmp_path / "out", [entry(TALK)], 0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(FileExistsError, match="is not an empty directory"):
        write_shards(tmp_path / "out", [entry(TALK)], 1)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys):
    class Full(sources.ArrayRecordWriter):
        def close(self):
            super().close()
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(sources, "ArrayRecordWriter", Full)
    assert run_pack(write_lines(tmp_path, T2I), tmp_path / "out") == 2
    assert "No space left on device" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["lines", "shards"])
def test_threads_read_side_by_side(tmp_path, monkeypatch, form):
    monkeypatch.setattr(sources, "_OPEN_SHARDS", 2)  # so that shards are closed and opened again on the way
    path = write_lines(tmp_path / "in", *({**T2I, "prompt": f"{n} " + "x" * (n * 97 % 500)} for n in range(60)))
    if form == "shards":
        assert run_pack(path, tmp_path / "out", "--shard-size", 7) == 0
        path = tmp_path / "out"
    source, start = open_source(path), threading.Barrier(8)

    def read(seed: int) -> bool:
        start.wait()
        order = np.random.default_rng(seed).permutation(60).tolist()
        return all(source[n].prompt.startswith(f"{n} ") and source[n].image.size() == (8, 5) for n in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


# The script


def test_pack_leaves_broken_records_out(tmp_path, capsys):
    lines = write_lines(tmp_path, T2I, "{", {**T2I, "image": "none.png"}, {**EDIT, "source": "cut.jpg"}, ASK)
    (tmp_path / "cut.jpg").write_bytes(picture_bytes(0, "JPEG", 90, 90)[:-400])
    assert run_pack(lines, tmp_path / "out", "--max-broken", 0.6) == 0
    printed = capsys.readouterr()
    assert "2 records in" in printed.out and "3 left out" in printed.out
    for n, reason in {2: "not valid JSON", 3: "none.png: there is no such picture file", 4: "cut.jpg: "}.items():
        assert f"left out {lines}:{n}: {reason}" in printed.err
    assert [record.task for record in open_source(tmp_path / "out")] == ["t2i", "understanding"]


def test_pack_stops_at_too_many_broken_records(tmp_path, capsys):
    lines = write_lines(tmp_path, "{", T2I, "{", T2I)
    assert run_pack(lines, tmp_path / "out", "--max-broken", 0.25) == 2
    error = capsys.readouterr().err
    assert "error: more than 1 of the 4 records cannot be used" in error and f"{lines}:3: not valid JSON" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("none.jsonl", "out"), "none.jsonl: there is no such file"),
        ((".", "out"), "no captions; expected a text file beside each picture"),
        (("all.jsonl", "out", "--max-broken", 2), "--max-broken is 2.0; expected a share from 0 to 1"),
        (("all.jsonl", "out", "--threads", 0), "--threads is 0; expected at least 1"),
        (("all.jsonl", "out", "--shard-size", 0), "shards of 0 records; expected at least 1"),
        (("all.jsonl", "."), "is not an empty directory"),
    ],
)
def test_pack_with_bad_arguments(tmp_path, monkeypatch, capsys, args, reason):
    write_lines(tmp_path, T2I)
    monkeypatch.chdir(tmp_path)
    assert run_pack(*args) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
