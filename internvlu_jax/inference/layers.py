"""How serving runs through the language model's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.config_parts import Layers
from internvlu_jax.models.internvlu import Params
from internvlu_jax.models.lora import full_size
from internvlu_jax.models.qwen3 import as_list, as_stack
from internvlu_jax.utils.tree import from_paths, paths

STACK = "vlm/llm/layers"

# Bytes of all layers from which a list of them pays. Below, caches hold them, and a token costs little either way.
# Measured on two busy CPU cores: 8 layers of width 1024 (0.5 GB) wrote 2.9 times as fast from a list. What it costs is
# compilation, once: at the released sizes 11 s in place of 2 s for reading a prompt, 28 s in place of 4 s for writing.
# The vision encoder (1.03 times as fast) and the head (1.13 times at 256 x 256, less with more tokens) compute much
# with each weight, so they always scan.
_LIST_FROM = 2**26


def listed(vlm: Params) -> Params:
    """The parameters of the ViT and the language model with layers as serving has them: a list where that pays.

    Of parameters on one device. Their stack is emptied for it, and no more than the maps of one input are held twice.
    """
    stack = vlm["llm"]["layers"]
    if sum(leaf.nbytes for leaf in jax.tree.leaves(stack)) < _LIST_FROM:
        return vlm
    return {**vlm, "llm": {**vlm["llm"], "layers": as_list(stack)}}


def unlisted(params: Params, config: InternVLUConfig) -> Params:
    """All parameters as a checkpoint has them, whatever `listed` did; leaves as in `models.qwen3.as_stack`."""
    leaves = paths(params)
    if not any(path.startswith(f"{STACK}/0/") for path in leaves):
        return params
    llm = params["vlm"]["llm"]
    stack = as_stack(llm["layers"], config.vlm.llm_config)
    return {**params, "vlm": {**params["vlm"], "llm": {**llm, "layers": stack}}}


def layers_of(params: Params) -> Layers:
    """What `Compute.layers` has to be for a model's parameters."""
    return "unrolled" if "0" in params["vlm"]["llm"]["layers"] else "scan"


def changed_layer(kernels: Mapping[str, jax.Array], factors: Mapping[str, tuple[Any, Any]]) -> dict[str, jax.Array]:
    """The kernels of a layer of a list that updates change, with them, worked out in float32.

    Args:
        kernels: of the layer, by their path in it: attn/q_k_v/kernel.
        factors: of all maps as a stack of one layer has them, by their path: attn/q (see `models.lora.full_size`). Of
            no rank where a map does not change. float32.
    """
    changed = {path for path, (a, _) in factors.items() if a.shape[-1]}
    touched: dict[str, jax.Array] = {}
    for path, kernel in kernels.items():
        module, joined, _ = path.split("/")
        if any(f"{module}/{name}" in changed for name in joined.split("_")):
            touched[path] = kernel
    return _changed(touched, dict(factors))


@jax.jit
def _changed(kernels: dict[str, jax.Array], factors: dict[str, tuple[Any, Any]]) -> dict[str, jax.Array]:
    full = {path: full_size(jnp.asarray(a), jnp.asarray(b), stacked=True) for path, (a, b) in factors.items()}
    stack = from_paths({f"{path}/kernel": update for path, update in full.items()})
    updates = paths(as_list(stack)["0"])
    return {path: (kernel.astype(jnp.float32) + updates[path]).astype(kernel.dtype) for path, kernel in kernels.items()}
