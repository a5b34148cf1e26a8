"""Measures and conversions that several tests use."""

import numpy as np


def relative_l2(got, want) -> float:
    """|got - want| / |want| over all entries, in float64."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shape {got.shape} is not {want.shape}"
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def assert_close(got, want, tolerance: float = 1e-5, what: str = "") -> None:
    error = relative_l2(got, want)
    assert error <= tolerance, f"{what}: relative L2 {error:.2e} is over {tolerance:.0e}"


def channels_last(x):
    """Goldens keep pictures and latents channels first; the package keeps them last."""
    return np.moveaxis(np.asarray(x), -3, -1)


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, -3)
