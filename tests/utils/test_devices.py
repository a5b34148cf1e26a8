"""Simulated devices run their collectives in one order, unless the user says otherwise."""

import os

import pytest

from internvlu_jax.utils.devices import order_simulated_collectives

EIGHT, ORDERED = "--xla_force_host_platform_device_count=8", "--xla_cpu_enable_concurrency_optimized_scheduler"


@pytest.mark.parametrize(
    ("flags", "devices", "after"),
    [
        (EIGHT, None, f"{EIGHT} {ORDERED}=false"),
        (f"{EIGHT} {ORDERED}=true", None, f"{EIGHT} {ORDERED}=true"),
        ("", "4", f"{ORDERED}=false"),
        ("--xla_dump_to=x", None, "--xla_dump_to=x"),
        ("", "1", ""),
    ],
)
def test_flags(monkeypatch, flags, devices, after):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    if devices is not None:
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", devices)
    order_simulated_collectives()
    assert os.environ["XLA_FLAGS"] == after
