"""Devices before and behind JAX: simulated ones in step, and what accelerators can do at most."""

from __future__ import annotations

import os
import re
from typing import Any

import jax

# Dense bfloat16 operations a second by the start of `device_kind`, from the makers' data sheets; the first one counts.
_PEAK = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
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


def cuda_capability(device: Any) -> float:
    """Compute capability of a `jax.Device`; 0 where it is no CUDA device."""
    capability = str(getattr(device, "compute_capability", ""))  # ROCm says "gfx942" here
    return float(capability) if device.platform == "gpu" and re.fullmatch(r"\d+\.\d+", capability) else 0.0


_SIMULATED, _CONCURRENT = "--xla_force_host_platform_device_count", "--xla_cpu_enable_concurrency_optimized_scheduler"
_THREADS = "PJRT_NPROC"
_IN_FLIGHT = 16  # collectives of one device that threads are kept for


def prepare_cpu() -> None:
    """Has programs for a CPU run their operations one after another, and lets simulated devices finish theirs.

    XLA's CPU compiler otherwise begins what it can as early as it can. That is no faster here, and keeps what is not
    needed yet: a prompt through 28 layers of the released width in 8-bit weights took 5.6 GB, for all their float32
    copies at once, in place of 0.1.

    Several simulated devices would even wait for ever, until the process is aborted: one waits in one collective for
    others that wait for it in another, and one that has begun several holds a thread for each, until none is left for
    the device that they wait for. So collectives run in one order as far as XLA lets them, and there are threads for
    many. Call it before JAX makes its backend; what the user said in XLA_FLAGS and PJRT_NPROC stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    flagged = re.findall(rf"{_SIMULATED}=(\d+)", flags)
    count = int(flagged[-1] if flagged else os.environ.get("JAX_NUM_CPU_DEVICES") or 1)
    if _CONCURRENT not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_CONCURRENT}=false".lstrip()
    if count > 1:
        os.environ.setdefault(_THREADS, str(_IN_FLIGHT * count))
