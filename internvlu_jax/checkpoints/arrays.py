"""Trees of arrays on disk, written by Orbax; also what tells its errors from our own mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from internvlu_jax.utils.buckets import is_of_client
from internvlu_jax.utils.signals import interrupts_held


class CheckpointError(ValueError):
    """Arrays cannot be written, or cannot be read back."""


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes nested dicts of arrays. Raises CheckpointError if they cannot be written.

    Ctrl-C waits until they are: threads of Orbax's would write on below whoever removes what is half written.
    """
    failed = orbax_errors(f"{path} cannot be written")
    with interrupts_held(), failed, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, arrays)


def array_shapes(path: Path) -> dict[str, Any]:
    """What `write_arrays` wrote, as `jax.ShapeDtypeStruct`. Raises CheckpointError if it cannot be read."""
    with orbax_errors(f"{path} cannot be read"):
        # The handler and not a checkpointer, which looks for a file that the parts of a checkpoint do not have.
        tree = ocp.StandardCheckpointHandler().metadata(epath.Path(path)).tree
    return jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), tree, is_leaf=lambda node: not isinstance(node, dict)
    )


def targets(shapes: Any, max_dtype: str | None = None, on_host: bool = True) -> Any:
    """What `read_arrays` is to make of arrays: numpy arrays, or arrays on the default device; none over `max_dtype`."""
    sharding = None if on_host else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, at_most(s.dtype, max_dtype), sharding=sharding), shapes)


def targets_like(tree: Any) -> Any:
    """What `read_arrays` is to make of arrays: such as those of `tree`, arrays or shapes, with the same shardings."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None)), tree)


def read_arrays(path: Path, specs: Any) -> Any:
    """Reads what `write_arrays` wrote as `specs` says, see `targets`; what says no sharding is read as numpy arrays.

    Raises:
        CheckpointError: it cannot be read, or does not fit.
    """
    # A StandardCheckpointer would put what says no sharding where it lay when it was written, and fail without that.
    how = ocp.args.PyTreeRestore(specs, ocp.checkpoint_utils.construct_restore_args(specs))
    with orbax_errors(f"{path} cannot be read"), ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path, how)


def at_most(dtype: Any, max_dtype: str | None) -> np.dtype:
    """`dtype`, or `max_dtype` if that is narrower."""
    dtype = jnp.dtype(dtype)
    return dtype if max_dtype is None or dtype.itemsize <= jnp.dtype(max_dtype).itemsize else jnp.dtype(max_dtype)


@contextmanager
def orbax_errors(failed: str) -> Iterator[None]:
    """What Orbax raises for missing or bad data becomes a `CheckpointError` that says what failed and why.

    It raises OSError, ValueError (TensorStore's errors and bad JSON too), KeyError where a part of a checkpoint is
    missing, a bare Exception where the data of an array cannot be read, and what the clients of buckets raise. Anything
    else is a mistake in code.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError | ValueError | KeyError) or type(error) is Exception or is_of_client(error)):
            raise
        reason = " ".join(str(error).split()).partition(" [tensorstore_spec=")[0] or type(error).__name__
        if len(reason) > 400:
            reason = f"{reason[:200]} ... {reason[-200:]}"  # the cause stands at the end
        raise CheckpointError(f"{failed}: {reason}") from error
