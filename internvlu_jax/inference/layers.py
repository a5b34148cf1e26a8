"""How serving runs through the language model's layers."""

from __future__ import annotations

from dataclasses import replace

import jax

from internvlu_jax.config import Compute
from internvlu_jax.models.internvlu import Params
from internvlu_jax.models.qwen3 import as_list

# Bytes of all layers from which a list of them pays. Below, caches hold them, and a token costs little either way.
# Measured on two busy CPU cores: 8 layers of width 1024 (0.5 GB) wrote 2.9 times as fast from a list. What it costs is
# compilation, once: at the released sizes 11 s in place of 2 s for reading a prompt, 28 s in place of 4 s for writing.
# The vision encoder (1.03 times as fast) and the head (1.13 times at 256 x 256, less with more tokens) compute much
# with each weight, so they always scan.
_LIST_FROM = 2**26


def listed(compute: Compute, params: Params) -> Compute:
    """`compute` with `layers` as the parameters now are: a list where that pays, for which `params` is changed.

    No more than one array is held twice meanwhile. Of parameters on one device.
    """
    stack = params["vlm"]["llm"]["layers"]
    if sum(leaf.nbytes for leaf in jax.tree.leaves(stack)) < _LIST_FROM:
        return compute
    params["vlm"]["llm"]["layers"] = as_list(stack)
    return replace(compute, layers="unrolled")
