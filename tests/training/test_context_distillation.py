"""A backbone that learns to give the contexts that another's head was trained on, and goes on answering."""

import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.engine import on_host
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.model_directory import save_model
from internvlu_jax.config import ConfigError
from internvlu_jax.data.config import DataConfig
from internvlu_jax.training import context_distillation
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.context_distillation import DistillationConfig, context_error, distill_context
from internvlu_jax.training.resuming import Stopped
from internvlu_jax.utils.tree import paths
from tests.conftest import GOLDENS

pytestmark = pytest.mark.slow
CHECKPOINT = GOLDENS / "base/checkpoint"
QUESTIONS = DataConfig(
    (("world:small/general/conversation", 1.0),), batch_size=2, packed_rows=2, sides=(64,), text_lengths=(192,),
    pack_length=256, pack_tiles=1, threads=1,
)  # fmt: skip
PROMPTS = dataclasses.replace(QUESTIONS, sources=(("world:small/general/edit", 1.0),))
RATES = (("vlm/vit/.*", 0.0), (".*", 1.0))
CONFIG = DistillationConfig(
    4,
    QUESTIONS,
    PROMPTS,
    OptimizerConfig(learning_rate=5e-4, warmup=1, ema=0.5, rates=RATES),
    context_weight=30.0,
    save_every=2,
)


def params(directory) -> dict:
    return paths(loading.load(directory, place=on_host).params)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A model that differs from the recorded one in all its parts."""
    model = loading.load(CHECKPOINT, place=on_host)
    other = jax.tree.map(lambda leaf: leaf * np.float32(1.1), model.params)
    target = tmp_path_factory.mktemp("head") / "model"
    save_model(target, model.config, other, model.extras, model.assets)
    return target


@pytest.fixture(scope="module")
def whole(head, tmp_path_factory):
    """A run of four steps without a stop."""
    return distill_context(CONFIG, CHECKPOINT, head, tmp_path_factory.mktemp("whole"), quiet=True)


def test_the_trained_backbone_and_all_else_of_the_other_model(head, whole):
    own, other, joined = (params(path) for path in (CHECKPOINT, head, whole))
    for path, leaf in joined.items():
        if path.startswith("vlm/vit/"):
            np.testing.assert_array_equal(leaf, own[path])
        elif not path.startswith("vlm/"):
            np.testing.assert_array_equal(leaf, other[path])
    changed = [path for path in joined if path.startswith("vlm/llm") and not np.array_equal(joined[path], own[path])]
    assert len(changed) > 10


def test_the_contexts_come_closer(whole):
    rows = [json.loads(line) for line in (whole.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["context_error"] < rows[0]["context_error"]
    assert all(row["loss"] == pytest.approx(row["text_loss"] + 30 * row["context_error"], rel=1e-5) for row in rows)


@pytest.mark.slow  # by `run_steps`, as an autoencoder's does
def test_a_stopped_run_goes_on(head, whole, tmp_path):
    """Killed in the third step, stopped by a signal in the same, then the rest, and then nothing."""

    step = context_distillation._step

    class Killed(Exception):
        pass

    def kill(self, number, values, speed):
        if number == 3:
            raise Killed

    def stop(*arguments):
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("internvlu_jax.training.reporting.Records.write", kill)
        with pytest.raises(Killed):
            distill_context(CONFIG, CHECKPOINT, head, tmp_path, quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context_distillation, "_step", stop)
        with pytest.raises(Stopped, match="stopped at step 3"):
            distill_context(CONFIG, CHECKPOINT, head, tmp_path, quiet=True)
    done = distill_context(CONFIG, CHECKPOINT, head, tmp_path, quiet=True)
    one, other = params(whole), params(done)
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)
    assert distill_context(CONFIG, CHECKPOINT, head, tmp_path, quiet=True) == done


def test_the_distance_against_its_formula():
    """Padding does not count; a backbone that always says the mean is at 1."""
    rng = np.random.default_rng(0)
    then, moved = rng.normal(2.0, 1.0, (3, 5, 8)), 0.1 * rng.normal(size=(3, 5, 8))
    lengths = np.array([5, 2, 4])
    each = []
    for columns in (slice(0, 4), slice(4, 8)):
        tokens = [(row, token) for row in range(3) for token in range(lengths[row])]
        wanted = np.array([then[row, token, columns] for row, token in tokens])
        off = np.array([moved[row, token, columns] for row, token in tokens])
        each.append(np.sum(off**2) / np.sum((wanted - wanted.mean(0)) ** 2))
    found = context_error(jnp.float32(then + moved), jnp.float32(then), jnp.asarray(lengths), 2)
    assert float(found) == pytest.approx(np.mean(each), rel=1e-5)
    rows = np.arange(5)[None, :] < lengths[:, None]
    mean = np.broadcast_to(then[rows].mean(0), then.shape)
    assert float(context_error(jnp.float32(mean), jnp.float32(then), jnp.asarray(lengths), 2)) == pytest.approx(
        1.0, rel=1e-5
    )


def test_what_cannot_be_joined(tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer\.ema is None"):
        dataclasses.replace(CONFIG, optimizer=OptimizerConfig())
    with pytest.raises(ConfigError, match="different tokenizers"):
        distill_context(CONFIG, CHECKPOINT, loading.BUILT_IN, tmp_path)


def test_a_run_goes_on_only_under_the_settings_it_began_with(head, whole):
    """A finished one is not taken for one of other settings, either."""
    fast = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, learning_rate=1e-3))
    with pytest.raises(ConfigError, match=r"distillation.optimizer.learning_rate: 0.0005 -> 0.001"):
        distill_context(fast, CHECKPOINT, head, whole.parent)
    with pytest.raises(ConfigError, match=r"backbone: .* -> .*; head: "):
        distill_context(CONFIG, head, CHECKPOINT, whole.parent)
    again = dataclasses.replace(CONFIG, save_every=4, prompts=dataclasses.replace(PROMPTS, threads=2))
    assert distill_context(again, CHECKPOINT, head, whole.parent) == whole


def test_a_model_that_was_made_elsewhere_is_taken(head, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "model")
    assert distill_context(CONFIG, CHECKPOINT, head, tmp_path) == tmp_path / "model"
