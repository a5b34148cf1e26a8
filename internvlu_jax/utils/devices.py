"""What accelerators can do at most, by the name that JAX gives them."""

from __future__ import annotations

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
