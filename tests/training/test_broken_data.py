"""A run that ends because of its data keeps what it did, and goes on when more broken records are allowed."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.model_directory import save_model
from internvlu_jax.checkpoints.run_checkpoints import saved_steps
from internvlu_jax.config import ConfigError
from internvlu_jax.data.examples import DataError
from internvlu_jax.training.loop import check_workdir, train
from tests.helpers.training import CHECKPOINT, TINY, one_block, with_data


@pytest.mark.slow
def test_ending_for_broken_records_saves_first(tmp_path):
    model = one_block(loading.load(CHECKPOINT, place=lambda path, array: np.asarray(array)))
    save_model(tmp_path / "model", model.config, model.params, model.extras, model.assets)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    good = json.dumps({"task": "t2i", "prompt": "a", "image": "a.png"})
    (tmp_path / "all.jsonl").write_text("\n".join([good] * 12 + ["{"] * 18))
    cfg = dataclasses.replace(TINY, start=str(tmp_path / "model"), steps=9, save_every=100)
    cfg = with_data(cfg, sources=((str(tmp_path / "all.jsonl"), 1.0),), shuffle=False, max_broken=0.2)
    with pytest.raises(DataError, match=r"of the \d+ records read so far cannot be used"):
        train(cfg, tmp_path / "run", quiet=True)
    assert saved_steps(tmp_path / "run/checkpoints") == [3]
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3
    check_workdir(with_data(cfg, max_broken=1.0, allow_outside=True), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.shuffle"):
        check_workdir(with_data(cfg, shuffle=True), tmp_path / "run")
