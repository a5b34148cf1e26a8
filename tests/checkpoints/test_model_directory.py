"""Models in our own layout: what is changed is written, and what cannot be read is told from mistakes in code."""

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from converters.checkpoint import export_released
from converters.engine import on_host
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.arrays import CheckpointError, array_shapes, read_arrays, targets, write_arrays
from internvlu_jax.checkpoints.model_directory import load_model, save_model
from internvlu_jax.cli import main
from internvlu_jax.config import SLOTS, ConfigError, VisionConfig
from internvlu_jax.config_files import CONFIG_FILES, read_config
from internvlu_jax.models.slots import MODULES
from tests.conftest import GOLDENS
from tests.test_config import Colours, changed, with_colours

RELEASED = GOLDENS / "base/checkpoint"

# Orbax leaves the reading of the other arrays behind when one cannot be read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def model() -> loading.LoadedModel:
    return loading.load(RELEASED, place=on_host)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def config_of(directory: Path):
    """Of a model in either layout, which is loaded for it."""
    return loading.load(directory, place=on_host).config


def test_a_part_is_finished_before_the_next_is_read():
    """So what finishing needs of memory is needed while little else is there."""
    events: list[str] = []
    placed = loading.load(
        RELEASED,
        place=lambda path, array: events.append(path) or array,
        finish=lambda part, params: events.append(part) or {"whole": params},
    )
    parts = ["vlm", "head", "vae"]
    assert [event for event in events if event in parts] == parts == list(placed.params)
    for path in (event for event in events if event not in parts):
        before = [part for part in parts if part in events[: events.index(path)]]
        assert before == parts[: parts.index(path.split("/")[0])]
    assert all(list(part) == ["whole"] for part in placed.params.values())


# --- changed models


def test_what_was_changed_after_loading_is_saved(tmp_path, model):
    config = model.config
    for file in CONFIG_FILES:
        config = changed(config, file)
    save_model(tmp_path / "ours", config, model.params, model.extras, model.assets)
    export_released(tmp_path / "released", config, model.params, model.extras, model.assets)
    assert config_of(tmp_path / "ours") == config_of(tmp_path / "released") == config != model.config
    ours = loading.load(tmp_path / "ours", place=on_host)
    export_released(tmp_path / "again", ours.config, ours.params, ours.extras, ours.assets)
    assert contents(tmp_path / "again") == contents(tmp_path / "released")


def test_one_change_leaves_all_other_files(tmp_path, model):
    head = replace(model.config.generation_decoder, flow_shift=9.0)
    export_released(
        tmp_path / "out", replace(model.config, generation_decoder=head), model.params, model.extras, model.assets
    )
    before, after = contents(RELEASED), contents(tmp_path / "out")
    assert {file for file in before if before[file] != after[file]} == {
        "generation_decoder/config.json",
        "scheduler/scheduler_config.json",
    }
    assert config_of(tmp_path / "out").generation_decoder.flow_shift == 9.0


def test_what_the_released_code_does_not_know_is_kept_in_our_layout(tmp_path, model, monkeypatch):
    monkeypatch.setitem(SLOTS["vision_config"], "colours", Colours)
    monkeypatch.setitem(MODULES, Colours, MODULES[VisionConfig])
    head = replace(model.config.generation_decoder, sources="context")
    config = replace(with_colours(model.config), generation_decoder=head)
    with pytest.raises(
        ConfigError, match="vision_config of type colours and generation_decoder with sources 'context'"
    ):
        export_released(tmp_path / "out", config, model.params, model.extras, model.assets)
    assert not list(tmp_path.iterdir())
    save_model(tmp_path / "ours", config, model.params, model.extras, model.assets)
    assert config_of(tmp_path / "ours") == config
    with pytest.raises(ConfigError, match="the released code does not know"):
        loading.convert(tmp_path / "ours", tmp_path / "out", "released")
    assert [p.name for p in tmp_path.iterdir()] == ["ours"]


# --- the tokenizer

OLD_TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


def test_a_tokenizer_made_here_names_the_inputs_of_the_released_code(tmp_path, model):
    """Also where it was written before it did; a tokenizer of another class stays as it is."""
    small = loading.load(None, place=on_host)
    export_released(tmp_path / "small", small.config, small.params, small.extras, small.assets)
    shutil.copytree(RELEASED, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "old/processor/tokenizer_config.json").write_text(json.dumps(OLD_TOKENIZER))
    export_released(tmp_path / "new", model.config, model.params, model.extras, tmp_path / "old")
    for name in ("small", "new"):
        config = json.loads((tmp_path / name / "processor/tokenizer_config.json").read_text())
        assert config == OLD_TOKENIZER | {"model_input_names": ["input_ids", "attention_mask"]}


# --- arrays that cannot be written or read

TREE = {"a": {"b": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)}, "c": np.arange(7)}


@pytest.fixture
def written(tmp_path) -> Path:
    write_arrays(tmp_path / "arrays", TREE)
    return tmp_path / "arrays"


def shapes(tree=TREE):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def data_file(root: Path) -> Path:
    """The file that holds most of the numbers."""
    return max((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("on_host", [True, False])
def test_damaged_arrays(written, on_host):
    def fails() -> None:
        with pytest.raises(CheckpointError, match="arrays cannot be read"):
            read_arrays(written, targets(shapes(), on_host=on_host))

    path = data_file(written)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[::-1], b""):
        path.write_bytes(data)
        fails()
    path.unlink()
    fails()
    shutil.rmtree(written)
    fails()


@pytest.mark.parametrize("text", ["", "{", "{}", '{"tree_metadata": {"x": {}}}'])
def test_damaged_metadata(written, text):
    (written / "_METADATA").write_text(text)
    with pytest.raises(CheckpointError, match="arrays cannot be read"):
        array_shapes(written)
    with pytest.raises(CheckpointError, match="arrays cannot be read"):
        read_arrays(written, shapes())


def test_arrays_of_another_model(written):
    for other in ({"a": {"b": TREE["a"]["b"][:3]}, "c": TREE["c"]}, {"c": TREE["c"]}, {**TREE, "d": TREE["c"]}):
        with pytest.raises(CheckpointError, match="arrays cannot be read"):
            read_arrays(written, targets(shapes(other), on_host=False))


def test_arrays_are_not_written_over(written):
    with pytest.raises(CheckpointError, match=r"cannot be written: .* already exists"):
        write_arrays(written, TREE)


def test_an_interrupt_waits_until_arrays_are_written(tmp_path, monkeypatch):
    """Orbax's own threads would go on, while what is half written is removed below them."""
    save = ocp.StandardCheckpointer.save

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        save(*args, **kwargs)

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_arrays(tmp_path / "arrays", TREE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert np.array_equal(read_arrays(tmp_path / "arrays", targets(shapes()))["c"], TREE["c"])


def test_a_mistake_in_code_passes_through(written, tmp_path, monkeypatch):
    def mistaken(*args, **kwargs):
        raise TypeError("of ours")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", mistaken)
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", mistaken)
    with pytest.raises(TypeError, match="of ours"):
        write_arrays(tmp_path / "new", TREE)
    with pytest.raises(TypeError, match="of ours"):
        read_arrays(written, shapes())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("tie_word_embeddings", True, r"1 parameters that the model lacks: vlm/llm/lm_head/kernel"),
        ("num_hidden_layers", 1, r"vlm/llm/layers/attn/k/kernel is \(3, .*\), expected \(1, "),
        ("vocab_size", 1000, r"vlm/llm/embed/embedding is \(916, 64\), expected \(1000, 64\)"),
    ],
)
def test_arrays_that_are_not_of_their_config(tmp_path, model, key, value, said, capsys):
    """The small files may be edited, and `info` says it, too."""
    save_model(tmp_path / "ours", model.config, model.params, {}, model.assets)
    file = tmp_path / "ours/released/vlm/config.json"
    edited = json.loads(file.read_text())
    edited["llm_config"][key] = value
    edited.pop("tie_word_embeddings", None)
    file.write_text(json.dumps(edited))
    with pytest.raises(CheckpointError, match=f"ours: the arrays are not of the model in released/: .*{said}"):
        load_model(tmp_path / "ours")
    assert main(["info", str(tmp_path / "ours")]) == 2
    printed = capsys.readouterr()
    assert re.search(said, printed.err) and "head" in printed.out


def test_parameters_that_are_missing(tmp_path, model):
    params = {**model.params, "vae": {"x": np.zeros(3)}}
    save_model(tmp_path / "ours", model.config, params, {}, model.assets)
    with pytest.raises(CheckpointError, match=r"parameters missing: vae/.*1 parameters that the model lacks: vae/x"):
        load_model(tmp_path / "ours")


def test_a_model_directory_without_its_arrays(tmp_path, model):
    save_model(tmp_path / "ours", model.config, {"a": np.zeros(3)}, {"b": np.zeros(3)})
    assert read_config(tmp_path / "ours/released") == model.config
    shutil.rmtree(tmp_path / "ours/arrays")
    with pytest.raises(CheckpointError, match="ours/arrays cannot be read"):
        load_model(tmp_path / "ours")
