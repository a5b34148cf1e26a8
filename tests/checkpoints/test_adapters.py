"""Adapters from the shell: out of a run, into a checkpoint, into a pipeline."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from converters.adapters import read_adapter
from converters.engine import on_host
from converters.rules import ConversionError
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.adapters import convert
from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.cli import Model, _command, main
from internvlu_jax.models import lora
from internvlu_jax.utils.picture_settings import with_settings
from internvlu_jax.utils.tree import from_paths, paths
from tests.checkpoints.test_run_directory import RELEASED, make_run


@pytest.fixture(scope="module")
def model():
    return loading.load(RELEASED, place=on_host)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A run that trained adapters in both parts alone."""
    params = lora.add(model.params, r"head/mmdit/blocks/image/(q|out)|vlm/llm/layers/attn/v", 2, jax.random.key(0))
    trained = {path: np.asarray(leaf) + 0.1 for path, leaf in paths(params).items() if "/lora_" in path}
    settings = {"rank": 2, "alpha": 3.0, "pattern": ""}
    folder = tmp_path_factory.mktemp("runs") / "run"
    return make_run(folder, model, from_paths(trained), model.params, lora=settings, start="ORG/NAME")


@pytest.mark.slow
def test_out_of_a_run_and_into_a_checkpoint(run, tmp_path, capsys):
    """What was trained on, with the exported adapters folded in, is what the run has, folded."""
    assert main(["convert", str(run), str(tmp_path / "out"), "--to", "peft"]) == 0
    assert (tmp_path / "out/generation_decoder/adapter_model.safetensors").is_file()
    folded = ["convert", str(RELEASED), str(tmp_path / "new"), "--to", "orbax"]
    assert main([*folded, "--adapter", f"{tmp_path / 'out'}:0.25", f"{run}:0.75"]) == 0
    got, want = paths(loading.load(tmp_path / "new").params), paths(loading.load(run).params)
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_allclose(np.asarray(got[path]), np.asarray(leaf), atol=1e-6, err_msg=path)
    pipe = Model(str(RELEASED), adapter=(f"{tmp_path / 'out'}:0.5", str(run))).load()
    assert pipe.get_active_adapters() == {f"1: {tmp_path / 'out'}": 0.5, f"2: {run}": 1.0}


def test_what_has_no_adapters(model, tmp_path, capsys):
    whole = make_run(tmp_path / "whole", model, {"head": model.params["head"]}, {"vae": model.params["vae"]})
    for source, words in ((RELEASED, "takes a run that trained adapters"), (whole, "trained no adapters")):
        assert main(["convert", str(source), str(tmp_path / "out"), "--to", "peft"]) == 2
        assert words in capsys.readouterr().err
    assert main(["image", "a", "--checkpoint", str(RELEASED), "--adapter", f"{whole}:2"]) == 2
    assert "trained no adapters" in capsys.readouterr().err


def test_half_of_an_adapter_is_not_taken_for_the_whole(model, run, tmp_path):
    """Where one part's lies above the other's, and where a part's settings did not come."""
    convert(run, tmp_path / "out", "peft")
    want = read_adapter(tmp_path / "out", model.config)
    assert {path.split("/")[0] for path in want} == {"head", "vlm"}
    above = tmp_path / "above"
    shutil.copytree(tmp_path / "out", above)
    for file in (above / "vlm").iterdir():
        file.rename(above / file.name)
    assert read_adapter(above, model.config).keys() == want.keys()
    (tmp_path / "out/vlm/adapter_config.json").unlink()
    with pytest.raises(ConversionError, match=r"vlm is no adapter: expected adapter_config\.json"):
        read_adapter(tmp_path / "out", model.config)


def test_an_update_that_no_dtype_holds_is_written_nowhere(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"with adapters [^,]*run, \d+ kernels hold NaN or infinities: "):
        convert(RELEASED, tmp_path / "out", "released", [f"{run}:3e38"] * 99)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"the scale of an adapter is 1e\+39"):
        convert(RELEASED, tmp_path / "out", "released", [f"{run}:1e39"])


@pytest.mark.parametrize("to", ["released", "orbax"])
def test_nothing_is_put_on_a_device_to_be_copied(run, tmp_path, monkeypatch, to):
    """Which may hold a share of the model, or another one."""
    loading.convert(RELEASED, tmp_path / "ours", "orbax")
    put = jax.device_put
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(
        jax, "device_put", lambda x, *a, **k: pytest.fail("put") if np.size(x) > 999 else put(x, *a, **k)
    )
    for n, source in enumerate((RELEASED, tmp_path / "ours", run)):
        convert(source, tmp_path / str(n), to)


def test_a_picture_says_which_adapters_it_has(tmp_path):
    settings = {"mode": "image", "prompt": "a", "image": [], "adapter": ["mine:0.5", "ORG/NAME"], "seed": 1}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=with_settings(settings))
    assert _command(["image", "--like", str(tmp_path / "a.png")]).model.adapter == ("mine:0.5", "ORG/NAME")
