"""The file of metrics: what is kept of it when a run goes on, and what is not a file of metrics."""

import json

import pytest

from internvlu_jax.training.reporting import MetricsFile


def test_lines_past_the_step_and_cut_ones_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.5}) + "\n" for step in (1, 2, 3, 4)]
    path.write_text("".join(lines) + '{"step": 5, "lo')
    metrics = MetricsFile(path, 3)
    metrics.write({"step": 4, "loss": 2.0})
    metrics.close()
    assert path.read_text() == "".join(lines[:3]) + '{"step": 4, "loss": 2.0}\n'


@pytest.mark.parametrize(
    "line", [b"null", b"{}", b"", b"\0\0", b"\xff", b"[1]", b'{"step": "1"}', b'{"step": null}', b"[" * 100_000]
)
def test_a_damaged_line_is_named(tmp_path, line):
    """And the file stays as it is."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: .* is not the metrics of a step"):
        MetricsFile(path, 5)
    assert path.read_bytes() == b'{"step": 1}\n' + line + b"\n"
