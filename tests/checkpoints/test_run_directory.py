"""Work directories of training runs: what they start from, and the models that their checkpoints make."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.engine import on_host
from internvlu_jax import InternVLUPipeline
from internvlu_jax.checkpoints import loading, run_directory
from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.checkpoints.model_directory import save_model
from internvlu_jax.checkpoints.run_checkpoints import RunCheckpoints
from internvlu_jax.cli import main
from internvlu_jax.config import CheckpointWarning
from internvlu_jax.models import lora
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.utils.tree import from_paths, paths
from tests.conftest import GOLDENS

RELEASED = GOLDENS / "base/checkpoint"
CONFIG = {"name": "x", "lora": None, "mesh": {"data": -1}, "data": {"sources": [{"path": "a", "weight": 1.0}]}}


@pytest.fixture(scope="module")
def model() -> loading.LoadedModel:
    return loading.load(RELEASED, place=on_host)


def make_run(
    workdir: Path, model: loading.LoadedModel, trained: dict, frozen: dict, ema: dict | None = None, **config
) -> Path:
    """A run that has saved one step."""
    tokenizer = Tokenizer.from_directory(RELEASED / "processor")
    run_directory.start_run(workdir, CONFIG | config, model.config, frozen, model.extras, tokenizer, RELEASED)
    with RunCheckpoints(workdir / "checkpoints", keep_last=1) as saved:
        saved.save(1, SimpleNamespace(trained=trained, opt_state={"count": np.zeros(1)}, ema=ema), {})
    return workdir


def assert_same(first: dict, second: dict) -> None:
    first, second = paths(first), paths(second)
    assert first.keys() == second.keys()
    for path, value in first.items():
        assert np.array_equal(np.asarray(value), np.asarray(second[path])), path


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_run_becomes_the_released_layout(tmp_path, model, capsys):
    """A run that changed nothing gives back the checkpoint that it started from, byte for byte."""
    frozen = {name: model.params[name] for name in ("vlm", "vae")}
    workdir = make_run(tmp_path / "run", model, {"head": model.params["head"]}, frozen)
    assert run_directory.is_run(workdir)
    assert main(["convert", str(workdir), str(tmp_path / "back"), "--to", "released"]) == 0
    assert contents(tmp_path / "back") == contents(RELEASED)
    assert main(["convert", str(workdir), str(tmp_path / "ours"), "--to", "orbax"]) == 0
    assert_same(loading.load(tmp_path / "ours").params, model.params)
    capsys.readouterr()
    assert main(["info", str(workdir)]) == 0
    assert "head" in capsys.readouterr().out


def test_a_step_of_a_run_is_a_checkpoint(tmp_path, model, capsys, monkeypatch):
    """As `load`, `convert` and `info` take one, by a relative path, too; a moving average stands for its step."""
    heads = {step: jax.tree.map(lambda leaf, step=step: leaf + step, model.params["head"]) for step in (1, 20, 300)}
    frozen = {name: model.params[name] for name in ("vlm", "vae")}
    workdir = make_run(tmp_path / "run", model, {"head": heads[1]}, frozen)
    with RunCheckpoints(workdir / "checkpoints", keep_last=9) as saved:
        for step, ema in ((20, heads[20]), (300, None)):
            trained = {"head": heads[300]}
            state = SimpleNamespace(trained=trained, opt_state={"count": np.zeros(1)}, ema=ema and {"head": ema})
            saved.save(step, state, {})
    monkeypatch.chdir(workdir)
    for name, step in (("checkpoints/1/", 1), ("checkpoints/20", 20), (str(workdir / "checkpoints/300"), 300)):
        loaded = loading.load(name, place=on_host)
        assert_same(loaded.params, {**frozen, "head": heads[step]})
        assert loaded.config == model.config
    assert_same(loading.load(workdir, place=on_host).params["head"], heads[300])
    (tmp_path / "best").symlink_to(workdir / "checkpoints/20")
    assert_same(loading.load(tmp_path / "best", place=on_host).params["head"], heads[20])
    assert main(["info", "checkpoints/20"]) == 0
    assert main(["convert", "checkpoints/20", str(tmp_path / "out"), "--to", "released"]) == 0
    assert_same(loading.load(tmp_path / "out", place=on_host).params["head"], heads[20])
    for wrong, said in (
        ("checkpoints", "holds the checkpoints of a run; take one"),
        ("checkpoints/7", "there is no directory"),
        ("checkpoints/x", "there is no directory"),
    ):
        capsys.readouterr()
        assert main(["convert", wrong, str(tmp_path / "no"), "--to", "orbax"]) == 2
        assert said in capsys.readouterr().err


def test_parameters_that_are_no_numbers_are_refused(tmp_path, model):
    """As a run that went astray leaves them."""
    head = jax.tree.map(np.copy, model.params["head"])
    head["padding_token"][1] = np.nan
    workdir = make_run(tmp_path / "run", model, {"head": head}, {name: model.params[name] for name in ("vlm", "vae")})
    for name in (workdir, workdir / "checkpoints/1"):
        with pytest.raises(CheckpointError, match="1 parameters hold NaN or infinities: head/padding_token"):
            loading.load(name)


@pytest.mark.parametrize(
    ("compute", "time"),
    [
        ({"dtype": "bfloat16", "time": None}, "bfloat16"),
        ({"dtype": "bfloat16", "time": "float32"}, "float32"),
        ({"dtype": "bfloat16"}, "bfloat16"),  # of before there was time
        (None, None),
    ],
)
def test_a_run_draws_with_the_times_that_it_trained_with(tmp_path, model, compute, time):
    parts = {name: model.params[name] for name in ("vlm", "vae")}
    config = {} if compute is None else {"compute": compute}
    run = make_run(tmp_path / "run", model, {"head": model.params["head"]}, parts, **config)
    pipe = InternVLUPipeline.from_pretrained(run)
    assert (pipe.model.compute.dtype, pipe.model.compute.time) == ("float32", time)
    assert InternVLUPipeline.from_pretrained(run, time="float32").model.compute.time == "float32"
    loading.convert(run, tmp_path / "ours", "orbax")
    assert loading.load(tmp_path / "ours", place=on_host).time == time
    loading.convert(tmp_path / "ours", tmp_path / "again", "orbax")
    assert loading.load(tmp_path / "again", place=on_host).time == time
    said = nullcontext() if time is None else pytest.warns(CheckpointWarning, match=f"draw with --time {time}, or")
    with said:
        loading.convert(run, tmp_path / "released", "released")


def test_a_time_that_is_none(tmp_path, model):
    save_model(tmp_path / "m", model.config, model.params, model.extras, model.assets, "float32")
    (tmp_path / "m/time.json").write_text('{"time": "float8"}')
    with pytest.raises(ValueError, match="time is 'float8'; expected float32 or bfloat16"):
        loading.load(tmp_path / "m")


def test_parameters_trained_within_a_part_and_their_average(tmp_path, model):
    """What is trained is told apart by whole paths; the moving average stands for it where there is one."""
    flat = paths(model.params)
    chosen = {path: value for path, value in flat.items() if path.endswith("/kernel")}
    frozen = from_paths({path: value for path, value in flat.items() if path not in chosen})
    average = {path: value + 1 for path, value in chosen.items()}
    workdir = make_run(tmp_path / "run", model, from_paths(chosen), frozen, from_paths(average))
    loaded = loading.load(workdir)
    assert isinstance(loaded.params["head"]["padding_token"], jax.Array)
    assert_same(loaded.params, from_paths({**flat, **average}))
    narrow = loading.load(workdir, max_dtype="bfloat16").params
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}
    assert isinstance(jax.tree.leaves(loading.load(workdir, place=on_host).params)[0], np.ndarray)


@pytest.mark.slow
def test_adapters_are_merged(tmp_path, model):
    params = lora.add(model.params, r"head/mmdit/blocks/image/(q|out)", 2, jax.random.key(0))
    flat = {path: value + 0.1 if path.endswith("/lora_b") else value for path, value in paths(params).items()}
    adapters = {path: value for path, value in flat.items() if path.endswith(("/lora_a", "/lora_b"))}
    settings = {"rank": 2, "alpha": 3.0, "pattern": ""}
    workdir = make_run(tmp_path / "run", model, from_paths(adapters), model.params, lora=settings)
    merged = lora.merge(from_paths(flat), 1.5)
    loaded = loading.load(workdir)
    assert_same(loaded.params, merged)
    assert not np.array_equal(
        *(tree["head"]["mmdit"]["blocks"]["image"]["q"]["kernel"] for tree in (merged, model.params))
    )
    narrow = jax.tree.map(lambda p: np.asarray(p).astype(jnp.bfloat16), merged)
    assert_same(loading.load(workdir, max_dtype="bfloat16").params, narrow)


def test_frozen_parameters_come_back(tmp_path, model):
    workdir = make_run(tmp_path / "run", model, {"head": model.params["head"]}, {"vae": model.params["vae"]})
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), model.params["vae"])
    frozen = run_directory.restore_frozen(workdir, {"vae": shapes})
    assert isinstance(jax.tree.leaves(frozen)[0], jax.Array)
    assert_same(frozen["vae"], model.params["vae"])


def test_a_run_from_a_preset_has_its_tokenizer(tmp_path, model):
    tokenizer = Tokenizer.from_directory(RELEASED / "processor")
    run_directory.start_run(tmp_path, CONFIG, model.config, {"vae": model.params["vae"]}, {}, tokenizer)
    again = Tokenizer.from_directory(run_directory.assets(tmp_path) / "processor")
    assert again.encode("a cat, two cats") == tokenizer.encode("a cat, two cats")


def test_a_start_that_was_killed_is_made_anew(tmp_path, model):
    (tmp_path / ".start.partial/arrays").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    assert not run_directory.is_run(tmp_path)
    make_run(tmp_path, model, {"head": model.params["head"]}, {"vae": model.params["vae"]})
    assert run_directory.is_run(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "start", "checkpoints"}


def begin(workdir: Path, model: loading.LoadedModel, frozen: dict) -> None:
    """A run that has saved nothing yet."""
    tokenizer = Tokenizer.from_directory(RELEASED / "processor")
    run_directory.start_run(workdir, CONFIG, model.config, frozen, {}, tokenizer, RELEASED)


def test_a_start_that_nothing_was_saved_from_is_written_over(tmp_path, model):
    """And nothing else is, whatever has that name."""
    for value in (1, 2):
        begin(tmp_path, model, {"vae": {"x": np.full(3, value)}})
        found = run_directory.restore_frozen(tmp_path, {"vae": {"x": np.zeros(3, int)}})
        assert found["vae"]["x"].tolist() == [value] * 3
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "start"}
    (tmp_path / "other/start").mkdir(parents=True)
    (tmp_path / "other/start/mine").touch()
    with pytest.raises(CheckpointError, match="holds a run, or part of one"):
        begin(tmp_path / "other", model, {})
    assert (tmp_path / "other/start/mine").exists()


def test_differences_of_configurations(tmp_path, model):
    make_run(tmp_path, model, {"head": model.params["head"]}, {"vae": model.params["vae"]})
    sources = ({"path": "b", "weight": 1.0}, {"path": "c", "weight": 2.0})
    given = {"name": "x", "lora": {"rank": 2}, "mesh": {"data": 4}, "mesh2": 1, "data": {"sources": sources}}
    assert run_directory.config_differences(tmp_path, CONFIG) == []
    assert run_directory.config_differences(tmp_path, given, ("mesh", "data.sources.1")) == [
        "lora: null -> nothing",
        'data.sources.0.path: "a" -> "b"',
        "lora.rank: nothing -> 2",
        "mesh2: nothing -> 1",
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"5", b"\xff\xfe{\0", b'{"steps": ', b'{"data": 3}', b'{"objective": "a"}', b"[" * 10**5],
)
def test_a_damaged_configuration_is_named(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.json( is |: expected)"):
        run_directory.config_differences(tmp_path, CONFIG)


def test_directories_that_are_no_runs(tmp_path, model):
    def fails(text: str, name: str = "run") -> None:
        with pytest.raises(ValueError, match=text):
            loading.load(tmp_path / name)

    workdir = make_run(tmp_path / "run", model, {"head": model.params["head"]}, {"vae": model.params["vae"]})
    with pytest.raises(CheckpointError, match="holds a run, or part of one"):
        make_run(workdir, model, {}, {})
    (workdir / "start").rename(tmp_path / "start")
    assert not run_directory.is_run(workdir)
    with pytest.raises(CheckpointError, match="holds a run, or part of one"):
        make_run(workdir, model, {}, {})
    fails("not a complete InternVL-U checkpoint")
    (tmp_path / "start").rename(workdir / "start")
    (workdir / "checkpoints/1").rename(tmp_path / "1")
    fails("checkpoints has no checkpoint; the run has not saved a step yet")
    assert main(["info", str(workdir)]) == 2
    (workdir / "checkpoints/2/params").mkdir(parents=True)
    fails("checkpoints/2/params cannot be read")
    shutil.rmtree(workdir / "start/arrays")
    fails("start/arrays cannot be read")
    (workdir / "config.json").write_text("{")
    fails("config.json is not valid JSON")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        run_directory.config_differences(workdir, CONFIG)
    (workdir / "start/internvlu_jax.json").write_text(json.dumps(run_directory.FORMAT | {"version": 2}))
    fails("'version': 2.*this code reads")
    fails("internvlu_jax run", "run/start")


# --- runs of before

# As a run was configured before terms of the loss had names and the head's sources were the model's.
OLD = {
    "name": "debug",
    "data": {"sources": [["a.jsonl", 1.0]], "batch_size": 8, "condition_latents": True, "drop_all_t2i": 0.1},
    "objective": {"text_weight": 0.5, "flow_weight": 20.0, "time": "logit_normal", "shift": None, "draws": 3},
    "lora": None,
}
PRESENT = {
    "name": "debug",
    "data": {"sources": [["a.jsonl", 1.0]], "batch_size": 8, "drop_all_t2i": 0.1},
    "objective": {
        "weights": [["text", 0.5], ["flow", 20.0]], "time": "logit_normal", "shift": None, "noises_per_image": 3
    },
    "lora": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("condition_latents", "sources"), [pytest.param(True, "both", marks=pytest.mark.slow), (False, "context")]
)
def test_a_run_of_before_has_the_names_of_today(tmp_path, model, condition_latents, sources):
    old = OLD | {"data": OLD["data"] | {"condition_latents": condition_latents}}
    frozen = {name: model.params[name] for name in ("vlm", "vae")}
    workdir = make_run(tmp_path / "run", model, {"head": model.params["head"]}, frozen, **old)
    for given in (None, "both", "context"):
        differences = run_directory.config_differences(workdir, CONFIG | PRESENT | {"head_sources": given})
        assert bool(differences) == ((given == "context") == condition_latents)
    assert loading.load(workdir, place=on_host).config.generation_decoder.sources == sources
    assert main(["convert", str(workdir), str(tmp_path / "ours"), "--to", "orbax"]) == 0
    assert loading.load(tmp_path / "ours", place=on_host).config.generation_decoder.sources == sources


def test_a_configuration_of_today_stays():
    assert run_directory.with_present_names(PRESENT) == PRESENT
    assert run_directory.with_present_names(OLD) == PRESENT
    silent = OLD | {"objective": OLD["objective"] | {"text_weight": 0.0}}
    assert run_directory.with_present_names(silent)["objective"]["weights"] == [["flow", 20.0]]
    assert run_directory.with_present_names(CONFIG) == CONFIG


def test_a_damaged_checkpoint_is_not_taken_for_the_model(tmp_path, model, caplog):
    """The one before it is, which one line says; a step that is asked for, and what the run began with, are refused."""

    def damage(directory: Path) -> None:
        largest = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.write_bytes(data)

    frozen = {name: model.params[name] for name in ("vlm", "vae")}
    workdir = make_run(tmp_path / "run", model, {"head": model.params["head"]}, frozen)
    with RunCheckpoints(workdir / "checkpoints", keep_last=9) as saved:
        head = jax.tree.map(lambda leaf: leaf + 1, model.params["head"])
        saved.save(2, SimpleNamespace(trained={"head": head}, opt_state={"count": np.zeros(999)}, ema=None), {})
    damage(workdir / "checkpoints/2/optimizer")
    assert_same(loading.load(workdir, place=on_host).params["head"], head)
    assert not caplog.records, "what is not read does not matter"
    damage(workdir / "checkpoints/2/params")
    assert_same(loading.load(workdir, place=on_host).params["head"], model.params["head"])
    (line,) = caplog.records
    assert "step 1 is taken" in line.message and (workdir / "checkpoints/2").is_dir()
    with pytest.raises(CheckpointError, match="2/params cannot be read: not as written"):
        loading.load(workdir / "checkpoints/2")
    with RunCheckpoints(workdir / "checkpoints", keep_last=9) as saved:
        state = SimpleNamespace(trained={"head": head}, opt_state={"count": np.zeros(9)}, ema={"head": head})
        saved.save(3, state, {})
    (workdir / "checkpoints/3/ema").rename(workdir / "lost")
    with pytest.raises(CheckpointError, match="3/ema cannot be read: not as written"):
        loading.load(workdir / "checkpoints/3")
    damage(workdir / "start/released")
    with pytest.raises(CheckpointError, match="start/released cannot be read: not as written"):
        loading.load(workdir)
