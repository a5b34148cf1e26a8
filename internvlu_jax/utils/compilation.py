"""How programs are compiled: kept on disk, in a directory that the user can change, or at the least cost."""

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


def compile_quickly() -> None:
    """From here on programs are compiled at the least cost: they are there soon, and run slowly.

    For processes whose programs run a few times. To be called before anything is computed.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    if jax.__version_info__ < (0, 11):  # later ones end at a flag that they do not know
        # On a CPU the emitters that are used by default take two thirds of the time, ten milliseconds a kernel.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()
