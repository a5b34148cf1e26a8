"""Adapters of a pipeline, under the names that diffusers has for them: loaded, weighted, several at once, unloaded.

Updates are folded into the kernels, so that calls cost what they cost without. What was there is kept where it lies,
and put back as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters.adapters import Adapter, Factors, linear_maps
from internvlu_jax.checkpoints.adapters import checked_scale, find_adapter, joined
from internvlu_jax.config import InternVLUConfig
from internvlu_jax.inference.chat import ChatCache
from internvlu_jax.inference.layers import STACK, changed_layer
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.models.lora import folded
from internvlu_jax.models.quantization import is_quantized
from internvlu_jax.parallel.placement import Placement
from internvlu_jax.utils.tree import from_paths, paths


@partial(jax.jit, static_argnums=0)
def _folded(model: InternVLU, params: Params, a: Any, b: Any) -> jax.Array:
    return folded(params["kernel"], a, b)


class WithAdapters:
    """The part of the pipeline that has adapters."""

    config: InternVLUConfig
    params: Params
    model: InternVLU
    on: Placement
    _kept: dict[Any, Any]
    _conversation: ChatCache

    def __init__(self) -> None:
        self._adapters: dict[str, Adapter] = {}
        self._weights: dict[str, float] = {}
        self._before: dict[str, jax.Array] = {}

    def load_lora_weights(self, path: str | Path, adapter_name: str | None = None, *, scale: float = 1.0) -> None:
        """Loads an adapter and adds its update to the kernels: W + scale * (alpha / r) B A, worked out in float32.

        All that are loaded work together; `set_adapters` says which of them, and how much. The kernels that it changes
        are held twice from then on. What earlier calls gave for use in later ones (`encode_prompt`, a conversation)
        is of the model as it was.

        Args:
            path: a directory with `adapter_config.json` and `adapter_model.safetensors` (PEFT's layout), or with such a
                directory for each part; a Hub id of one; or a run of ours with adapters.
            adapter_name: by which it is known here; the last part of `path` if none is given.
            scale: beside its own.

        Raises:
            ValueError: there is none, the name is taken, or it does not fit: everything that is wrong with it is named.
                Or the kernels are in 8 bits. The pipeline is as it was.
        """
        name = Path(path).name if adapter_name is None else adapter_name
        if name in self._adapters:
            raise ValueError(f"adapter_name {name!r} is taken; delete_adapters({name!r}) first, or choose another name")
        scale = checked_scale(scale)
        adapter = find_adapter(path, self.config)
        self._refold({**self._adapters, name: adapter}, {**self._weights, name: scale})

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Chooses which of the loaded adapters work, and their scales: one for all, one each, or 1.

        Raises:
            ValueError: one is not loaded, or there are not as many scales.
        """
        names = self._known(adapter_names)
        weights = [1.0] if adapter_weights is None else adapter_weights
        scales = list(weights) if isinstance(weights, Sequence) else [weights]
        if len(scales) == 1:
            scales *= len(names)
        if len(scales) != len(names):
            raise ValueError(f"there are {len(scales)} adapter_weights for {len(names)} adapters; expected one each")
        self._refold(self._adapters, dict(zip(names, map(checked_scale, scales), strict=True)))

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Unloads some adapters. Raises ValueError if one is not loaded."""
        gone = self._known(adapter_names)
        adapters = {name: adapter for name, adapter in self._adapters.items() if name not in gone}
        self._refold(adapters, {name: scale for name, scale in self._weights.items() if name not in gone})

    def unload_lora_weights(self) -> None:
        """Unloads all adapters: the kernels are those from before, bit for bit."""
        self._refold({}, {})

    def get_active_adapters(self) -> dict[str, float]:
        """The scales of the adapters that work, by name."""
        return dict(self._weights)

    def _known(self, names: str | Sequence[str]) -> list[str]:
        chosen = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in chosen if name not in self._adapters]
        if unknown:
            loaded = ", ".join(self._adapters) or "none"
            raise ValueError(f"there are no adapters {', '.join(map(repr, unknown))}; loaded: {loaded}")
        return chosen

    def _refold(self, adapters: dict[str, Adapter], weights: dict[str, float]) -> None:
        """Kernels that hold these adapters, from what was there before any."""
        leaves = paths(self.params) | self._before
        factors = joined((adapters[name], scale) for name, scale in weights.items())
        in_8_bits = [path for path in factors if self.model.quantization and is_quantized(f"{path}/kernel")]
        if in_8_bits:
            raise ValueError(
                f"{len(in_8_bits)} maps that the adapters change have 8-bit weights ({in_8_bits[0]}, ...), to which no "
                "update can be added. Load the model without quantize; or fold the adapter in first, `internvlu-jax "
                "convert MODEL NEW --to orbax --adapter PATH`, and quantize NEW"
            )
        stack = {path: own for path, own in factors.items() if f"{path}/kernel" in leaves}
        new = {f"{path}/kernel": self._fold(leaves[f"{path}/kernel"], *own) for path, own in stack.items()}
        new |= self._fold_listed({path: own for path, own in factors.items() if path not in stack}, leaves)
        self._before = {path: leaves[path] for path in new}
        self.params = from_paths(leaves | new)
        self._adapters, self._weights = adapters, weights
        self._kept.clear()  # states of the kernels as they were
        self._conversation.clear()

    def _fold(self, kernel: jax.Array, a: np.ndarray, b: np.ndarray) -> jax.Array:
        new = self.on.run(_folded, self.model, {"kernel": kernel}, a, b)
        return new if new.sharding == kernel.sharding else jax.device_put(new, kernel.sharding)

    def _fold_listed(self, factors: dict[str, Factors], leaves: dict[str, Any]) -> dict[str, jax.Array]:
        """The same where the language model's layers are a list, on one device: layer by layer."""
        if not factors:
            return {}
        shapes = {path: shape for path, shape in linear_maps(self.config)[1].items() if path.startswith(f"{STACK}/")}
        new: dict[str, jax.Array] = {}
        for layer in range(self.config.vlm.llm_config.num_hidden_layers):
            own: dict[str, Any] = {}
            for path, shape in shapes.items():
                none = Factors(np.zeros((1, *shape.inputs, 0), "f"), np.zeros((1, 0, *shape.outputs), "f"))
                given = factors.get(path)
                here = none if given is None else Factors(given.a[layer, None], given.b[layer, None])
                own[path.removeprefix(f"{STACK}/")] = here
            prefix = f"{STACK}/{layer}/"
            kernels = {
                path.removeprefix(prefix): leaf
                for path, leaf in leaves.items()
                if path.startswith(prefix) and path.endswith("/kernel")
            }
            new |= {prefix + path: kernel for path, kernel in changed_layer(kernels, own).items()}
        return new
