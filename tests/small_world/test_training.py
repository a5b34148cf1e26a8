"""The small world as a source of a training run, and the parts of the script that trains on it."""

import jax
import numpy as np
import pytest

from experiments.small_world import curves
from experiments.small_world.train import Arguments, crops, halfway, joining, parts, texts, with_ramps
from internvlu_jax.checkpoints import arrays as checkpoint
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.loading import BUILT_IN
from internvlu_jax.data.loader import Loader
from internvlu_jax.data.sources import open_source
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.presets import small_config
from internvlu_jax.processing import chat
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.small_world import SMALL
from internvlu_jax.training.tree import paths
from tests.conftest import Golden


def test_a_world_by_name():
    source = open_source("world:small/general/picture?seed=3&side=32&length=50")
    assert len(source) == 50
    record = source[7]
    assert record.task == "t2i" and record.image.pixels().shape == (32, 32, 3)
    again = open_source("world:small/general/picture?seed=3&side=32")[7]
    assert again.prompt == record.prompt
    np.testing.assert_array_equal(again.image.pixels(), record.image.pixels())
    assert open_source("world:small/general/picture?seed=4")[7].prompt != record.prompt


def test_a_domain_by_name_has_all_its_tasks():
    source = open_source("world:small/text")
    assert {source[n].task for n in range(60)} == {"t2i", "edit", "understanding"}


def test_one_kind_of_a_task_by_name():
    world = open_source("world:small/general/picture/position")
    assert all(world.example(n).truth.relation for n in range(50))
    assert {open_source("world:small/general/question/relation").example(n).topic for n in range(20)} == {"relation"}
    assert {open_source("world:small/general/edit/move").example(n).topic for n in range(20)} == {"move"}
    assert {open_source("world:small/general/question/place").example(n).topic for n in range(20)} == {"place"}
    for length in range(1, 5):
        words = {open_source(f"world:small/text/picture/{length}").example(n).truth.word for n in range(20)}
        assert {len(word) for word in words} == {length} and not any(map(SMALL.holds_word, words))
    with pytest.raises(ValueError, match="no word of length 1 was found with held_out True"):
        SMALL.word(np.random.default_rng(0), held_out=True, length=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("world:large", "the world is 'large'; expected one of small, full"),
        ("world:small/general/pictures", "general/pictures"),
        ("world:small?sides=64", "there is no option 'sides'"),
        ("world:small?side=big", "side is 'big'; expected a whole number"),
        ("world:small?split=test", "split is 'test'; expected one of train, seen, heldout"),
    ],
)
def test_names_that_mean_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        open_source(name)


def test_small_model_fits_in_the_box():
    config = small_config()
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in paths(param_shapes(config)).items()}
    assert 2 * sum(sizes.values()) < 23.5e6, "bytes in bfloat16"
    assert config.generation_decoder.pixel_multiple == 8


def test_batches_of_every_part(tmp_path):
    """What the script would train on goes through the loader: each part, its kinds of batches, no broken record."""
    made = [text for text, _ in zip(texts(), range(4000), strict=False)]
    tokenizer = Tokenizer.trained(made, 1200, chat.FIXED_TEXTS)
    assert tokenizer.vocab_size <= small_config().vlm.llm_config.vocab_size
    letters = tokenizer.encode("the word RAIN")
    assert [tokenizer.decode([i]).strip() for i in letters[-4:]] == ["R", "A", "I", "N"], "drawn one by one"
    tokenizer = Tokenizer.from_directory(BUILT_IN / "processor")  # made from more texts: the lengths are for it
    arguments = Arguments(tmp_path, rows=16)
    made = parts(arguments, tmp_path / "start")
    assert len({cfg.seed for cfg in made}) == len(made), "no part reads the examples of another"
    for data, drawn in ((joining(arguments).questions, False), (joining(arguments).prompts, True)):
        with Loader(small_config(), tokenizer, data, seed=0) as loader:
            batches = [next(loader)[0] for _ in range(4)]
            assert loader.state()["broken"] == 0 and all((b.picture is not None) == drawn for b in batches)
    for cfg in made:
        with Loader(small_config(), tokenizer, cfg.data, seed=0, accumulate=cfg.accumulate) as loader:
            batches = [batch for _, step in zip(range(6), loader, strict=False) for batch in step]
            assert loader.state()["broken"] == 0
        drawn = [batch for batch in batches if batch.picture is not None]
        assert bool(drawn) == (cfg.objective.flow_weight > 0)
        assert any(batch.picture is None for batch in batches) or cfg.objective.text_weight == 0


def test_positions_can_be_told_from_a_new_table():
    """The coordinates of the patches are linear in their entries, and the class token has none."""
    rng = np.random.default_rng(0)
    table = 0.02 * rng.standard_normal((1 + 64, 96)).astype(np.float32)
    ramped = with_ramps(table, rng)
    np.testing.assert_array_equal(ramped[0], table[0])
    rows, columns = np.divmod(np.arange(64), 8)
    for wanted in (rows, columns):
        centred = wanted - 3.5
        direction = centred @ ramped[1:]
        found = ramped[1:] @ direction
        assert abs(np.corrcoef(found, centred)[0, 1]) > 0.9
    assert 1.0 < ramped[1:].std() < 4.0


def test_halfway_between_two_models(tmp_path):
    model = loading.load(Golden("base").checkpoint, place=np.asarray)
    tripled = jax.tree.map(lambda p: 3 * p, model.params)
    checkpoint.save_model(tmp_path / "tripled", model.config, tripled, model.extras, model.assets)
    halfway(Golden("base").checkpoint, tmp_path / "tripled", tmp_path / "between")
    found = loading.load(tmp_path / "between", place=np.asarray)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-6), found.params, model.params)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype, found.params, model.params))
    made = (tmp_path / "between").stat().st_mtime_ns
    halfway(tmp_path / "between", tmp_path / "tripled", tmp_path / "between")
    assert (tmp_path / "between").stat().st_mtime_ns == made, "what was made stays"


def test_crops_show_something():
    found = crops(0, 3)
    assert found.shape == (32, 32, 32, 3)
    assert all(np.ptp(picture.reshape(-1, 3), axis=0).max() > 60 for picture in found)
    np.testing.assert_array_equal(found, crops(0, 3))


def test_curves(tmp_path):
    (tmp_path / "stage1").mkdir()
    lines = [f'{{"step": {n}, "flow_loss": {1 / n}, "text_loss": 0.0, "grad_norm": 1.0}}' for n in range(1, 121)]
    (tmp_path / "stage1" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert curves.main(curves.Arguments(tmp_path, tmp_path / "out")) == 0
    found = curves.curve(tmp_path / "stage1" / "metrics.jsonl")
    assert found[0] == {"step": 2, "flow_loss": 0.75, "grad_norm": 1.0} and found[-1]["step"] == 120
    assert (tmp_path / "out" / "curves.png").is_file() and (tmp_path / "out" / "curves.json").is_file()
    with pytest.raises(SystemExit, match="no metrics"):
        curves.main(curves.Arguments(tmp_path / "out", tmp_path / "out"))
