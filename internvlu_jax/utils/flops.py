"""Counts the operations of a JAX function from its jaxpr, without running it or allocating its arguments.

Counted: `dot_general` and `conv_general_dilated`, two operations for each multiply-add. Zeros that
padding or dilation puts into a convolution are counted as multiplied, as a plain implementation does. What is traced is
what is counted: a causal mask does not halve attention, and results that nobody uses are not left out.

Not counted: additions outside of products, activations, norms, softmax, rotary turns, sorting, gathers, random
numbers, casts. In the models here these are below one percent of the total.

Loops: a scan counts its body times its length; `cond` its dearest branch; a `while` whose body multiplies must be
given its number of rounds, because the jaxpr does not say it. Calls (jit, remat, custom derivatives) are followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Calls whose operations a jaxpr does not show, by the start of their names.
_OPAQUE = ("pallas_call", "dot_product_attention", "ragged_dot", "ffi_call", "custom_call", "scaled_matmul")


def count_flops(function: Callable[..., Any], *args: Any, while_rounds: int | None = None) -> int:
    """Operations of `function(*args)`; arguments are trees of arrays or `jax.ShapeDtypeStruct`.

    while_rounds: how often each `while` loop that multiplies goes round; fixed lengths become scans and do not need it.

    Raises ValueError if such a loop is found and its rounds are not given, if two of them are nested, or if a kernel is
    called that cannot be looked into (cuDNN attention: trace with attention "xla").
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr, while_rounds)


def jaxpr_flops(jaxpr: Jaxpr, while_rounds: int | None = None) -> int:
    """Operations of one jaxpr, see `count_flops`."""
    return sum(_equation_flops(equation, while_rounds) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn, while_rounds: int | None) -> int:
    name, params = equation.primitive.name, equation.params
    if name.startswith(_OPAQUE):
        raise ValueError(f"{name} cannot be counted: its jaxpr does not show what it computes; trace without it")
    match name:
        case "dot_general":
            return _dot_flops(equation)
        case "conv_general_dilated":
            return _conv_flops(equation)
        case "scan":
            return params["length"] * jaxpr_flops(params["jaxpr"].jaxpr, while_rounds)
        case "while":
            return _while_flops(params, while_rounds)
        case "cond":
            return max(jaxpr_flops(branch.jaxpr, while_rounds) for branch in params["branches"])
        case "shard_map":  # its jaxpr is one device's share
            return _manual_devices(params) * jaxpr_flops(params["jaxpr"], while_rounds)
    return sum(jaxpr_flops(inner, while_rounds) for inner in _inner_jaxprs(params.values()))


def _dot_flops(equation: JaxprEqn) -> int:
    left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * prod(out) * prod(left[axis] for axis in contracted)


def _conv_flops(equation: JaxprEqn) -> int:
    """Every output entry sums over the kernel's window and input channels, which are already those of one group."""
    kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
    summed = equation.params["dimension_numbers"].rhs_spec[1:]
    return 2 * prod(out) * prod(kernel[axis] for axis in summed)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _while_flops(params: dict[str, Any], rounds: int | None) -> int:
    """The test runs once more than the body."""
    try:
        test, body = (jaxpr_flops(params[part].jaxpr) for part in ("cond_jaxpr", "body_jaxpr"))
    except _UnknownRounds:
        raise ValueError("a while loop that multiplies holds another one; count the inner one by itself") from None
    if test + body == 0:
        return 0
    if rounds is None:
        raise _UnknownRounds("a while loop multiplies and its rounds are unknown; give while_rounds")
    return body * rounds + test * (rounds + 1)


class _UnknownRounds(ValueError):
    """A while loop that multiplies, without a number of rounds."""


def _manual_devices(params: dict[str, Any]) -> int:
    return prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])


def _inner_jaxprs(values: Any) -> Iterator[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner_jaxprs(value)
