"""Linear maps with 8-bit weights, without a change to the modules: smaller in memory, and faster where memory is slow.

    y = (x Q) s        Q [in, out] in 8 bits; s [out] float32, of each output's largest weight 1/127.5, or 1/448 in fp8

A quantised kernel stands in the parameter tree in its own dtype, and its scales beside it as `kernel_scale`; in a stack
of layers both are stacked. Whatever handles parameters by path handles them too. Within `quantized` every linear map
whose kernel is in 8 bits computes with them as they are. Rounding and products of two 8-bit operands are qwix's.

    int8        8-bit weights; activations stay as they are, so that nothing but the weights is rounded
    int8xint8   activations too, with a scale for each row, found as they come: 8-bit products
    fp8         the same in float8_e4m3fn

Norms, embeddings, the layers that read and write latents, the last layers' modulation and the VAE keep their dtype:
they are small, and what they do to the result is not.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from internvlu_jax.config import Quantization
from internvlu_jax.models.layers import OutputsFirst, is_linear_call, kernel_axes
from internvlu_jax.utils.devices import cuda_capability

SCALE = "kernel_scale"
_TYPES: dict[str, Any] = {"int8": jnp.int8, "int8xint8": jnp.int8, "fp8": jnp.float8_e4m3fn}
_CHOSEN = re.compile(
    r"(vlm/(vit/layers|projector|llm/layers|llm/lm_head)|head/mmdit/(blocks|last_block)/.+)(/.+)?/kernel"
)
_BLOCK = 2**24  # weights that are rounded at once
# Of NVIDIA's cards those from the H100 and the L4 on multiply such numbers, and TPUs from the seventh generation.
_FP8_NVIDIA, _FP8_TPU = 8.9, 7


class Kernel(NamedTuple):
    """A quantised kernel: values in 8 bits, and a float32 scale for each output."""

    values: Any
    scale: Any


def check_quantization(name: str, device: jax.Device) -> None:
    """Raises ValueError if weights cannot be quantised in a way, or not on a device."""
    if name not in get_args(Quantization):
        raise ValueError(f"quantize is {name!r}; expected one of {', '.join(get_args(Quantization))}")
    _qwix()
    if name == "fp8" and not _has_fp8(device):
        raise ValueError(f"quantize is 'fp8', which {device.device_kind} does not compute with; expected int8 there")


def _has_fp8(device: jax.Device) -> bool:
    if device.platform == "tpu":
        generation = re.search(r"\d+", device.device_kind)
        return generation is not None and int(generation[0]) >= _FP8_TPU
    return cuda_capability(device) >= _FP8_NVIDIA


def _qwix() -> Any:
    try:
        import qwix
    except ImportError as error:
        raise ValueError("quantising weights needs qwix; pip install 'internvlu-jax[quantize]'") from error
    return qwix


def is_quantized(path: str) -> bool:
    """Whether the parameter of a path is one of those that are quantised."""
    return _CHOSEN.fullmatch(path) is not None


def quantize(name: Quantization, path: str, array: np.ndarray) -> Kernel:
    """A kernel in 8 bits. A block of one layer's outputs at a time is on the default device meanwhile.

    Args:
        path: of the parameter, which says what its axes are: layers, inputs, outputs.
        array: any float dtype.
    """
    stack, inputs = kernel_axes(path.split("/")[:-1], array.ndim)
    outputs = array.shape[stack + inputs :]
    values, scale = np.empty(array.shape, _TYPES[name]), np.empty((*array.shape[:stack], *outputs), np.float32)
    width, rows = math.prod(outputs), math.prod(array.shape[stack : stack + inputs])
    kernels, rounded, scales = (a.reshape(-1, *shape) for a, shape in (
        (array, (rows, width)), (values, (rows, width)), (scale, (width,))
    ))  # fmt: skip
    block = max(1, _BLOCK // rows)
    for layer, begin in itertools.product(range(len(kernels)), range(0, width, block)):
        some = slice(begin, begin + block)
        rounded[layer, :, some], scales[layer, some] = jax.device_get(_rounded(name)(kernels[layer, :, some]))
    return Kernel(values, scale)


def placed(name: Quantization, place: Callable[[str, np.ndarray], Any], path: str, array: np.ndarray) -> Any:
    """What `place` makes of a parameter; of one that is quantised a `Kernel` of two. See `spread`."""
    if not is_quantized(path):
        return place(path, array)
    kernel = quantize(name, path, array)
    return Kernel(place(path, kernel.values), place(f"{path}_scale", kernel.scale))


@lru_cache
def _rounded(name: Quantization) -> Callable[[np.ndarray], tuple[jax.Array, jax.Array]]:
    qwix = _qwix()

    def rounded(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        whole = qwix.quantize(kernel.astype(jnp.float32), _TYPES[name], channelwise_axes=(1,))
        return whole.qvalue, whole.scale[0]

    return jax.jit(rounded)


def spread(params: Any) -> Any:
    """Nested dicts whose `Kernel`s are two parameters each. Those given are emptied: nothing is held for them."""
    if not isinstance(params, dict):
        return params
    flat: dict[str, Any] = {}
    for name in list(params):
        child = params.pop(name)
        if isinstance(child, Kernel):
            flat |= {name: child.values, f"{name}_scale": child.scale}
        else:
            flat[name] = spread(child)
    return flat


@contextmanager
def quantized(name: Quantization) -> Iterator[None]:
    """Linear maps that are traced within compute with their kernels as they are where these are in 8 bits."""

    def product(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not is_linear_call(context) or not module.has_variable("params", SCALE):
            return call(*args, **kwargs)
        kernel, scale = (module.get_variable("params", key) for key in ("kernel", SCALE))
        y = _product(name, jnp.asarray(args[0], module.dtype), kernel, scale, isinstance(module, OutputsFirst))
        if module.use_bias:
            y = y + module.get_variable("params", "bias")
        return y if module.dot_general is not None else y.astype(module.dtype)  # which gives float32 for itself

    with nn.intercept_methods(product):
        yield


def _product(name: Quantization, x: jax.Array, kernel: jax.Array, scale: jax.Array, leads: bool) -> jax.Array:
    """float32 [*rows, *out] of x [*rows, *in], kernel [*in, *out] in 8 bits, and scale [*out]; of a kernel [out, in]
    where it leads with its outputs."""
    inputs = kernel.ndim - scale.ndim
    rows, summed = x.ndim - inputs, (1,) if leads else tuple(range(inputs))
    contracted = (tuple(range(rows, x.ndim)), summed), ((), ())
    if name == "int8":
        whole = jax.lax.dot_general(x, kernel.astype(x.dtype), contracted, preferred_element_type=jnp.float32)
        return whole * scale
    qwix = _qwix()
    # qwix finds the scale, and divides by it, in the dtype that it is given: bfloat16 would round twice.
    left = qwix.quantize(x.astype(jnp.float32), _TYPES[name], channelwise_axes=range(rows))
    right = qwix.QArray(kernel, jnp.expand_dims(scale, summed))
    return qwix.dot_general(left, right, contracted, preferred_element_type=jnp.float32)
