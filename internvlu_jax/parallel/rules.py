"""Where parameters lie on a mesh: one table, read by the end of a path.

Adam's moments, the moving average and gradients have the paths of their parameters with something before them, so the
table holds for them too.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

_F, _T, _FT = ("fsdp",), ("tensor",), ("fsdp", "tensor")

# (end of the path, mesh axes of the array's last dimensions); the first that fits decides. What leads, the axis of
# stacked layers, is never shared out: the scan takes one layer of it at a time. What no row fits is small (biases,
# norms, and the VAE, whose 45 million numbers every step reads) and lies whole on every device.
_RULES: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    (r"(q|k|v)/kernel", (_F, _T, ())),
    (r"qkv/kernel", (_F, (), _T, ())),
    (r"out/kernel", (_T, (), _F)),
    (r"(fc1|gate|up|context_in|latent_in)/kernel", (_F, _T)),
    (r"(fc2|down)/kernel", (_T, _F)),
    # Along the input, so that what it makes for a row, six vectors, is whole where it is used.
    (r"(mod|norm_out)/kernel", (_FT, (), ())),
    # Along the width: a row of ids finds its slices on every device, and only what was found is exchanged.
    (r"embed/embedding", ((), _FT)),
    # Along the vocabulary: `Qwen3.logits` brings the few rows that are scored to the weights.
    (r"lm_head/kernel", ((), _FT)),
    (r"(q|k|v)/lora_b", ((), _T, ())),
    (r"qkv/lora_b", ((), (), _T, ())),
    (r"(fc1|gate|up)/lora_b", ((), _T)),
    (r"(q|k|v|qkv|fc1|gate|up)/lora_a", (_F, ())),
    (r"out/lora_a", (_T, (), ())),
    (r"(fc2|down)/lora_a", (_T, ())),
    (r"(out|fc2|down)/lora_b", ((), _F)),
)
_COMPILED = tuple((re.compile(f"(.*/)?(?:{pattern})"), axes) for pattern, axes in _RULES)


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of NamedSharding like `tree`, of arrays or of shapes.

    An axis of the mesh that does not divide its dimension joins the other axis of the array, and is left out where it
    does not divide there either: 12 heads on 8 devices along tensor are shared out by their width.
    """

    def one(keys: Any, leaf: Any) -> NamedSharding:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        return NamedSharding(mesh, spec(path, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The axes of one array, from its path in a tree, joined with "/"."""
    fits = (axes for pattern, axes in _COMPILED if pattern.fullmatch(path) and len(axes) <= len(shape))
    axes = next(fits, ())
    places = {axis: len(shape) - len(axes) + n for n, some in enumerate(axes) for axis in some}
    taken: list[list[str]] = [[] for _ in shape]
    for own in (True, False):  # every axis at its own place before one joins another
        for axis in places:
            if mesh.shape[axis] == 1 or any(axis in axes for axes in taken):
                continue
            for place in [places[axis]] if own else places.values():
                if shape[place] % math.prod(mesh.shape[a] for a in (*taken[place], axis)) == 0:
                    taken[place].append(axis)
                    break
    return _partition(taken)


def _partition(taken: list[list[str]]) -> PartitionSpec:
    """As short as it can be: equal placements must be equal objects, or programs are compiled again for them."""
    while taken and not taken[-1]:
        taken.pop()
    return PartitionSpec(*(tuple(axes) if len(axes) > 1 else axes[0] if axes else None for axes in taken))
