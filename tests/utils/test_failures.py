"""What a machine lacks, in words; and what begins JAX's backend prepares it."""

import io
import os
import subprocess
import sys

import jax
import pytest

from internvlu_jax.utils.failures import check_accelerator, out_of_memory, say


def test_the_backend_begins_prepared(monkeypatch):
    """Flags that come after it change nothing: simulated devices would wait for one another for ever."""
    flags = []
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    monkeypatch.setattr(jax, "devices", lambda: flags.append(os.environ["XLA_FLAGS"]))
    check_accelerator()
    assert flags == ["--xla_force_host_platform_device_count=8 --xla_cpu_enable_concurrency_optimized_scheduler=false"]


def test_only_a_lack_of_memory_is_said():
    assert out_of_memory(MemoryError()).startswith("out of memory: MemoryError. Take smaller pictures")
    assert "RESOURCE_EXHAUSTED: 5 GB" in out_of_memory(RuntimeError("RESOURCE_EXHAUSTED:\n5 GB"))
    other = RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError) as raised:
        out_of_memory(other)
    assert raised.value is other


def test_nobody_reads_what_is_left(tmp_path):
    """As after `--help | head`."""
    code = "import sys; from internvlu_jax.cli import main; sys.exit(main(['image', '--help']))"
    process = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_a_character_that_the_output_cannot_hold_ends_nothing(monkeypatch):
    for encoding, said in (("utf-8", "é \\udce9\n"), ("ascii", "\\xe9 \\udce9\n")):
        output = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding, "strict"))
        say("é \udce9")
        assert output.getvalue().decode(encoding) == said
