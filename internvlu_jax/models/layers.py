"""What the transformers share: norms with parameters, linear maps per head, and the scan over a stack of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from internvlu_jax.config import Compute
from internvlu_jax.ops.axes import GROUP_ROWS, ROWS, VOCABULARY
from internvlu_jax.ops.norms import layer_norm, rms_norm

# The compiler has to be told how to share out activations in a few places: where weights are cut for storage it would
# otherwise cut the activations in the same way, and send those around instead of the weights. Without a mesh they
# stay as they are.


def rows_first(x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    """The residual stream: rows shared out, the tokens and the width of a row kept together."""
    return nn.with_logical_constraint(x, (ROWS, None, None))


def whole_group(x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    """Rows that meet weights cut over a group of devices: all the group's rows on each of its devices."""
    return nn.with_logical_constraint(x, (GROUP_ROWS, None, None))


def by_vocabulary(scores: Float[Array, "b s v"]) -> Float[Array, "b s v"]:
    """Scores of a group's rows, each device with its share of the vocabulary."""
    return nn.with_logical_constraint(scores, (GROUP_ROWS, None, VOCABULARY))


class RMSNorm(nn.Module):
    """`ops.norms.rms_norm` with its scale, which is cast to the dtype of x as every weight is where it is used."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return rms_norm(x, scale.astype(x.dtype), self.eps)


class LayerNorm(nn.Module):
    """`ops.norms.layer_norm` with its scale and bias; the result has the dtype of x."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps)


def linear(features: int | tuple[int, ...], compute: Compute, *, bias: bool = True, name: str) -> nn.DenseGeneral:
    """x W + b over the last axis; the parameters are cast to the compute dtype where they are used."""
    return nn.DenseGeneral(features, use_bias=bias, dtype=jnp.dtype(compute.dtype), name=name)


def merge_heads(features: int, compute: Compute, *, bias: bool = True, name: str) -> nn.DenseGeneral:
    """Linear map over the axes (heads, head width), of kernel [n, h, d]."""
    return nn.DenseGeneral(features, axis=(-2, -1), use_bias=bias, dtype=jnp.dtype(compute.dtype), name=name)


class OutputsFirst(nn.Module):
    """Linear map over the last axis, without a bias, of a kernel that leads with its outputs, [out, in].

    One row of x reads such a kernel from front to back, and maps of one input are one whose kernels lie one behind the
    other. On two CPU cores a token's maps (widths 1024 and 3072) read 19.7 GB/s so, 14.9 apart and inputs first, and a
    large matrix-vector product 20.2. With further axes XLA would copy the kernel before it is used.
    """

    features: int
    compute: Compute = Compute()

    use_bias = False
    dot_general = None

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.compute.dtype)

    @nn.compact
    def __call__(self, x: Float[Array, "*n p"]) -> Float[Array, "*n q"]:
        kernel = self.param("kernel", nn.initializers.zeros, (self.features, x.shape[-1]))
        summed = (x.ndim - 1,), (1,)
        return jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (summed, ((), ())))


def outputs_first(linear_map: dict[str, Array], inputs: int) -> dict[str, Array]:
    """The parameters of a linear map as `OutputsFirst` has them; inputs: axes of the kernel that are summed over."""
    kernel = linear_map["kernel"]
    width = prod(kernel.shape[:inputs])
    other = {name: leaf.reshape(-1) for name, leaf in linear_map.items() if name != "kernel"}  # scales of outputs
    return {**other, "kernel": kernel.reshape(width, -1).T}


def is_linear_call(context: nn.module.InterceptorContext) -> bool:
    """Whether what is intercepted is a linear map, called on its input."""
    maps = nn.Dense | nn.DenseGeneral | OutputsFirst
    return isinstance(context.module, maps) and context.method_name == "__call__"


def kernel_axes(path: Sequence[str], dimensions: int) -> tuple[int, int]:
    """Axes of layers, and of inputs, that the kernel of a linear map begins with.

    Stacks of layers have a leading axis that is no input. Only the maps called `out` sum over two, heads and width.

    Args:
        path: of the map, without its kernel. dimensions: of the kernel.
    """
    stack = int(any(name in ("layers", "blocks") for name in path))
    return stack, 2 if path[-1] == "out" and dimensions - stack == 3 else 1


def linear_activation_linear(
    x: Float[Array, "*n p"], hidden: int, features: int, activation: Callable[[Array], Array], compute: Compute
) -> Float[Array, "*n q"]:
    """The two linear maps `fc1` and `fc2` of the module that calls it."""
    x = linear(hidden, compute, name="fc1")(x)
    return linear(features, compute, name="fc2")(activation(x))


class MLP(nn.Module):
    """Linear, activation, linear."""

    hidden: int
    features: int
    activation: Callable[[Array], Array]
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "*n p"]) -> Float[Array, "*n q"]:
        return linear_activation_linear(x, self.hidden, self.features, self.activation, self.compute)


def exact_gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """GELU by the error function, as PyTorch's default."""
    return nn.gelu(x, approximate=False)


def rematerialised(block: Any, compute: Compute) -> Any:
    """The block class with what it keeps for its backward pass set by `compute.remat`."""
    if compute.remat == "none":
        return block
    # Batched products are those of attention: quadratic in the length, and cheap to do again.
    keep_linear = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policy = keep_linear if compute.remat == "dots" else jax.checkpoint_policies.nothing_saveable
    return nn.remat(block, policy=policy, prevent_cse=False)  # a scan needs no guard against merging


def stacked(block: Any, length: int, compute: Compute, in_axes: Any = ()) -> Any:
    """Module class that runs `length` blocks in turn, parameters and what is sown stacked on a leading axis.

    A block maps (carry, *inputs) to (carry, output). `in_axes` says per input whether it is sliced by layer (0) or
    the same for all (`nn.broadcast`).
    """
    return nn.scan(
        rematerialised(block, compute),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=length,
    )


class Unrolled(nn.Module):
    """`length` blocks one after another as `stacked` runs them, with parameters of their own, under their numbers."""

    block: Callable[..., Any]
    length: int
    in_axes: tuple[Any, ...]

    @nn.compact
    def __call__(self, carry: Any, *inputs: Any) -> tuple[Any, Any]:
        """The last carry, and the outputs of the blocks: one tree, each leaf a tuple. Inputs by layer may be such."""
        outputs = []
        for layer in range(self.length):
            own = [
                x if axis is nn.broadcast else _entry(x, layer) for x, axis in zip(inputs, self.in_axes, strict=True)
            ]
            carry, output = self.block(name=str(layer))(carry, *own)
            outputs.append(output)
        return carry, jax.tree.map(lambda *layers: layers, *outputs)


def _entry(tree: Any, layer: int) -> Any:
    """What belongs to a layer, of arrays that lead with the layers, or of plain tuples of arrays."""
    return jax.tree.map(lambda leaf: leaf[layer], tree, is_leaf=lambda node: type(node) is tuple)


def unstack(stack: dict[str, Any]) -> dict[str, Any]:
    """Stacked parameters of layers as those of `Unrolled`: {"0": layer 0, ...}.

    `stack` is emptied array by array, so that no more than one of them is held twice.
    """
    layers: dict[str, Any] = {}
    for name in list(stack):
        taken = stack.pop(name)
        parts = unstack(taken) if isinstance(taken, dict) else {str(i): taken[i] for i in range(taken.shape[0])}
        for layer, part in parts.items():
            layers.setdefault(layer, {})[name] = part
    return layers
