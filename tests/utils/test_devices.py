"""On a CPU operations run in one order, unless the user says otherwise; simulated devices have threads for many.

And of cards that share a name each has its own peak.
"""

import os

import pytest

from internvlu_jax.utils.devices import bfloat16_peak, prepare_cpu

EIGHT, ORDERED = "--xla_force_host_platform_device_count=8", "--xla_cpu_enable_concurrency_optimized_scheduler"


@pytest.mark.parametrize(
    ("flags", "devices", "threads", "after", "threads_after"),
    [
        (EIGHT, None, None, f"{EIGHT} {ORDERED}=false", "128"),
        (f"{EIGHT} {ORDERED}=true", None, "9", f"{EIGHT} {ORDERED}=true", "9"),
        ("", "4", None, f"{ORDERED}=false", "64"),
        ("--xla_dump_to=x", None, None, f"--xla_dump_to=x {ORDERED}=false", None),
        ("", "1", None, f"{ORDERED}=false", None),
    ],
)
def test_flags(monkeypatch, flags, devices, threads, after, threads_after):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("PJRT_NPROC", threads or "")
    if threads is None:
        monkeypatch.delenv("PJRT_NPROC")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    if devices is not None:
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", devices)
    prepare_cpu()
    assert os.environ["XLA_FLAGS"] == after
    assert os.environ.get("PJRT_NPROC") == threads_after


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12), ("NVIDIA H200 NVL", 835e12), ("NVIDIA GH200 480GB", 989e12), ("cpu", None),
    ],
)  # fmt: skip
def test_peaks(kind, peak):
    assert bfloat16_peak(kind) == peak
