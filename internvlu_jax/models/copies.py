"""Frozen copies: an encoder of one side of the model that a member of the other side's slot holds among its parameters.

    vlm/vit/codec    of `LatentVision`, `CodeVision`    copies    vae    (the encoder; the copy has no decoder)
    vae/encoder      of `SemanticCodec`                 copies    vlm/vit

Copies keep the wiring of the model as it is: each part still needs its own parameters alone. They are made once, before
training, and stay equal because a run freezes both. A copy is parameters and config: what normalises latents stands in
the config.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from internvlu_jax.config import CodeVision, InternVLUConfig, LatentVision, SemanticCodec
from internvlu_jax.utils.tree import Tree, from_paths, paths

CODEC_IN_VISION = "vlm/vit/codec"
VISION_IN_CODEC = "vae/encoder"
_ORIGINALS = {CODEC_IN_VISION: "vae", VISION_IN_CODEC: "vlm/vit"}


def copies(cfg: InternVLUConfig) -> tuple[str, ...]:
    """Where the model holds frozen copies: the starts of their parameters' paths."""
    codec = (CODEC_IN_VISION,) if isinstance(cfg.vlm.vision_config, LatentVision | CodeVision) else ()
    return (*codec, *((VISION_IN_CODEC,) if isinstance(cfg.vae, SemanticCodec) else ()))


def with_copies(cfg: InternVLUConfig, params: Tree) -> tuple[InternVLUConfig, Tree]:
    """The model with every frozen copy made from its original.

    Raises:
        ValueError: an original cannot stand in the place of its copy; names it.
    """
    for place in copies(cfg):
        cfg, params = with_copy(cfg, params, place, _original(cfg, place), below(params, _ORIGINALS[place]))
    return cfg, params


def with_copy(
    cfg: InternVLUConfig, params: Tree, place: str, original_cfg: Any, original: Tree
) -> tuple[InternVLUConfig, Tree]:
    """The model with a copy of any encoder at `place`.

    Args:
        place: one of `copies(cfg)`.
        original_cfg, original: of the part that has the encoder, a whole VAE or a vision encoder.

    Raises:
        ValueError: it cannot stand there: its config is of another type, or a parameter is missing or of another shape.
    """
    present = _copy(cfg, place)
    if type(original_cfg) is not type(present):
        raise ValueError(f"{place} is of type {present.model_type}; {original_cfg.model_type} cannot be copied there")
    leaves, given = paths(params), paths(original)
    for path, leaf in paths(below(params, place)).items():
        if path not in given or given[path].shape != leaf.shape:
            has = given[path].shape if path in given else "nothing"
            raise ValueError(f"{place}/{path} is {leaf.shape}, and what is to be copied there has {has}")
        leaves[f"{place}/{path}"] = given[path]
    return _with_config(cfg, place, original_cfg), from_paths(leaves)


def check_copies(cfg: InternVLUConfig, params: Tree) -> None:
    """Raises ValueError, naming the first field or leaf, if a frozen copy is not bit for bit its original."""
    for place in copies(cfg):
        copy, original, source = _copy(cfg, place), _original(cfg, place), _ORIGINALS[place]
        if type(copy) is not type(original):
            raise ValueError(f"{place} is of type {copy.model_type}, and {source} of type {original.model_type}")
        for field in dataclasses.fields(copy):
            ours, theirs = getattr(copy, field.name), getattr(original, field.name)
            if ours != theirs:
                raise ValueError(f"{field.name} is {ours} in {place} and {theirs} in {source}: make the copies anew")
        given = paths(below(params, source))
        for path, leaf in paths(below(params, place)).items():
            if not np.array_equal(leaf, given[path]):
                raise ValueError(f"{place}/{path} is not {source}/{path}: make the copies anew, and freeze both")


def below(params: Tree, start: str) -> Tree:
    """The parameters below a path."""
    for name in start.split("/"):
        params = params[name]
    return params


def _copy(cfg: InternVLUConfig, place: str) -> Any:
    vision: Any = cfg.vlm.vision_config
    return vision.codec if place == CODEC_IN_VISION else cfg.vae.encoder


def _original(cfg: InternVLUConfig, place: str) -> Any:
    return cfg.vae if place == CODEC_IN_VISION else cfg.vlm.vision_config


def _with_config(cfg: InternVLUConfig, place: str, copy: Any) -> InternVLUConfig:
    if place == VISION_IN_CODEC:
        return dataclasses.replace(cfg, vae=dataclasses.replace(cfg.vae, encoder=copy))
    vision: Any = cfg.vlm.vision_config
    return dataclasses.replace(
        cfg, vlm=dataclasses.replace(cfg.vlm, vision_config=dataclasses.replace(vision, codec=copy))
    )
