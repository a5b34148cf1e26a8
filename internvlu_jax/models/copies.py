"""Frozen copies: an encoder of one side of the model that a member of the other side's slot holds among its parameters.

    vlm/vit/codec    of `LatentVision`     copies    vae        (the encoder; there is no decoder in the copy)
    vae/encoder      of `SemanticCodec`    copies    vlm/vit

Copies keep the wiring of the model as it is: each part still needs its own parameters alone. They are made once, before
training, and stay equal because a run freezes both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from internvlu_jax.config import InternVLUConfig, LatentVision, SemanticCodec
from internvlu_jax.utils.tree import Tree, from_paths, paths

CODEC_IN_VISION = "vlm/vit/codec"
VISION_IN_CODEC = "vae/encoder"
_ORIGINALS = {CODEC_IN_VISION: "vae", VISION_IN_CODEC: "vlm/vit"}


def copies(cfg: InternVLUConfig) -> tuple[str, ...]:
    """Where the model holds frozen copies: the starts of their parameters' paths."""
    there = {
        CODEC_IN_VISION: isinstance(cfg.vlm.vision_config, LatentVision),
        VISION_IN_CODEC: isinstance(cfg.vae, SemanticCodec),
    }
    return tuple(place for place, is_there in there.items() if is_there)


def with_copies(cfg: InternVLUConfig, params: Tree) -> Tree:
    """The parameters with every frozen copy made from its original.

    Raises:
        ValueError: a copy's config or its shapes are not those of its original.
    """
    for place in copies(cfg):
        _check_configs(cfg, place)
        params = with_copy(params, place, _below(params, _ORIGINALS[place]))
    return params


def with_copy(params: Tree, place: str, original: Mapping[str, Any]) -> Tree:
    """The parameters with those of `original` at `place`, which may be less than all of `original`.

    Args:
        place: the start of the paths of what is replaced. original: by path from there.

    Raises:
        ValueError: `original` lacks a parameter, or it has another shape.
    """
    leaves = paths(params)
    for path, leaf in _below(params, place).items():
        if path not in original or original[path].shape != leaf.shape:
            has = original[path].shape if path in original else "nothing"
            raise ValueError(f"{place}/{path} is {leaf.shape} and what it is to copy has {has}")
        leaves[f"{place}/{path}"] = original[path]
    return from_paths(leaves)


def check_copies(cfg: InternVLUConfig, params: Tree) -> None:
    """Raises ValueError, naming the first leaf or field, if a frozen copy is not bit for bit its original."""
    for place in copies(cfg):
        _check_configs(cfg, place)
        source = _ORIGINALS[place]
        original = _below(params, source)
        for path, leaf in _below(params, place).items():
            if not np.array_equal(leaf, original[path], equal_nan=True):
                raise ValueError(f"{place}/{path} is not {source}/{path}: make the copies anew, and freeze both")


def _check_configs(cfg: InternVLUConfig, place: str) -> None:
    """What a copy computes depends on its config, too: the statistics of the latents are not among the parameters."""
    vision: Any = cfg.vlm.vision_config
    copy, original = (vision.codec, cfg.vae) if place == CODEC_IN_VISION else (cfg.vae.encoder, vision)
    if type(copy) is not type(original):
        raise ValueError(f"{place} is of type {copy.model_type}, and what it is to copy {original.model_type}")
    for field in dataclasses.fields(copy):
        ours, theirs = getattr(copy, field.name), getattr(original, field.name)
        if ours != theirs:
            raise ValueError(f"{place}: {field.name} is {ours}, and {theirs} in what it is to copy")


def _below(params: Tree, start: str) -> dict[str, jax.Array]:
    """The parameters below a path, by what is left of theirs."""
    start += "/"
    return {path.removeprefix(start): leaf for path, leaf in paths(params).items() if path.startswith(start)}
