"""What all runs start from: made once, carried about, and put in the same place for every seed."""

import dataclasses
import functools
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ablations import ceilings, world
from experiments.ablations import parts as parts_module
from experiments.ablations.arms import ARMS, TINY, arms_of
from experiments.ablations.ceilings import Ceiling, drawn_at_best
from experiments.ablations.endpoints import DRAWN
from experiments.ablations.parts import (
    KEPT,
    NAMES,
    SMOKE,
    Lessons,
    Part,
    PartSizes,
    arm_start,
    codec_name,
    main,
    make_parts,
    needed,
    settings,
)
from experiments.ablations.world import semantic_autoencoder
from internvlu_jax.checkpoints.run_directory import config_differences
from internvlu_jax.config import ConfigError, VisionConfig
from internvlu_jax.evaluation.scores import Score
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.models.semantic import SemanticAutoencoder
from internvlu_jax.models.vit import VisionTransformer
from internvlu_jax.small_world import XS, WorldSource
from internvlu_jax.training.autoencoder import AutoencoderConfig
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.resuming import Stopped
from internvlu_jax.utils.files import write_json
from internvlu_jax.utils.tree import paths

CEILING = Ceiling(Score(30.0, 29.0, 31.0, 20), Score(0.9, 0.8, 0.95, 20), {"geneval_heldout": 0.1})


def random_tree(shapes, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


shapes_of = functools.cache(param_shapes)  # tracing takes seconds


def made_up(name, sizes, size, lessons, loop, parts):
    """A part in no time: random numbers; a decoder's encoder is the part before it, as it has to be."""
    seed, base = NAMES.index(name), parts_module._base(name, size)
    shapes = shapes_of(arms_of(size)["decoupled" if name.startswith("vae") else "shared-semantic"].config)
    if name.startswith("vision"):
        return Part(base, random_tree(shapes["vlm"]["vit"], seed))
    config, params = base, random_tree(shapes["vae"], seed)
    if name != "vae-quantized":
        means = tuple(np.random.default_rng(seed).normal(size=base.z_dim).tolist())
        config = dataclasses.replace(base, latents_mean=means)
    if name in parts_module._VISION:
        params["encoder"] = parts[parts_module._VISION[name]].params
    (loop / "checkpoints").mkdir(parents=True)
    return Part(config, params)


@pytest.fixture
def quick(monkeypatch):
    """Nothing is kept, trained, measured or compiled; a list of the parts that were made."""
    made = []
    monkeypatch.setattr(parts_module, "KEPT", Path("nowhere"))

    def noting(name, *rest):
        made.append(name)
        return made_up(name, *rest)

    def initial(config, seed):
        return {name: tree for name, tree in random_tree(shapes_of(config), seed).items() if name != "vae"}

    monkeypatch.setattr(parts_module, "_made", noting)
    monkeypatch.setattr(parts_module, "_ceiling", lambda part, renders, size: CEILING)
    monkeypatch.setattr(parts_module, "initial", initial)
    return made


def same(parts, others) -> None:
    assert tuple(parts) == tuple(others) == NAMES
    for name, part in parts.items():
        assert (part.config, part.ceiling) == (others[name].config, others[name].ceiling)
        jax.tree.map(np.testing.assert_array_equal, part.params, others[name].params)


def test_parts_are_made_once_and_a_copy_needs_no_more_than_its_files(quick, tmp_path):
    first = make_parts(tmp_path / "here")
    assert quick == list(NAMES)
    assert {name: part.ceiling for name, part in first.items()} == {
        **dict.fromkeys(NAMES, CEILING), "vision": None, "vision-random": None,
    }  # fmt: skip
    shutil.copytree(tmp_path / "here", tmp_path / "there", ignore=shutil.ignore_patterns("loop"))
    same(make_parts(tmp_path / "there"), first)
    assert quick == list(NAMES)
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert {path.name for path in files} == {"config.json", "part.npz", "ceiling.json"}


def test_parts_that_were_stopped_go_on(quick, tmp_path, monkeypatch):
    """In the fourth, or while a ceiling is measured: what is done stays."""
    whole = make_parts(tmp_path / "whole")
    quick.clear()
    noting = parts_module._made

    def stopping(name, *rest):
        if name == "vision-random":
            raise Stopped(rest[-2], 3)
        return noting(name, *rest)

    monkeypatch.setattr(parts_module, "_made", stopping)
    with pytest.raises(Stopped):
        make_parts(tmp_path / "again")
    assert quick == ["vae0", "vae1", "vision"]
    monkeypatch.setattr(parts_module, "_made", noting)
    (tmp_path / "again/parts/vae0/ceiling.json").unlink()
    same(make_parts(tmp_path / "again"), whole)
    assert quick == list(NAMES)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"autoencoder_steps": 3}, r"parts/vae0 holds .* autoencoder\.steps: 2000 -> 3"),
        ({"renders": 20}, r"parts/vae0 holds .* renders: 2000 -> 20"),
        ({"understanding": SMOKE.understanding}, r"parts/vision holds .* understanding\.examples: 24000 -> 60"),
    ],
)
def test_parts_of_other_settings_are_refused(quick, tmp_path, changed, message):
    make_parts(tmp_path)
    quick.clear()
    with pytest.raises(ConfigError, match=message):
        make_parts(tmp_path, dataclasses.replace(PartSizes(), **changed))
    assert quick == []


def test_a_decoder_depends_on_what_its_encoder_depends_on():
    """And the second VAE differs from the first in its seed alone."""
    more = dataclasses.replace(PartSizes(), understanding=SMOKE.understanding)
    differing = [
        name for name in NAMES if parts_module.settings(name, more) != parts_module.settings(name, PartSizes())
    ]
    assert differing == ["vision", "semantic"]
    first, second = (parts_module.settings(name, PartSizes()) for name in ("vae0", "vae1"))
    assert (first["autoencoder"].pop("seed"), second["autoencoder"].pop("seed")) == (1, 0) and first == second


def test_parts_that_learn_from_something_else_stand_beside(quick, tmp_path):
    """What does not depend on it is the same."""
    usual, other = (make_parts(tmp_path, lessons=one) for one in (Lessons(), Lessons("xs-all", "xs-transfer")))
    assert list(usual) == list(other) and quick == [*NAMES, *NAMES]
    folder = tmp_path / "parts-xs-all-xs-transfer"
    assert {path.name for path in folder.iterdir()} == set(NAMES)
    differing = [name for name in NAMES if config_differences(folder / name, settings(name, PartSizes()))]
    assert differing == [name for name in NAMES if name != "vision-random"]
    make_parts(tmp_path, lessons=Lessons("xs-all"))
    differing = [
        name for name in NAMES if settings(name, PartSizes(), lessons=Lessons("xs-all")) != settings(name, PartSizes())
    ]
    assert differing == [name for name in NAMES if not name.startswith("vision")]


@pytest.mark.parametrize("seen", ["xs", "xs-all"])
def test_autoencoders_learn_from_what_is_held_out_where_they_are_to(seen):
    source = world._pictures(seen, 3)
    held = sum(XS.holds(source.example(n).image) for n in range(200))
    assert held > 20 if seen == "xs-all" else held == 0


def test_what_a_codec_draws_at_best_is_scored_as_runs_are(monkeypatch):
    """One that loses nothing draws all of it, one that gives white nothing."""
    for lost, share in ((False, 1.0), (True, 0.0)):
        monkeypatch.setattr(
            ceilings,
            "_there_and_back",
            lambda model, params, pictures, lost=lost: np.full_like(pictures, 255) if lost else pictures,
        )
        assert drawn_at_best(None, {"vae": {}}, "xs", 30, batch=8) == dict.fromkeys(DRAWN, share)


def test_a_part_of_before_gets_what_it_draws_at_best(quick, tmp_path):
    make_parts(tmp_path, names=("vae0",))
    before = dataclasses.asdict(CEILING)
    del before["drawn"]
    write_json(tmp_path / "parts/vae0/ceiling.json", before)
    assert make_parts(tmp_path, names=("vae0",))["vae0"].ceiling == CEILING and quick == ["vae0"]


def test_parts_that_a_study_needs(quick, tmp_path):
    """Those of its arms alone, and those before these."""
    assert needed([ARMS["decoupled"], ARMS["shared-discrete"]]) == ("vae0", "vae-quantized")
    assert needed([ARMS["random-semantic"], ARMS["twin"]]) == ("vae0", "vae1", "vision-random", "semantic-random")
    assert needed(ARMS.values()) == NAMES
    made = make_parts(tmp_path, names=needed([ARMS["shared-discrete"]]))
    assert list(made) == quick == ["vae-quantized"]
    assert arm_start(ARMS["shared-discrete"], made, 0)[0].vae == made["vae-quantized"].config


@pytest.mark.parametrize("name", list(ARMS))
def test_an_arm_starts_from_the_parts_and_differs_between_seeds_in_the_rest(quick, tmp_path, name):
    arm, parts = ARMS[name], make_parts(tmp_path)
    (config, params), (other_config, other) = (arm_start(arm, parts, seed) for seed in (3, 4))
    given = factors(shapes_of(arm.config), OptimizerConfig(rates=arm.rates))
    leaves, others = paths(params), paths(other)
    assert config == other_config and leaves.keys() == others.keys() == given.rates.keys()
    for path, leaf in leaves.items():
        assert np.array_equal(leaf, others[path]) != given.is_trained(path), path
    codec = parts[codec_name(arm)]
    assert config == dataclasses.replace(arm.config, vae=codec.config, vlm=config.vlm)
    expected = {f"vae/{path}": leaf for path, leaf in paths(codec.params).items()}
    vision = {"beforehand": "vision", "random": "vision-random"}.get(arm.vision)
    if vision:
        expected |= {f"vlm/vit/{path}": leaf for path, leaf in paths(parts[vision].params).items()}
    else:
        seen = parts["vae1" if arm.twin else codec_name(arm)]
        copied = [path for path in leaves if path.startswith("vlm/vit/codec/")]
        expected |= {path: paths(seen.params)[path.removeprefix("vlm/vit/codec/")] for path in copied}
        assert bool(copied) == (name in ("shared-latent", "twin", "shared-discrete"))
        assert not copied or config.vlm.vision_config.codec == seen.config
    assert {path for path in leaves if not given.is_trained(path)} == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(leaves[path], leaf, err_msg=path)


def test_features_of_world_pictures_are_normalised_before_a_decoder_is_trained(tmp_path, monkeypatch):
    """Over the pictures that are measured, which are of the next seed."""
    encoder = VisionConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, patch_size=16, image_size=64
    )
    base = dataclasses.replace(
        ARMS["shared-semantic"].config.vae, encoder=encoder, latents_mean=(0.0,) * 8, latents_std=(1.0,) * 8
    )
    source = WorldSource("xs", {"general/picture": 1.0}, seed=6)
    pictures = jnp.stack([source.example(n).image.draw(64) for n in range(32)]) / 127.5 - 1
    params = jax.jit(VisionTransformer(encoder).init)(jax.random.key(0), pictures[:1])["params"]

    def trained(config, how, frozen, read, workdir):
        assert read(3).shape == (32, 64, 64, 3) and not np.array_equal(read(3), read(4))
        values = jax.jit(partial(SemanticAutoencoder(config).apply, method="encode_latents"))(
            {"params": {"encoder": frozen}}, pictures
        )
        values = np.asarray(values, np.float64).reshape(-1, 8)
        np.testing.assert_allclose(values.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(values.std(0), 1, atol=1e-3)
        return {"encoder": frozen}

    monkeypatch.setattr(world, "train_decoder", trained)
    config, whole = semantic_autoencoder(base, AutoencoderConfig(seed=5), params, tmp_path, measured=32)
    assert whole["encoder"] is params
    assert config == dataclasses.replace(base, latents_mean=config.latents_mean, latents_std=config.latents_std)


@pytest.mark.slow
def test_the_command_makes_all_parts(tmp_path, capsys):
    assert main(parts_module.Arguments(tmp_path, smoke=True)) == 0
    lines = capsys.readouterr().out.splitlines()
    drawn = [line.split(":")[0] for line in lines if " dB, " in line]
    assert drawn == ["vae0", "vae1", "semantic", "semantic-random", "vae-quantized"]
    for name in NAMES:
        shutil.rmtree(tmp_path / "parts-tiny" / name / "loop", ignore_errors=True)
    parts = make_parts(tmp_path, SMOKE, TINY)
    for name, vision in parts_module._VISION.items():
        jax.tree.map(np.testing.assert_array_equal, parts[name].params["encoder"], parts[vision].params)
        assert parts[name].ceiling.right.count == 20
    config, params = arm_start(arms_of(TINY)["shared-semantic"], parts, 0)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, param_shapes(config))


def test_parts_of_the_studies_are_kept_and_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "_made", None)
    made = make_parts(tmp_path)
    assert set(made) == set(NAMES)
    for name, part in made.items():
        assert (tmp_path / "parts" / name / "part.npz").read_bytes() == (KEPT / name / "part.npz").read_bytes()
        assert (part.ceiling is None) == name.startswith("vision")
    for semantic, vision in (("semantic", "vision"), ("semantic-random", "vision-random")):
        encoder = paths(made[semantic].params["encoder"])
        for path, leaf in paths(made[vision].params).items():
            np.testing.assert_array_equal(leaf, encoder[path])
