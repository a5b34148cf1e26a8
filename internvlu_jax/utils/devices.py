"""Devices before and behind JAX: simulated ones in step, and what accelerators can do at most."""

from __future__ import annotations

import os

import jax

# Dense bfloat16 operations a second by the start of `device_kind`, from the makers' data sheets; the first one counts.
_PEAK = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def bfloat16_peak(kind: str | None = None) -> float | None:
    """Dense bfloat16 operations a second of one device; None where that is not known.

    kind: as in `jax.Device.device_kind`; that of the first device if None.
    """
    kind = jax.devices()[0].device_kind if kind is None else kind
    return next((peak for name, peak in _PEAK.items() if kind.startswith(name)), None)


_SIMULATED, _CONCURRENT = "--xla_force_host_platform_device_count", "--xla_cpu_enable_concurrency_optimized_scheduler"


def order_simulated_collectives() -> None:
    """Makes several simulated CPU devices run their collectives in one order; does nothing where there are none.

    In the order that XLA's CPU runtime prefers, one device may wait in one collective for others that wait for it in
    another, until the process is aborted. Call it before JAX makes its backend; what the user said in XLA_FLAGS stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    simulated = _SIMULATED in flags or int(os.environ.get("JAX_NUM_CPU_DEVICES") or 1) > 1
    if simulated and _CONCURRENT not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_CONCURRENT}=false".lstrip()
