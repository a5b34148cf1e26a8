"""The seams are real: a study's vision encoder and loss term in a few lines, trained, drawn with, saved and loaded."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from einops import reduce
from flax import linen as nn
from PIL import Image

import internvlu_jax
from experiments.configs.debug import TOY
from experiments.configs.stage3 import ALL_BUT_VAE
from internvlu_jax import InternVLUPipeline, config, presets
from internvlu_jax.checkpoints.loading import convert
from internvlu_jax.config import Compute, ConfigError
from internvlu_jax.models import slots
from internvlu_jax.training import losses
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig
from internvlu_jax.training.loop import train
from tests.helpers.training import TINY, smaller, with_data


@dataclasses.dataclass(frozen=True)
class MeanColours:
    """A vision encoder that tells the mean colour of each patch, and no more."""

    model_type: ClassVar[str] = "mean_colours"
    attention_widths: ClassVar[tuple[int, ...]] = ()
    image_size: int = 56
    patch_size: int = 14
    hidden_size: int = 3

    def problems(self) -> list[str]:
        return []


class MeanColourEncoder(nn.Module):
    cfg: MeanColours
    compute: Compute

    def __call__(self, pixels):
        p = self.cfg.patch_size
        return reduce(pixels, "k (y p) (x q) c -> k (y x) c", "mean", p=p, q=p)


def mean_velocity(forward):
    """A term that wants the mean of the velocity to be nothing."""
    return jnp.sum(forward.each(forward.picture.weight) * jnp.square(jnp.mean(forward.velocity, axis=(1, 2, 3))))


@pytest.fixture
def study(monkeypatch):
    """All that a study of the two adds to the tables."""
    monkeypatch.setitem(config.SLOTS["vision_config"], MeanColours.model_type, MeanColours)
    monkeypatch.setitem(slots.MODULES, MeanColours, MeanColourEncoder)
    monkeypatch.setitem(losses.TERMS, "mean_velocity", losses.Term(losses.target_pictures, mean_velocity))
    small = smaller(presets.debug_config())
    cfg = dataclasses.replace(small, vlm=dataclasses.replace(small.vlm, vision_config=MeanColours()))
    monkeypatch.setitem(presets.PRESETS, "toy", lambda: cfg)


def test_a_new_vision_slot_and_a_new_term(study, tmp_path):
    run = dataclasses.replace(
        with_data(TINY, sources=((str(TOY / "edit.jsonl"), 1.0),), batch_size=2, sides=(64,), text_lengths=(128,)),
        steps=2, start=None, model="toy", objective=ObjectiveConfig((("flow", 1.0), ("mean_velocity", 0.5))),
        optimizer=OptimizerConfig(warmup=1, rates=ALL_BUT_VAE),
    )  # fmt: skip
    metrics = train(run, tmp_path / "run", quiet=True).metrics
    np.testing.assert_allclose(metrics["loss"], metrics["flow_loss"] + 0.5 * metrics["mean_velocity_loss"], rtol=1e-6)
    assert "grad_norm/vlm/vit" not in metrics and metrics["grad_norm/vlm/projector"] > 0

    def draw(directory):
        pipe = InternVLUPipeline.from_pretrained(directory)
        assert type(pipe.config.vlm.vision_config) is MeanColours
        out = pipe("make it red", Image.new("RGB", (64, 64)), "image", seed=0, num_inference_steps=2)
        return np.asarray(out.images[0])

    drawn = draw(tmp_path / "run")
    assert drawn.shape == (64, 64, 3)
    convert(tmp_path / "run", tmp_path / "model", "orbax")
    np.testing.assert_array_equal(draw(tmp_path / "model"), drawn)
    with pytest.raises(ConfigError, match="mean_colours"):
        convert(tmp_path / "run", tmp_path / "released", "released")


def test_a_term_that_is_not_known_is_refused_by_name(tmp_path):
    run = dataclasses.replace(TINY, objective=ObjectiveConfig((("flow", 1.0), ("mean_velocity", 0.5))))
    with pytest.raises(ConfigError, match=r"objective\.weights names mean_velocity; expected terms among text, flow"):
        train(run, tmp_path / "run", quiet=True)


# What is to be done in one place, and where.
ONE_PLACE = {
    "msrope_positions": {"processing/layout.py", "processing/positions.py"},
    "vision_values": {"models/pixels.py", "models/internvlu.py"},
    "codec_values": {"models/pixels.py", "models/internvlu.py", "training/autoencoder.py"},
    "image_mean": {"config.py", "config_released.py", "models/pixels.py"},  # the second: how files may spell it
}


@pytest.mark.parametrize("name", ONE_PLACE)
def test_pixels_and_positions_are_made_in_one_place(name):
    package = Path(internvlu_jax.__file__).parent
    users = {str(p.relative_to(package)) for p in package.rglob("*.py") if name in p.read_text(encoding="utf-8")}
    assert users <= ONE_PLACE[name]
