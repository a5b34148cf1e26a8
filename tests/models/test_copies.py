"""Frozen copies: made from their originals, config and parameters, and checked leaf by leaf."""

import functools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from experiments.ablations.arms import ARMS
from internvlu_jax.config import InternVLUConfig, LatentVision, VAEConfig
from internvlu_jax.models.copies import CODEC_IN_VISION, VISION_IN_CODEC, check_copies, copies, with_copies, with_copy
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.utils.tree import from_paths, paths

shapes = functools.cache(param_shapes)


def numbered(cfg: InternVLUConfig, first: float = 0.0) -> dict[str, Any]:
    """Parameters of which every leaf is another number."""
    leaves = paths(shapes(cfg))
    return from_paths({path: np.full(s.shape, first + n, np.float32) for n, (path, s) in enumerate(leaves.items())})


def changed(params: dict[str, Any], path: str) -> dict[str, Any]:
    return from_paths({**paths(params), path: paths(params)[path] + 1})


LATENT, SEMANTIC = (ARMS[name].config for name in ("shared-latent", "shared-semantic"))


def test_where_copies_are():
    assert copies(InternVLUConfig()) == ()
    assert copies(LATENT) == (CODEC_IN_VISION,) == ("vlm/vit/codec",)
    assert copies(SEMANTIC) == (VISION_IN_CODEC,) == ("vae/encoder",)


@pytest.mark.parametrize("cfg", [LATENT, SEMANTIC], ids=["latent", "semantic"])
def test_a_copy_equals_its_original_and_all_else_stays(cfg):
    (place,) = copies(cfg)
    original = {CODEC_IN_VISION: "vae", VISION_IN_CODEC: "vlm/vit"}[place]
    before = numbered(cfg)
    same, after = with_copies(cfg, before)
    assert same == cfg
    for path, leaf in paths(after).items():
        source = path.replace(place, original, 1) if path.startswith(place + "/") else path
        np.testing.assert_array_equal(leaf, paths(before)[source], err_msg=path)
    check_copies(cfg, after)
    leaf = next(path for path in reversed(paths(after)) if path.startswith(place + "/"))
    for path in (leaf, leaf.replace(place, original, 1)):
        with pytest.raises(ValueError, match=f"{leaf} is not {leaf.replace(place, original, 1)}"):
            check_copies(cfg, changed(after, path))


def test_what_normalises_latents_is_copied_with_them():
    """It stands in the config, and decides what the encoder gives."""
    vae = replace(LATENT.vae, latents_mean=(0.5,) * 8)
    cfg, params = replace(LATENT, vae=vae), numbered(LATENT)
    done, after = with_copies(cfg, params)
    assert isinstance(done.vlm.vision_config, LatentVision) and done.vlm.vision_config.codec == vae
    check_copies(done, after)
    with pytest.raises(ValueError, match=r"latents_mean is \(0\.0, .* in vlm/vit/codec and \(0\.5, .* in vae"):
        check_copies(cfg, after)


def test_a_copy_of_an_encoder_from_elsewhere():
    second, statistics = numbered(LATENT, 1000.0)["vae"], replace(LATENT.vae, latents_std=(2.0,) * 8)
    cfg, params = with_copy(LATENT, numbered(LATENT), CODEC_IN_VISION, statistics, second)
    given = paths(params["vlm"]["vit"]["codec"])
    assert {path.split("/")[0] for path in given} == {"encoder", "quant_conv"}
    for path, leaf in given.items():
        np.testing.assert_array_equal(leaf, paths(second)[path])
    assert cfg.vlm.vision_config.codec == statistics and cfg.vae == LATENT.vae
    jax.tree.map(np.testing.assert_array_equal, params["vae"], numbered(LATENT)["vae"])


def test_what_cannot_be_copied_is_named():
    params = numbered(SEMANTIC)
    with pytest.raises(ValueError, match="vae/encoder is of type intern_vit_6b; AutoencoderKLQwenImage cannot be"):
        with_copy(SEMANTIC, params, VISION_IN_CODEC, VAEConfig(), params["vae"])
    narrow = numbered(LATENT)["vlm"]["vit"]  # its patches have other numbers
    with pytest.raises(ValueError, match=r"vae/encoder/\S+ is \(.*\), and what is to be copied there has \("):
        with_copy(SEMANTIC, params, VISION_IN_CODEC, SEMANTIC.vlm.vision_config, narrow)
    del params["vlm"]["vit"]["class_token"]
    with pytest.raises(ValueError, match=r"vae/encoder/class_token is \(64,\), and .* has nothing"):
        with_copies(SEMANTIC, params)
