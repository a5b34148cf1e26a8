"""Checksums: every bit that a disk turns is noticed, and nothing of before is refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from internvlu_jax.checkpoints.arrays import CheckpointError, write_arrays
from internvlu_jax.checkpoints.model_directory import load_model, save_model
from internvlu_jax.checkpoints.run_checkpoints import RunCheckpoints, saved_steps, step_to_resume
from internvlu_jax.checkpoints.seals import NAME, check_seal, seal
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.presets import debug_config
from tests.helpers.run_checkpoint import assert_restores, save


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name != NAME)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run") / "c"
    with RunCheckpoints(root, keep_last=3) as saved:
        for step in (1, 2, 3):
            save(saved, step)
    return root


def test_a_turned_bit_anywhere_is_noticed(checkpoints):
    rng = np.random.default_rng(0)
    found = files(checkpoints / "3")
    assert len(found) > 8
    for path in [*found, *rng.choice(np.array(found, object), 20)]:
        if path.stat().st_size:
            bit = int(rng.integers(8 * path.stat().st_size))
            flip(path, bit)
            with pytest.raises(CheckpointError, match=rf"/3 cannot be read: not as written .*{path.name}"):
                check_seal(checkpoints / "3")
            flip(path, bit)
    check_seal(checkpoints / "3")


def test_a_part_is_looked_at_alone(tmp_path):
    write_arrays(tmp_path / "a", {"x": np.arange(9)})
    write_arrays(tmp_path / "b", {"x": np.arange(9)})
    seal(tmp_path)
    max(files(tmp_path / "b"), key=lambda p: p.stat().st_size).unlink()
    check_seal(tmp_path, "a")
    for part in ("b", ""):
        with pytest.raises(CheckpointError, match="cannot be read: not as written"):
            check_seal(tmp_path, part)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 3}', '{"a": [1, 2]}', "{" * 9])
def test_damaged_checksums_are_damage(tmp_path, text):
    (tmp_path / "a").write_text("x")
    seal(tmp_path)
    assert json.loads((tmp_path / NAME).read_text()) == {"a": [1, "8cdc1683"]}  # CRC-32 of "x"
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ValueError, match=NAME):
        check_seal(tmp_path)


def test_the_step_before_a_damaged_one_is_taken_and_one_line_says_so(checkpoints, caplog):
    largest = max(files(checkpoints / "3/optimizer"), key=lambda p: p.stat().st_size)
    flip(largest, 8 * (largest.stat().st_size // 2))
    assert step_to_resume(checkpoints) == 2
    (line,) = caplog.records
    assert "step 2 is taken" in line.message and str(largest.name) in line.message and "\n" not in line.message
    assert saved_steps(checkpoints) == [1, 2] and (checkpoints / "damaged-3").is_dir()
    with RunCheckpoints(checkpoints, keep_last=3) as saved:
        assert_restores(saved, 2)
        save(saved, 3)  # the run comes by again
        saved.wait()
        assert_restores(saved, 3)
        with pytest.raises(CheckpointError, match="exists"):
            save(saved, 3)
    assert step_to_resume(checkpoints) == 3
    for step in saved_steps(checkpoints):
        (checkpoints / str(step) / NAME).write_text("{}}")
    with pytest.raises(CheckpointError, match=r"every checkpoint is damaged: .*/3/.*/2/.*/1/"):
        step_to_resume(checkpoints)
    assert saved_steps(checkpoints) == [1, 2, 3], "nothing is put aside where nothing is left"


def test_without_checksums_a_checkpoint_is_taken_as_before(tmp_path):
    with RunCheckpoints(tmp_path, keep_last=1) as saved:
        save(saved, 7)
        saved.wait()
        (tmp_path / "7" / NAME).unlink()
        assert step_to_resume(tmp_path) == 7
        assert_restores(saved, 7)
    assert step_to_resume(tmp_path / "nowhere") is None


def test_a_model_directory(tmp_path):
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 9, leaf.dtype), param_shapes(debug_config()))
    save_model(tmp_path / "m", debug_config(), params, {})
    config = next((tmp_path / "m/released").rglob("config.json"))
    config.write_text(config.read_text() + "\n")  # small files may be edited
    assert np.all(np.asarray(jax.tree.leaves(load_model(tmp_path / "m")[1])[0]) == 9)
    largest = max(files(tmp_path / "m/arrays"), key=lambda p: p.stat().st_size)
    flip(largest, 4 * largest.stat().st_size)
    with pytest.raises(CheckpointError, match="m/arrays cannot be read"):
        load_model(tmp_path / "m")
