"""What eight devices have written is read where there is one, whichever way it is read."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from converters.engine import on_host
from internvlu_jax.checkpoints import loading, run_directory
from internvlu_jax.checkpoints.model_directory import load_model
from internvlu_jax.cli import main
from internvlu_jax.training import setup
from tests.checkpoints.test_in_bucket import upload
from tests.checkpoints.test_run_checkpoints import run_part
from tests.checkpoints.test_run_directory import RELEASED, assert_same, contents
from tests.helpers.bucket import in_process
from tests.helpers.training import TINY

NAMES = ("mesh", "pmap", "model")


@pytest.fixture(scope="module")
def spread(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    run_part("spread", folder)
    return folder


@pytest.fixture(scope="module")
def params() -> dict:
    return loading.load(RELEASED, place=on_host).params


def kinds(tree: dict) -> set[type]:
    return {type(leaf) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_on_the_host(spread, params, name):
    loaded = loading.load(spread / name, place=on_host)
    assert kinds(loaded.params) == kinds(loaded.extras) == {np.ndarray}
    assert_same(loaded.params, params)
    narrow = loading.load(spread / name, max_dtype="bfloat16", place=on_host).params
    assert kinds(narrow) == {np.ndarray} and {str(leaf.dtype) for leaf in jax.tree.leaves(narrow)} == {"bfloat16"}


def test_the_parts_are_numpy_arrays(spread, params):
    assert kinds(load_model(spread / "model", on_host=True)[1]) == {np.ndarray}
    for name in ("mesh", "pmap"):
        assert kinds(run_directory.load_run(spread / name, on_host=True)[1]) == {np.ndarray}
        assert kinds(run_directory.load_trained(spread / name, 1)[0]) == {np.ndarray}
    assert_same(run_directory.load_trained(spread / "pmap")[0]["head"], params["head"])


def test_a_run_starts_from_it(spread, params):
    initial = setup.initial_model(dataclasses.replace(TINY, start=str(spread / "mesh")))
    assert kinds(initial.params) == {np.ndarray}
    assert_same(initial.params, params)


def test_it_is_converted(spread, tmp_path):
    """As `push` does, too."""
    for name in NAMES:
        assert main(["convert", str(spread / name), str(tmp_path / name), "--to", "released"]) == 0
        assert contents(tmp_path / name) == contents(RELEASED)
    assert main(["convert", str(spread / "mesh"), str(tmp_path / "peft"), "--to", "peft"]) == 0
    assert (tmp_path / "peft/generation_decoder/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_from_a_bucket(spread, params, name, monkeypatch):
    with in_process(monkeypatch) as service:
        upload(spread / name, service, name)
        loaded = loading.load(f"gs://bucket/{name}", place=on_host)
    assert kinds(loaded.params) == {np.ndarray}
    assert_same(loaded.params, params)
