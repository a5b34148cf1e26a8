"""Whole runs: resuming, what they write, what they refuse."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from converters.engine import on_host
from experiments import precompute
from experiments.configs.debug import TOY
from experiments.train import Arguments
from experiments.train import main as command
from experiments.train import run as run_command
from internvlu_jax.checkpoints import adapters, loading
from internvlu_jax.checkpoints.model_directory import save_model
from internvlu_jax.checkpoints.run_checkpoints import saved_steps
from internvlu_jax.config import CheckpointWarning, ConfigError
from internvlu_jax.data.plan import DataError
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.training import setup
from internvlu_jax.training.config import LoraConfig, ValidationConfig
from internvlu_jax.training.loop import train
from internvlu_jax.training.reporting import Records
from internvlu_jax.training.resuming import NotFiniteError
from internvlu_jax.training.validation import Validation
from internvlu_jax.utils import signals
from internvlu_jax.utils.locks import locked
from tests.helpers.tracker import stand_in
from tests.helpers.training import CHECKPOINT, TINY, leaves_equal, one_block, with_data

ROOT = Path(__file__).parents[2]
PROMPTS = ("a", "b")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Runs of the same shapes share compiled programs, as they do for users; the directory."""
    directory = tmp_path_factory.mktemp("xla")
    before = {name: getattr(jax.config, name) for name in ("jax_enable_compilation_cache", "jax_compilation_cache_dir")}
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    compilation_cache.reset_cache()
    yield directory
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The smallest run, of a head of one block."""
    model = one_block(loading.load(CHECKPOINT, place=on_host))
    directory = tmp_path_factory.mktemp("start") / "model"
    save_model(directory, model.config, model.params, model.extras, model.assets)
    return dataclasses.replace(TINY, start=str(directory))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The work directory of a run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    shown = {"sample_every": 4, "sample_prompts": PROMPTS, "sample_steps": 2}
    outcome = train(dataclasses.replace(tiny, **shown), workdir, quiet=True)
    assert (outcome.steps, outcome.stopped) == (4, False)
    return workdir


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_writes(whole):
    found = lines(whole)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert {"loss", "flow_loss", "grad_norm", "param_norm", "update_norm", "rate"} <= set(found[0])
    assert "text_loss" not in found[0], "only the terms that the objective names"
    assert [line["rate"] for line in found] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])
    assert json.loads((whole / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-3
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["2", "4"]
    with Image.open(whole / "samples/00000004.png") as sheet:
        assert sheet.size == (66, 32)


def test_stopped_and_resumed_equals_whole(tiny, whole, tmp_path, monkeypatch):
    """Parameters, optimizer, data order and random numbers: bit for bit. A tracker may come in between."""
    assert train(dataclasses.replace(tiny, steps=2), tmp_path, quiet=True, command="train 'a b'").steps == 2
    told = stand_in(monkeypatch, "trackio")
    assert train(dataclasses.replace(tiny, report="trackio"), tmp_path, quiet=True, command="again").steps == 4
    assert [named["step"] for function, _, named in told if function == "log"] == [3, 4]
    assert (tmp_path / "command.txt").read_text() == "train 'a b'\n"
    assert lines(tmp_path) == lines(whole)
    leaves_equal(loading.load(tmp_path).params, loading.load(whole).params)
    again = train(tiny, tmp_path, quiet=True)
    assert (again.steps, again.metrics) == (4, None)


@pytest.mark.slow
def test_a_run_is_a_checkpoint(tiny, whole, tmp_path):
    """The pipeline draws from it, and converted to the released layout it draws the same."""
    with pytest.warns(CheckpointWarning, match="draw with --time float32"):
        loading.convert(whole, tmp_path / "released", "released")
    options = {"generation_mode": "image", "height": 32, "width": 32, "num_inference_steps": 2, "seed": 1}
    here, there = (
        InternVLUPipeline.from_pretrained(d)(list(PROMPTS), **options).images for d in (whole, tmp_path / "released")
    )
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    start, end = loading.load(tiny.start).params, loading.load(whole).params
    leaves_equal(start["vlm"], end["vlm"])
    leaves_equal(start["vae"], end["vae"])
    assert not np.array_equal(
        start["head"]["mmdit"]["latent_in"]["kernel"], end["head"]["mmdit"]["latent_in"]["kernel"]
    )


@pytest.mark.slow
def test_adapters_train_and_merge(tiny, tmp_path):
    cfg = dataclasses.replace(
        tiny,
        steps=2,
        lora=LoraConfig(rank=2, pattern="head/mmdit/.*/(q|k|v|out|fc1|fc2)"),
        optimizer=dataclasses.replace(tiny.optimizer, rates=((".*/lora_[ab]", 1.0), (".*", 0.0))),
    )
    train(cfg, tmp_path / "run", quiet=True)
    start, end = loading.load(tiny.start).params, loading.load(tmp_path / "run").params
    assert jax.tree.structure(start) == jax.tree.structure(end)
    leaves_equal(start["vlm"]["vit"], end["vlm"]["vit"])
    q = lambda params: params["head"]["mmdit"]["last_block"]["image"]["q"]["kernel"]  # noqa: E731
    assert 0 < np.max(np.abs(q(start) - q(end))) < 0.1
    adapters.convert(tmp_path / "run", tmp_path / "peft", "peft")
    adapters.convert(tiny.start, tmp_path / "folded", "orbax", [str(tmp_path / "peft")])
    np.testing.assert_allclose(q(loading.load(tmp_path / "folded").params), q(end), atol=1e-7)


@pytest.mark.slow
def test_losses_on_held_out_records(tiny, whole, tmp_path):
    """Every other step, in the line of that step; training is as without, resumed or not, and they come again."""
    held_out = ValidationConfig(((str(TOY / "t2i.jsonl"), 1.0),), every=2, batches=2)
    cfg = dataclasses.replace(tiny, validation=held_out)
    train(dataclasses.replace(cfg, steps=2), tmp_path, quiet=True)
    outcome = train(cfg, tmp_path, quiet=True)
    found = lines(tmp_path)
    valid = [{name: line.pop(name) for name in ("valid_loss", "valid_flow_loss") if name in line} for line in found]
    assert found == lines(whole)
    assert [sorted(values) for values in valid] == [[], ["valid_flow_loss", "valid_loss"]] * 2
    assert valid[1] != valid[3] and all(values["valid_loss"] > 0 for values in valid[1::2])
    assert outcome.metrics["valid_loss"] == valid[3]["valid_loss"] == valid[3]["valid_flow_loss"]
    shutil.rmtree(tmp_path / "checkpoints/4")
    before = lines(tmp_path)
    train(cfg, tmp_path, quiet=True)
    assert lines(tmp_path) == before


def test_held_out_records_that_are_not_there(tiny, tmp_path):
    for sources, said in ((("nowhere.jsonl", 1.0), "nowhere.jsonl: there is no such file"), (("x:y", 1.0), "x:y")):
        with pytest.raises(ValueError, match=said):
            train(dataclasses.replace(tiny, validation=ValidationConfig((sources,))), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match=r"validation.every is 0; expected at least 1"):
        ValidationConfig(every=0)
    for weight in (0.0, float("nan")):
        with pytest.raises(ConfigError, match=r"validation.sources is .*; expected weights over 0; leave a source out"):
            ValidationConfig((("a.jsonl", weight),))


def test_held_out_records_that_cannot_be_used(tiny, tmp_path, monkeypatch):
    """Those of the first batch end the run before it begins, those of a later one when it has saved."""
    (tmp_path / "no_pictures.jsonl").write_text('{"task": "t2i", "prompt": "a", "image": "0.png"}\n' * 9)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": talk}))
    for name, said in (("no_pictures", "9 of the 9 records"), ("talk", "nothing but answers to learn")):
        held_out = ValidationConfig(((str(tmp_path / f"{name}.jsonl"), 1.0),))
        with pytest.raises(DataError, match=said):
            train(dataclasses.replace(tiny, validation=held_out), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run/config.json").exists()
    held_out = ValidationConfig(tiny.data.sources, every=3)

    def broken(self, state):
        raise DataError("held-out records are broken")

    monkeypatch.setattr(Validation, "__call__", broken)
    with pytest.raises(DataError, match="held-out records are broken"):
        train(dataclasses.replace(tiny, validation=held_out, save_every=9), tmp_path / "run", quiet=True)
    assert saved_steps(tmp_path / "run/checkpoints") == [3]
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]


def test_a_run_of_before_goes_on(tiny, whole, tmp_path):
    """Without checksums, fingerprints of its data, or a word of validation in its configuration."""
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run").rglob("checksums.json"):
        path.unlink()
    config = json.loads((tmp_path / "run/config.json").read_text())
    del config["validation"]
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    (position,) = (p for p in (tmp_path / "run/checkpoints/4/data").iterdir() if b"position" in p.read_bytes())
    state = json.loads(position.read_text())
    del state["records"]
    position.write_text(json.dumps(state))
    assert train(tiny, tmp_path / "run", quiet=True).steps == 4
    leaves_equal(loading.load(tmp_path / "run").params, loading.load(whole).params)


@pytest.mark.slow
def test_precomputed_gives_the_same_losses(tiny, whole, tmp_path):
    (shards,) = precompute.precompute(tiny, tmp_path / "stored")
    train(with_data(tiny, sources=((str(shards), 1.0),)), tmp_path / "run", quiet=True)
    for got, want in zip(lines(tmp_path / "run"), lines(whole), strict=True):
        for name in ("loss", "grad_norm", "param_norm"):
            assert got[name] == pytest.approx(want[name], rel=1e-5), name


def test_a_number_that_is_not_finite_ends_the_run(tiny, tmp_path):
    huge = dataclasses.replace(tiny, optimizer=dataclasses.replace(tiny.optimizer, learning_rate=1e15))
    with pytest.raises(NotFiniteError, match=r"step [234]: .*flow_loss.* is not finite"):
        train(huge, tmp_path, quiet=True)


# Ended from outside


def start_process(workdir: Path, cache: Path, start: str, steps: int) -> subprocess.Popen:
    code = (
        "import dataclasses, sys; from experiments.train import Arguments, run; "
        "from tests.helpers.training import TINY;"
        f"sys.exit(run(Arguments({str(workdir)!r}, dataclasses.replace(TINY, start={start!r}, steps={steps}))))"
    )
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
    }
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_status_0(tiny, cache, tmp_path):
    process = start_process(tmp_path, cache, tiny.start, 100_000)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and len(lines(tmp_path)) > 2, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps == list(range(1, steps[-1] + 1))
    assert f"stopped at step {steps[-1]}" in said
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == steps[-1]


def test_an_interrupt_saves_after_the_step_in_hand(tiny, whole, tmp_path, capsys):
    """Ctrl-C does as SIGTERM: status 0 and one line at the end; the run then ends as the uninterrupted one did."""

    def stop(records, step, *rest):
        write(records, step, *rest)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    write, before = Records.write, signal.getsignal(signal.SIGINT)
    rarely = dataclasses.replace(tiny, save_every=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Records, "write", stop)
        assert run_command(Arguments(tmp_path, rarely)) == 0
    assert signal.getsignal(signal.SIGINT) is before
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("stopped at step 3; ") and "Traceback" not in "".join(said)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert train(tiny, tmp_path, quiet=True).steps == 4
    assert lines(tmp_path) == lines(whole)
    leaves_equal(loading.load(tmp_path).params, loading.load(whole).params)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["initial_model", "first_state"])
def test_a_signal_before_the_first_step_is_one_line(tiny, which, where, tmp_path, capsys, monkeypatch):
    """While loading, and while what makes the first state is compiled."""
    monkeypatch.setattr(setup, where, lambda *_: signal.raise_signal(which) or pytest.fail("it went on"))
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert run_command(Arguments(tmp_path, tiny)) == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert capsys.readouterr().err == f"stopped at step 0; `{tmp_path}` can go on\n"


def test_a_second_interrupt_is_one_line(tiny, tmp_path, capsys, monkeypatch):
    def twice(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Records, "write", twice)
    monkeypatch.setattr(signals, "_PATIENCE", 300.0)  # else a slow machine would end the tests themselves
    assert run_command(Arguments(tmp_path, tiny)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted; `{tmp_path}` can go on from its last checkpoint"


def test_a_directory_that_another_run_is_at_work_in(tiny, whole, capsys):
    before = contents(whole)
    with locked(whole):
        assert run_command(Arguments(whole, tiny)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"{whole} is in use by process {os.getpid()} on " in said[0]
    assert contents(whole) == before


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def damage(path: Path, rng: np.random.Generator) -> None:
    """Turns one bit."""
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_where_the_uninterrupted_run_does(tiny, cache, tmp_path):
    """SIGKILL at 40 random moments of a run that saves every other step; after each fifth its last step is damaged."""
    rng, steps, damaged = np.random.default_rng(0), 400, 0
    process = start_process(tmp_path / "whole", cache, tiny.start, steps)
    assert process.wait(timeout=600) == 0
    for number in range(40):
        process = start_process(tmp_path / "killed", cache, tiny.start, steps)
        time.sleep(rng.uniform(4, 16))
        process.kill()
        process.wait()
        checkpoints = tmp_path / "killed/checkpoints"
        steps_saved = saved_steps(checkpoints)
        if number % 5 == 4 and len(steps_saved) > 1:
            files = [p for p in (checkpoints / str(steps_saved[-1])).rglob("*") if p.is_file() and p.stat().st_size]
            damage(files[rng.integers(len(files))], rng)
            damaged += 1
    assert damaged >= 4, "else damage is not tried"
    process = start_process(tmp_path / "killed", cache, tiny.start, steps)
    assert process.wait(timeout=600) == 0
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    leaves_equal(loading.load(tmp_path / "killed").params, loading.load(tmp_path / "whole").params)


# Bad input: before anything compiles


def test_a_work_directory_of_another_configuration(tiny, whole):
    other = dataclasses.replace(tiny, optimizer=dataclasses.replace(tiny.optimizer, learning_rate=2e-3))
    with pytest.raises(ConfigError, match=r"another configuration: optimizer.learning_rate: 0.001 -> 0.002"):
        train(other, whole)


def test_a_dataset_without_a_valid_record(tiny, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"task": "t2i", "prompt": "a", "image": "missing.png"}\n' * 3)
    with pytest.raises(DataError, match=r"3 of the 3 records .*bad.jsonl:\d: .*missing.png"):
        train(with_data(tiny, sources=((str(tmp_path / "bad.jsonl"), 1.0),)), tmp_path / "run")


def test_no_data_at_all(tiny, tmp_path):
    with pytest.raises(DataError, match=r"data.sources is empty"):
        train(with_data(tiny, sources=()), tmp_path)
    with pytest.raises(ValueError, match=r"nowhere.jsonl: there is no such file"):
        train(with_data(tiny, sources=(("nowhere.jsonl", 1.0),)), tmp_path)


def test_an_unknown_field_names_the_nearest(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        command(["debug", "--workdir", str(tmp_path), "--optimiser.learning-rate", "1"])
    assert ended.value.code == 2
    assert "--optimizer.learning-rate" in capsys.readouterr().err


def test_an_unknown_configuration_names_the_nearest(capsys):
    assert command(["stage4", "--workdir", "x"]) == 2
    assert "did you mean stage" in capsys.readouterr().err


def test_errors_are_one_line_and_status_2(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert command(["debug", "--workdir", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: --workdir")
    for name, said in (("x" * 256, "a name of 256 bytes"), ("file/run", "file is a file; expected a directory")):
        assert command(["debug", "--workdir", str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line
    assert command(["debug", "--workdir", str(tmp_path / "w"), "--model", "nano"]) == 2
    assert "model is 'nano'; expected one of internvl-u-4b, debug" in capsys.readouterr().err
