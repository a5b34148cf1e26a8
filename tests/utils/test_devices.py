"""Peaks by the names that devices have."""

import jax
import pytest

from internvlu_jax.training.throughput import peak_operations
from internvlu_jax.utils.devices import bfloat16_peak


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peak_of_a_device_by_its_name(kind, peak):
    assert bfloat16_peak(kind) == peak


def test_a_run_has_the_peaks_of_all_its_devices(monkeypatch):
    assert bfloat16_peak() is peak_operations() is None  # a CPU
    monkeypatch.setattr("internvlu_jax.training.throughput.bfloat16_peak", lambda: 2e12)
    assert peak_operations() == 2e12 * jax.device_count()
