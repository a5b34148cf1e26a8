"""Checkpoints as people have them: other names and dtypes, tensors more, weights and files that are none."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from converters.checkpoint import PARTS, export_released, load_released, summary
from converters.engine import ConversionError, on_host
from converters.tensors import all_finite, read_header, write_part
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.checkpoints.model_directory import save_model
from internvlu_jax.config import CheckpointWarning
from internvlu_jax.config_files import read_config
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.setup import initial_model
from internvlu_jax.utils.tree import paths
from tests.conftest import GOLDENS
from tests.helpers.tensor_files import assert_same_bits, lazy, read_all

RELEASED = GOLDENS / "base/checkpoint"
VLM, HEAD, VAE = (Path(part.folder) / f"{part.stem}.safetensors" for part in PARTS.values())
EMBED = "language_model.model.embed_tokens.weight"
Q = "language_model.model.layers.1.self_attn.q_proj"


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(RELEASED, tmp_path / "c"))


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return paths(load_released(RELEASED, place=on_host).params)


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    arrays = safetensors.numpy.load_file(path)
    change(arrays)
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})


def load(root: Path) -> dict[str, np.ndarray]:
    return paths(load_released(root, place=on_host).params)


def stored(path: Path, dtype: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """Rewrites every tensor of a file as `dtype`, whose numpy form `change` makes; what was written, by name."""
    arrays = {name: change(array) for name, array in safetensors.numpy.load_file(path).items()}
    header, end, data = {}, 0, b""
    for name, array in arrays.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [end, end := end + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return arrays


# --- tensors more, and more rows


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.rotary_emb.inv_freq",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_model.embeddings.position_ids",
        f"{Q}.lora_A.default.weight",
        f"{Q}.lora_B.weight",
        "language_model.model.layers.1.self_attn.q_proj.bias",
        "value_head.summary.weight",
    ],
)
def test_an_unknown_tensor_is_left_out_with_a_warning(copy, recorded, name):
    kind = np.int64 if name.endswith("ids") else np.float32
    rewrite(copy / VLM, lambda arrays: arrays.update({name: np.ones(4, kind)}))
    with pytest.warns(CheckpointWarning, match=f"vlm: 1 tensors that the model does not have are left out: {name}"):
        loaded = load(copy)
    assert_same_bits(loaded, recorded)
    assert summary(copy).complete


def test_the_head_of_a_tied_model_is_left_out(tmp_path):
    copy = shutil.copytree(GOLDENS / "mlp/checkpoint", tmp_path / "c")
    assert read_config(copy).vlm.llm_config.tie_word_embeddings
    rewrite(copy / VLM, lambda arrays: arrays.update({"language_model.lm_head.weight": arrays[EMBED] + 1}))
    with pytest.warns(CheckpointWarning, match="left out: language_model.lm_head.weight"):
        assert_same_bits(load(copy), load(GOLDENS / "mlp/checkpoint"))


@pytest.mark.parametrize(
    "name",
    [f"{Q}.weight_scale", f"{Q}.weight_scale_inv", f"{Q}.scales", f"{Q}.weight.absmax", f"{Q}.SCB", "scaled_fp8"],
)
def test_scales_of_quantized_weights_are_refused(copy, name):
    """Without them the numbers are others."""
    rewrite(copy / VLM, lambda arrays: arrays.update({name: np.ones(1, np.float32)}))
    with pytest.raises(ConversionError, match=f"vlm: 1 tensors of a quantized checkpoint, .*: {name}"):
        load(copy)


def test_a_larger_table_of_tokens_is_taken_whole(copy, tmp_path):
    """Its rows may be those of tokens that were added; the config follows, and so it does on the way back."""
    rows, width = safetensors.numpy.load_file(copy / VLM)[EMBED].shape
    grown = {}

    def grow(arrays):
        for name in (EMBED, "language_model.lm_head.weight"):
            more = np.random.default_rng(0).standard_normal((12, width)).astype(np.float32)
            grown[name] = arrays[name] = np.concatenate([arrays[name], more])

    rewrite(copy / VLM, grow)
    with pytest.warns(CheckpointWarning, match=f"the table of tokens has {rows + 12} rows, vocab_size is {rows}"):
        loaded = load_released(copy, place=on_host)
    llm = loaded.config.vlm.llm_config
    assert llm == replace(read_config(copy).vlm.llm_config, vocab_size=rows + 12)
    np.testing.assert_array_equal(loaded.params["vlm"]["llm"]["embed"]["embedding"], grown[EMBED])
    export_released(tmp_path / "back", loaded.config, loaded.params, loaded.extras, copy)
    assert_same_bits(read_all(tmp_path / "back/vlm"), read_all(copy / "vlm"))
    assert read_config(tmp_path / "back") == loaded.config
    rewrite(copy / VLM, lambda arrays: arrays.update({EMBED: arrays[EMBED][:9]}))
    with pytest.raises(ConversionError, match=r"wrong shape: language_model.model.embed_tokens.weight is \(9, "):
        load(copy)


def test_tokens_without_a_row_are_refused_by_name(copy, tmp_path):
    """Such a row would be NaN, silently. The table has 11 rows more than the tokenizer has tokens."""
    file = copy / "processor/tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.add_tokens([f"zz{n}zz" for n in range(12)])
    backend.save(str(file))
    said = "c: the table of tokens has 916 rows, and none for 1 of the tokens in processor/: zz11zz; expected"
    for use in (InternVLUPipeline.from_pretrained, lambda name: initial_model(TrainConfig("a", 1, start=str(name)))):
        with pytest.raises(CheckpointError, match=said):
            use(copy)
    loading.convert(copy, tmp_path / "ours", "orbax")


# --- dtypes


def test_a_stack_of_several_dtypes_becomes_float32(copy, recorded, tmp_path):
    layer = "language_model.model.layers.{}.mlp.up_proj.weight"
    narrow = {1: np.float16, 2: ml_dtypes.bfloat16}
    arrays = safetensors.numpy.load_file(copy / VLM)
    for i, dtype in narrow.items():
        arrays[layer.format(i)] = arrays[layer.format(i)].astype(dtype)
    (copy / VLM).unlink()
    write_part(copy / "vlm", "model", lazy(arrays))
    got = load(copy)["vlm/llm/layers/mlp/up/kernel"]
    want = recorded["vlm/llm/layers/mlp/up/kernel"].copy()
    for i, dtype in narrow.items():
        want[i] = want[i].astype(dtype).astype(np.float32)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)
    assert summary(copy).complete
    loading.convert(copy, tmp_path / "ours", "orbax")


def test_float64_is_rounded(copy, recorded):
    stored(copy / VAE, "F64", lambda array: array.astype(np.float64) * (1 + 1e-12))
    assert_same_bits(load(copy), recorded)


@pytest.mark.parametrize(("dtype", "kind"), [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)])
def test_float8_is_widened(copy, dtype, kind):
    """To bfloat16, which holds every value of either; checked one tensor at a time in numpy."""
    every = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
    finite = every[np.isfinite(every)]
    np.testing.assert_array_equal(finite.astype(ml_dtypes.bfloat16).astype(np.float32), finite)
    written = stored(copy / VAE, dtype, lambda array: array.astype(kind))
    got = load(copy)
    assert {leaf.dtype for path, leaf in got.items() if path.startswith("vae/")} == {np.dtype(ml_dtypes.bfloat16)}
    bias = written["encoder.conv_in.bias"].astype(np.float32)
    np.testing.assert_array_equal(got["vae/encoder/conv_in/bias"].astype(np.float32), bias)
    kernel = written["encoder.conv_in.weight"].astype(np.float32)[:, :, -1].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(got["vae/encoder/conv_in/kernel"].astype(np.float32), kernel)


# --- names of files


@pytest.mark.parametrize("index", [None, "model.safetensors.index.bf16.json", "model.safetensors.bf16.index.json"])
def test_a_variant_loads(copy, recorded, tmp_path, index):
    """As transformers and diffusers name it, whole and in shards; on conversion it gets the plain name."""
    if index is None:
        (copy / VLM).rename(copy / "vlm/model.bf16.safetensors")
    else:
        arrays = read_all(copy / "vlm")
        (copy / VLM).unlink()
        write_part(copy / "vlm", "model", lazy(arrays), shard_bytes=200_000)
        (copy / "vlm/model.safetensors.index.json").rename(copy / "vlm" / index)
    assert_same_bits(load(copy), recorded)
    loading.convert(copy, tmp_path / "back", "released")
    assert sorted(p.name for p in (tmp_path / "back/vlm").iterdir()) == ["config.json", "model.safetensors"]


def test_the_plain_file_comes_first_and_variants_must_be_one(copy, recorded):
    (copy / "vlm/model.fp16.safetensors").write_bytes(b"")
    assert_same_bits(load(copy), recorded)
    (copy / VLM).rename(copy / "vlm/model.bf16.safetensors")
    with pytest.raises(ConversionError, match=r"several variants, model.bf16.safetensors, model.fp16.safetensors"):
        load(copy)


# --- numbers that are none


def test_weights_that_are_no_numbers_are_refused(copy, tmp_path):
    """All of them named; in each layout, and on conversion. A kernel of videos, which never runs, may hold any."""

    def spoil(arrays):
        arrays[f"{Q}.weight"][3, 5] = np.nan
        arrays["mlp1.1.bias"][-1] = -np.inf

    unused = "decoder.up_blocks.0.upsamplers.0.time_conv.weight"
    rewrite(copy / VAE, lambda arrays: arrays[unused].fill(np.nan))
    before = load(copy)
    rewrite(copy / VLM, spoil)
    for fails in (load, loading.load, lambda root: loading.convert(root, tmp_path / "out", "orbax")):
        with pytest.raises(ConversionError, match=rf"vlm: 2 tensors hold NaN or infinities: mlp1.1.bias, {Q}.weight"):
            fails(copy)
    rewrite(
        copy / VLM, lambda arrays: [np.nan_to_num(array, copy=False, posinf=0, neginf=0) for array in arrays.values()]
    )
    loaded = load_released(copy, place=on_host)
    assert len(before) == len(paths(loaded.params))
    loaded.params["head"]["padding_token"][0] = np.nan
    save_model(tmp_path / "ours", loaded.config, loaded.params, loaded.extras, copy)
    for place in (None, on_host):
        with pytest.raises(ValueError, match="ours: 1 parameters hold NaN or infinities: head/padding_token"):
            loading.load(tmp_path / "ours", place=place)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_no_number_is_told_by_its_bits(dtype):
    """Against numpy, on every pattern of the upper 16 bits, alone and among a million zeros."""
    bits = np.arange(2**16, dtype=np.uint16)
    values = bits.view(dtype) if np.dtype(dtype).itemsize == 2 else (bits.astype(np.uint32) << 16).view(dtype)
    finite = np.isfinite(values.astype(np.float32))
    assert [all_finite(values[i : i + 1]) for i in range(0, 2**16, 13)] == finite[::13].tolist()
    assert all_finite(values[finite]) and not all_finite(values)
    many = np.zeros((1000, 1000), dtype)
    assert all_finite(many) and all_finite(many[:0])
    many[999, 999] = np.inf
    assert not all_finite(many)


# --- small files


def test_linked_folders_are_copied(tmp_path):
    """As tools that merge make them: the processor is a link to that of another checkpoint. A loop ends."""
    copy = shutil.copytree(RELEASED, tmp_path / "c")
    (copy / "processor").rename(tmp_path / "elsewhere")
    (copy / "processor").symlink_to("../elsewhere", target_is_directory=True)
    (copy / "vlm/up").symlink_to(copy, target_is_directory=True)
    (copy / "vlm/config.json").rename(tmp_path / "config.json")
    (copy / "vlm/config.json").symlink_to(tmp_path / "config.json")
    for to, place in (("released", "processor"), ("orbax", "released/processor")):
        loading.convert(copy, tmp_path / to, to)
        tokenizer = Tokenizer.from_directory(tmp_path / to / place)
        assert tokenizer.encode("a cat") == Tokenizer.from_directory(RELEASED / "processor").encode("a cat")
        for path in (RELEASED / "processor").iterdir():
            assert (tmp_path / to / place / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "released/vlm/up").exists()
    assert not any(path.is_symlink() for path in (tmp_path / "released").rglob("*"))


def test_a_link_that_leads_nowhere_is_named(copy, tmp_path):
    (copy / "processor/vocab.json").unlink()
    (copy / "processor/vocab.json").symlink_to("gone.json")
    with pytest.raises(ValueError, match=r"processor/vocab.json is a link to gone.json, which is not there"):
        loading.convert(copy, tmp_path / "out", "released")
    assert not (tmp_path / "out").exists()


# --- files that are others

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 3984375432\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (POINTER, "it is a git-LFS pointer, not the file itself; fetch that with `git lfs pull`"),
        (b"\n<!doctype HTML>\n<html><body>Access denied</body></html>", "it is an HTML page"),
        (b"PK\x03\x04" + bytes(60), "it is a zip archive, as PyTorch's pickles are"),
        (b"\x1f\x8b\x08" + bytes(60), "it is compressed with gzip"),
    ],
)
def test_what_is_no_tensors_is_named_for_what_it_is(copy, content, said):
    (copy / VLM).write_bytes(content)
    with pytest.raises(ConversionError, match=f"vlm/model.safetensors is truncated or not safetensors: {said}"):
        load(copy)


def test_an_index_that_is_a_pointer_is_named(copy):
    (copy / VLM).rename(copy / "vlm/model-00001-of-00001.safetensors")
    (copy / "vlm/model.safetensors.index.json").write_bytes(POINTER)
    with pytest.raises(ConversionError, match=r"index.json is not an index of shards: .*json is a git-LFS pointer"):
        load(copy)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("shape", lambda shape: [float(n) for n in shape]),
        ("shape", lambda shape: [-n for n in shape]),
        ("shape", lambda shape: 3),
        ("data_offsets", lambda offsets: [float(n) for n in offsets]),
        ("dtype", lambda dtype: None),
        ("dtype", lambda dtype: ["F32"]),
    ],
)
def test_headers_of_other_kinds_name_the_file(copy, key, change):
    header, start = read_header(copy / VAE)
    data = (copy / VAE).read_bytes()[start:]
    entry = next(iter(header.values()))
    entry[key] = change(entry[key])
    text = json.dumps(header).encode()
    (copy / VAE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(ConversionError, match=r"diffusion_pytorch_model.safetensors is not safetensors: its header is"):
        load(copy)


def test_a_deep_header_names_the_file(copy):
    (copy / VAE).write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    with pytest.raises(ConversionError, match=r"diffusion_pytorch_model.safetensors is not safetensors"):
        load(copy)


def test_an_ordinary_checkpoint_warns_of_nothing(copy):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        for root in (RELEASED, GOLDENS / "mlp/checkpoint", loading.BUILT_IN):
            jax.block_until_ready(load_released(root).params)
