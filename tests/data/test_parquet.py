"""Parquet: the same records as JSON lines, pictures in rows or beside the file; without pyarrow one line says so."""

import datetime
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import pack
from internvlu_jax.data.records import BrokenRecord
from internvlu_jax.data.sources import open_source
from tests.data.test_listed import write


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ValueError, match=r"a\.parquet: Parquet needs pyarrow, .*pip install 'internvlu-jax\[parquet\]'"
    ):
        open_source(write(tmp_path / "a.parquet", b"PAR1"))


def table(path, rows: list[dict], **options):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_within_rows(tmp_path, capsys):
    """As bytes, or as the sets of Hugging Face have them; several in a row may have one name."""
    said = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a ball"}]
    struct = [{"bytes": png(1), "path": "a.png"}, {"bytes": png(2), "path": "a.png"}, {"bytes": png(3), "path": None}]
    table(
        tmp_path / "t2i.parquet",
        [{"task": "t2i", "prompt": f"{n}", "image": png(n), "size": n} for n in range(7)],
        row_group_size=3,
    )
    table(tmp_path / "ask.parquet", [{"conversations": said, "images": struct}, {"conversations": said, "images": []}])
    drawn, asked = open_source(tmp_path / "t2i.parquet"), open_source(tmp_path / "ask.parquet")
    assert [record.prompt for record in drawn] == list("0123456") and len(drawn) == 7
    for n in (6, 0, 3, 2):
        assert np.all(drawn[n].image.pixels()[..., 0] == n) and drawn[n].where == f"{tmp_path}/t2i.parquet:{n + 1}"
    assert [int(source.pixels()[0, 0, 0]) for source in asked[0].sources] == [1, 2, 3]
    assert asked[0].turns == (("what?", "a ball"),) and asked[1].sources == ()
    for name in ("t2i", "ask"):
        assert pack.main([str(tmp_path / f"{name}.parquet"), str(tmp_path / name)]) == 0
    packed = open_source(tmp_path / "t2i")
    assert [record.prompt for record in packed] == list("0123456")
    assert np.all(packed[5].image.pixels()[..., 0] == 5)
    assert [int(source.pixels()[0, 0, 0]) for source in open_source(tmp_path / "ask")[0].sources] == [1, 2, 3]


def test_dates_among_the_words_are_packed_as_text(tmp_path):
    """No reader looks at them, and JSON has none."""
    at = datetime.datetime(2025, 1, 2)
    said = [{"role": "user", "content": "hi", "at": at}, {"role": "assistant", "content": "yo", "at": at}]
    rows = open_source(table(tmp_path / "a.parquet", [{"messages": said}]))
    assert rows[0].turns == (("hi", "yo"),)
    assert pack.main([str(tmp_path / "a.parquet"), str(tmp_path / "packed")]) == 0
    (packed,) = open_source(tmp_path / "packed")
    assert packed.turns == rows[0].turns and packed.data["messages"][1]["at"] == "2025-01-02 00:00:00"


def test_pictures_beside_the_file(tmp_path):
    write(tmp_path / "a.png", png(9))
    rows = [{"task": "t2i", "prompt": "a", "image": "a.png"}, {"task": "t2i", "prompt": "a", "image": "../b.png"}]
    source = open_source(table(tmp_path / "a.parquet", rows))
    lines = open_source(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert [record.data for record in source] == [record.data for record in lines]
    assert np.all(source[0].image.pixels()[..., 0] == 9)
    with pytest.raises(ValueError, match="lies outside of"):
        source[1].image.pixels()


def test_what_cannot_be_used(tmp_path):
    path = table(
        tmp_path / "a.parquet",
        [{"task": None, "prompt": "a", "image": png(0)}, {"task": "t2i", "prompt": "", "image": png(1)}],
    )
    for n, said in enumerate([r"task is missing", "prompt is ''; expected text"]):
        with pytest.raises(BrokenRecord, match=rf"a\.parquet:{n + 1}: {said}"):
            open_source(path)[n]
    for rows, said in (([{"label": 3}], r"none of its columns \['label'\]"), ([{"prompt": "a"}][:0], "no rows|none")):
        with pytest.raises(ValueError, match=rf"b\.parquet: {said}"):
            open_source(table(tmp_path / "b.parquet", rows))
    data = path.read_bytes()
    for bad in (b"", data[:-9], data[:50], b"PAR1" * 9):
        with pytest.raises(ValueError, match=r"c\.parquet cannot be read as Parquet: "):
            open_source(write(tmp_path / "c.parquet", bad))


@pytest.mark.parametrize(("found", "said"), [(b"a ball", r"a\.parquet:2: cannot be read"), (b"task", "as Parquet")])
def test_text_that_is_not_utf_8(found, said, tmp_path):
    """Of a row, which alone is broken, and of the name of a column."""
    rows = [{"task": "t2i", "prompt": text, "image": png(0)} for text in ("a cube", "a ball")]
    path = table(tmp_path / "a.parquet", rows, compression="none", use_dictionary=False, write_statistics=False)
    path.write_bytes(path.read_bytes().replace(found, b"\xff" + found[1:]))
    with pytest.raises(ValueError, match=rf"a\.parquet.*{said}|{said}") as refused:
        open_source(path)[1]
    assert isinstance(refused.value, BrokenRecord) == (found == b"a ball")
    if found == b"a ball":
        assert open_source(path)[0].prompt == "a cube"


@pytest.mark.parametrize(("groups", "total"), [([3, -3], 0), ([3, 2**62], 6), ([-1], -1)])
def test_numbers_of_rows_that_cannot_be(groups, total, tmp_path, monkeypatch):
    """As a damaged footer has them."""
    path = table(tmp_path / "a.parquet", [{"prompt": "a"}])
    rows = [SimpleNamespace(num_rows=count) for count in groups]
    metadata = SimpleNamespace(num_row_groups=len(rows), row_group=rows.__getitem__, num_rows=total)
    monkeypatch.setattr("pyarrow.parquet.ParquetFile.metadata", metadata)
    with pytest.raises(ValueError, match=r"a\.parquet is damaged: groups of .* rows, and -?\d+ in all"):
        open_source(path)
