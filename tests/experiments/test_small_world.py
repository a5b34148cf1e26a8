"""The parts of the script that trains the model in the box, and which of them run."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from converters.engine import on_host
from experiments.small_world import curves
from experiments.small_world.parts import Average, Distil, Settings, Start, Train, remaining, save_average
from experiments.small_world.recipe import PARTS
from experiments.small_world.start import crops, texts, with_ramps
from experiments.small_world.train import Arguments, main
from internvlu_jax.checkpoints import loading, run_directory
from internvlu_jax.checkpoints.loading import BUILT_IN
from internvlu_jax.checkpoints.model_directory import MARKER, save_model
from internvlu_jax.config import ConfigError
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.presets import small_config
from internvlu_jax.processing import chat
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.training.loop import Outcome
from internvlu_jax.utils.tree import paths
from tests.conftest import Golden
from tests.helpers.training import TINY
from tests.helpers.unchecked import unchecked
from tests.helpers.world import batches_drawn


def test_small_model_fits_in_the_box():
    config = small_config()
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in paths(param_shapes(config)).items()}
    assert 2 * sum(sizes.values()) < 23.5e6, "bytes in bfloat16"
    assert config.generation_decoder.pixel_multiple == 8


@pytest.mark.slow
def test_batches_of_every_part(tmp_path):
    """What the script would train on goes through the loader: each part, its kinds of batches, no broken record."""
    made = [text for text, _ in zip(texts(), range(4000), strict=False)]
    tokenizer = Tokenizer.trained(made, 1200, chat.FIXED_TEXTS)
    assert tokenizer.vocab_size <= small_config().vlm.llm_config.vocab_size
    letters = tokenizer.encode("the word RAIN")
    assert [tokenizer.decode([i]).strip() for i in letters[-4:]] == ["R", "A", "I", "N"], "drawn one by one"
    tokenizer = Tokenizer.from_directory(BUILT_IN / "processor")  # made from more texts: the lengths are for it
    settings = Settings(tmp_path, rows=16)
    made = [part.config(settings) for part in PARTS if isinstance(part, Train)]
    assert len({cfg.seed for cfg in made}) == len(made), "no part reads the examples of another"
    (distil,) = (part.config(settings) for part in PARTS if isinstance(part, Distil))
    for data, drawn in ((distil.questions, False), (distil.prompts, True)):
        assert unchecked(batches_drawn, small_config(), tokenizer, data, 4) == (0, [drawn] * 4)
    for cfg in made:
        assert cfg.accumulate == 1
        broken, drawn = unchecked(batches_drawn, small_config(), tokenizer, cfg.data, 6)
        weights = dict(cfg.objective.weights)
        assert (broken, any(drawn)) == (0, "flow" in weights)
        assert not all(drawn) or "text" not in weights


def test_positions_can_be_told_from_a_new_table():
    """The coordinates of the patches are linear in their entries, and the class token has none."""
    rng = np.random.default_rng(0)
    table = 0.02 * rng.standard_normal((1 + 64, 96)).astype(np.float32)
    ramped = with_ramps(table, rng)
    np.testing.assert_array_equal(ramped[0], table[0])
    rows, columns = np.divmod(np.arange(64), 8)
    for coordinate in (rows, columns):
        centred = coordinate - 3.5
        direction = centred @ ramped[1:]
        assert abs(np.corrcoef(ramped[1:] @ direction, centred)[0, 1]) > 0.9
    assert 1.0 < ramped[1:].std() < 4.0


def test_the_average_of_two_models(tmp_path):
    model = loading.load(Golden("base").checkpoint, place=on_host)
    tripled = jax.tree.map(lambda p: 3 * p, model.params)
    save_model(tmp_path / "tripled", model.config, tripled, model.extras, model.assets)
    save_average(Golden("base").checkpoint, tmp_path / "tripled", tmp_path / "between")
    between = loading.load(tmp_path / "between", place=on_host)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-6), between.params, model.params)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype, between.params, model.params))


# Which parts run


def bring(directory) -> None:
    """A finished model directory, as far as the script looks at it before it loads it."""
    directory.mkdir(parents=True)
    (directory / MARKER).write_text("{}")


def to_run(workdir, until="together4") -> list[str]:
    return [part.name for part in remaining(PARTS, until, Settings(workdir))]


def stage(name: str) -> Train:
    (part,) = (part for part in PARTS if part.name == name)
    return part


ALL = [part.name for part in PARTS]


def test_without_anything_all_parts_run_in_order(tmp_path):
    assert to_run(tmp_path) == ALL and ALL[0] == "start" and ALL[-1] == "together4"
    assert to_run(tmp_path, "stage2") == ["start", "backbone", "stage1", "stage2"]
    assert to_run(tmp_path, "understanding") == ["start", "understanding"]


@pytest.mark.parametrize("part", ALL)
def test_a_finished_part_is_taken_whichever_kind_it_is(part, tmp_path):
    """Nothing runs for it, and of what stands before it only what others still need."""
    bring(tmp_path / part)
    assert to_run(tmp_path, part) == []
    left = {"distilled": ALL[7:], "together2": ALL[11:], "together3": ["together4"]}
    if part in left:
        assert to_run(tmp_path) == left[part]
    assert part not in to_run(tmp_path)


def test_a_distillation_that_ended_here_is_taken(tmp_path):
    bring(tmp_path / "distilled" / "model")
    assert to_run(tmp_path)[0] == "together"
    assert stage("together").config(Settings(tmp_path)).start == str(tmp_path / "distilled" / "model")


def test_what_only_some_parts_need_runs_for_these(tmp_path):
    """The second average needs both of its models, of which one is there."""
    bring(tmp_path / "places")
    assert to_run(tmp_path) == [name for name in ALL if name != "places"]
    bring(tmp_path / "together2")
    assert to_run(tmp_path) == ["halfway3", "together3", "together4"]
    assert to_run(tmp_path, "stage1") == ["start", "backbone", "stage1"]


def test_a_part_of_that_name_there_is_not(tmp_path, capsys):
    assert main(Arguments(tmp_path, until="joined")) == 2
    assert "--until is 'joined'; expected one of start, backbone" in capsys.readouterr().err


def test_the_command_makes_what_is_not_there_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    """A start from another machine; the second run is stopped by a signal, and nothing of the first is done again."""
    trained = []

    def train(cfg, workdir):
        """Stops the second run once; a run that ends leaves its start's model."""
        trained.append((cfg.name, cfg.start))
        stopped = trained.count(trained[-1]) == 1 and cfg.name == "two"
        if not stopped:
            shutil.copytree(cfg.start, workdir)
        return Outcome(3, None, stopped)

    one, two = (
        Train(name, before, 3, n, TINY.objective, TINY.optimizer, TINY.data)
        for n, (name, before) in enumerate((("one", "start"), ("two", "one")))
    )
    monkeypatch.setattr("experiments.small_world.parts.train", train)
    monkeypatch.setattr(
        "experiments.small_world.train.PARTS", (Start("start", 1), one, two, Average("mean", "one", "two"))
    )
    shutil.copytree(Golden("base").checkpoint, tmp_path / "start")
    arguments = Arguments(tmp_path, until="mean", export=tmp_path / "out")
    assert main(arguments) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped at step 3; `{tmp_path / 'two'}` can go on"
    assert not arguments.export.exists()
    assert main(arguments) == 0
    starts = {"one": str(tmp_path / "start"), "two": str(tmp_path / "one")}
    assert trained == [(name, starts[name]) for name in ("one", "two", "two")]
    assert (arguments.export / "model_index.json").is_file()
    assert main(dataclasses.replace(arguments, export=None)) == 0 and len(trained) == 3


def test_a_run_that_has_saved_needs_no_part_before_it_and_keeps_its_settings(tmp_path):
    run_directory.start_run(
        tmp_path / "stage1", dataclasses.asdict(stage("stage1").config(Settings(tmp_path))), small_config(), {}, {},
        Tokenizer.byte_level(chat.FIXED_TEXTS),
    )  # fmt: skip
    assert to_run(tmp_path, "stage2") == ["start", "backbone", "stage1", "stage2"]
    (tmp_path / "stage1" / "checkpoints" / "1000").mkdir(parents=True)
    assert to_run(tmp_path, "stage2") == ["stage1", "stage2"]
    (tmp_path / "stage1" / "checkpoints" / "2250").mkdir()
    assert to_run(tmp_path, "stage2") == ["stage2"]
    with pytest.raises(ConfigError, match=r"another configuration: seed: 100 -> 107"):
        remaining(PARTS, "stage2", Settings(tmp_path, seed=7))


def test_crops_show_something():
    pictures = crops(0, 3)
    assert pictures.shape == (32, 32, 32, 3)
    assert all(np.ptp(picture.reshape(-1, 3), axis=0).max() > 60 for picture in pictures)
    np.testing.assert_array_equal(pictures, crops(0, 3))


def test_curves(tmp_path):
    (tmp_path / "stage1").mkdir()
    lines = [f'{{"step": {n}, "flow_loss": {1 / n}, "text_loss": 0.0, "grad_norm": 1.0}}' for n in range(1, 121)]
    (tmp_path / "stage1" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert curves.main(curves.Arguments(tmp_path, tmp_path / "out")) == 0
    points = curves.curve(tmp_path / "stage1" / "metrics.jsonl")
    assert points[0] == {"step": 2, "flow_loss": 0.75, "grad_norm": 1.0} and points[-1]["step"] == 120
    assert (tmp_path / "out" / "curves.png").is_file() and (tmp_path / "out" / "curves.json").is_file()
    with pytest.raises(SystemExit, match="no metrics"):
        curves.main(curves.Arguments(tmp_path / "out", tmp_path / "out"))
