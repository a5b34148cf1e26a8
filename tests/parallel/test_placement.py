"""The pipeline on a mesh, under pmap and by two processes gives what it gives on one device."""

from pathlib import Path

import jax
import numpy as np
import pytest

from internvlu_jax import InternVLUPipeline
from internvlu_jax.parallel.config import MeshConfig, mesh_config
from internvlu_jax.parallel.executors import make_executor
from internvlu_jax.parallel.placement import OneDevice, UnderPmap, placement, placement_of
from tests.helpers.processes import arrays, by_two, launch, named


def run(part: str, folder: Path) -> dict[str, np.ndarray]:
    out = folder / f"{part}.npz"
    return arrays(launch(part, out), out)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run("pipeline", tmp_path_factory.mktemp("placement"))


@pytest.fixture(scope="module")
def with_sources(tmp_path_factory):
    return run("pipeline_with_sources", tmp_path_factory.mktemp("placement"))


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """All three rows and no padding: equal words, and pictures within one level."""
    assert got["pictures"].shape == (3, 32, 48, 3)
    for name in got.keys() - {"pictures", "held"}:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
        assert len(np.unique(got[name], axis=0)) > 1, name
    assert np.abs(got["pictures"].astype(int) - want["pictures"]).max() <= 1


@pytest.mark.parametrize("name", ["mesh", "pmap"])
def test_devices_agree(found, name):
    assert_same(named(found, name), named(found, "one"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mesh", "pmap"])
def test_devices_agree_with_sources(with_sources, name):
    assert_same(named(with_sources, name), named(with_sources, "one"))


@pytest.mark.slow
def test_two_processes_agree(with_sources, tmp_path):
    for got in by_two("pipeline_across", tmp_path):
        assert_same(got, named(with_sources, "one"))


@pytest.mark.slow
def test_conversations_and_streams_agree(tmp_path):
    """On a mesh, under pmap, and by two processes that ask for all pieces alike."""
    every = run("conversation", tmp_path)
    one = named(every, "one")
    for got in (named(every, "mesh"), named(every, "pmap"), *by_two("conversation_across", tmp_path)):
        for name in ("words", "read"):
            np.testing.assert_array_equal(got[name], one[name])
        assert np.abs(got["picture"].astype(int) - one["picture"]).max() <= 1
        np.testing.assert_allclose(got["latents"], one["latents"], atol=1e-4)
    assert one["read"][1] > 500 and len(np.unique(one["latents"])) > 1


def test_a_mesh_shares_out_the_parameters(found):
    """All but the VAE and what is small: see `test_no_large_array_lies_whole_on_a_device`."""
    assert found["one/held"] == found["pmap/held"] == 1
    assert found["mesh/held"] < 0.5


def test_names():
    assert mesh_config("all") == MeshConfig()
    assert mesh_config("data=4, tensor=2") == MeshConfig(data=4, tensor=2)
    assert mesh_config("fsdp=8") == MeshConfig(-1, 8, 1)
    assert isinstance(placement(None), OneDevice)
    assert isinstance(placement("all"), OneDevice), "there is one"


def test_placements_of_executors():
    """For parameters that are there already."""
    for kind in ("mesh", "single"):
        assert isinstance(placement_of(make_executor(kind, MeshConfig())), OneDevice), "there is one"
    assert isinstance(placement_of(make_executor("pmap", MeshConfig())), UnderPmap)


@pytest.mark.parametrize(
    "name", ["", "two", "data", "data=", "data=x", "data=2,data=4", "rows=2", "data=2;tensor=4", 8]
)
def test_no_such_name(name):
    with pytest.raises(ValueError, match=f'devices is {name!r}; expected "all", "pmap".*data, fsdp, tensor'):
        placement(name)


def test_a_mesh_that_does_not_fit():
    with pytest.raises(ValueError, match=r"devices is 'data=3,tensor=2'.*there are 1 devices"):
        InternVLUPipeline.from_pretrained(devices="data=3,tensor=2")


def test_pmap_is_for_one_process(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="'pmap' runs on one process, and there are 2"):
        placement("pmap")
