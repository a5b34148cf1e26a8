"""JAX's persistent compilation cache: on by default, in a directory that the user can change."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def enable_cache(directory: str | Path | None = None) -> Path:
    """Keeps compiled programs on disk, so that a second process starts without compiling.

    The directory is, in this order: `directory`; the one JAX was already given (JAX_COMPILATION_CACHE_DIR); or
    `internvlu_jax/xla` in the user's cache directory (XDG_CACHE_HOME, ~/.cache). To turn the cache off set
    JAX_ENABLE_COMPILATION_CACHE=false.

    Returns: the directory in use.
    """
    given = jax.config.values.get("jax_compilation_cache_dir")
    if directory is None and given:
        return Path(given)
    if directory is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(base) / "internvlu_jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # Many functions of a small model compile in under JAX's default second; together they are the start-up.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return Path(directory)
