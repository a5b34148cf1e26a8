"""safetensors files: those of the library, sharded, and broken in every way."""

import json

import numpy as np
import pytest
import safetensors.numpy

from converters.engine import ConversionError, LazyTensor, TensorInfo
from converters.tensors import open_part, write_part
from tests.helpers.tensor_files import assert_same_bits, lazy, read_all, released


def test_files_are_those_of_the_safetensors_library(tmp_path):
    arrays = {**released(), "half": np.ones((3, 5), np.float16), "scalar": np.array(2.0, np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "theirs.safetensors", {"format": "pt"})
    write_part(tmp_path, "model", lazy(arrays))
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert_same_bits(read_all(tmp_path), arrays)


def test_shards_have_an_index(tmp_path):
    arrays = released()
    write_part(tmp_path, "model", lazy(arrays), shard_bytes=300)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())
    assert index["weight_map"].keys() == arrays.keys()
    for name, file in index["weight_map"].items():
        assert name in safetensors.numpy.load_file(tmp_path / file)
    assert_same_bits(read_all(tmp_path), arrays)


def test_broken_shards(tmp_path):
    write_part(tmp_path, "model", lazy(released()), shard_bytes=300)
    index_path = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    first = index["weight_map"]["patch.weight"]

    spoiled = {**index["weight_map"], "absent": first}
    del spoiled["patch.weight"]
    index_path.write_text(json.dumps({"weight_map": spoiled}))
    with pytest.raises(ConversionError, match=r"names: absent.*does not name there: patch.weight"):
        open_part(tmp_path)

    index_path.write_text(json.dumps(index))
    (tmp_path / first).unlink()
    with pytest.raises(ConversionError, match=f"names {first}, not to be found"):
        open_part(tmp_path)
    index_path.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ConversionError, match="not to be found"):
        open_part(tmp_path)
    for text in ("[]", "no json", '{"weight_map": {"a": 3}}'):
        index_path.write_text(text)
        with pytest.raises(ConversionError, match="not an index"):
            open_part(tmp_path)


def test_truncated_and_corrupt_files(tmp_path):
    safetensors.numpy.save_file(released(), tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    good = path.read_bytes()
    header = int.from_bytes(good[:8], "little")
    cases = {
        b"": "truncated or not safetensors",
        good[:5]: "truncated or not safetensors",
        good[:100]: "truncated or not safetensors",
        good[:-1]: "is truncated",
        good + b"x": "is corrupt",
        good[:8] + b"x" * header + good[8 + header :]: "header is corrupt",
        good.replace(b'"shape":[6,5]', b'"shape":[6,6]'): "header is corrupt",
        (2).to_bytes(8, "little") + b"[]": "header is corrupt",
        b"<html>Not found</html>": "not safetensors",
    }
    for data, reason in cases.items():
        path.write_bytes(data)
        with pytest.raises(ConversionError, match=f"model.safetensors .*{reason}"):
            open_part(tmp_path)
    path.write_bytes(good)
    reader = open_part(tmp_path)
    path.write_bytes(good[: 8 + header + 4])
    with pytest.raises(ConversionError, match="truncated"):
        reader.read("conv.weight")


def test_pickles_are_refused_with_the_reason(tmp_path):
    for name in ("pytorch_model.bin", "model.ckpt", "a.pt", "b.pth"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ConversionError, match=rf"{name}: pickles, which can run any code"):
            open_part(tmp_path)
        (tmp_path / name).unlink()
    with pytest.raises(ConversionError, match=r"has no tensors: expected model\.safetensors"):
        open_part(tmp_path)


def test_a_failure_inside_a_file_leaves_no_file(tmp_path):
    def fail():
        raise OSError("disk full")

    good = lazy({"a": np.ones(3, np.float32)})
    with pytest.raises(OSError, match="disk full"):
        write_part(tmp_path, "model", {**good, "b": LazyTensor(TensorInfo("F32", (2,)), fail)})
    assert not list(tmp_path.iterdir())
