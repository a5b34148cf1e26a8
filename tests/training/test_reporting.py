"""The file of metrics: what is kept of it when a run goes on, what is not one; and what a tracker is told."""

import json
import sys

import pytest

from internvlu_jax.config import ConfigError
from internvlu_jax.training import reporting
from internvlu_jax.training.reporting import MetricsFile, Records, check_tracker
from internvlu_jax.utils.buckets import BucketError, path_of
from tests.helpers.bucket import in_process
from tests.helpers.tracker import stand_in


def test_lines_past_the_step_and_cut_ones_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.5}) + "\n" for step in (1, 2, 3, 4)]
    path.write_text("".join(lines) + '{"step": 5, "lo')
    metrics = MetricsFile(path, 3)
    metrics.write({"step": 4, "loss": 2.0})
    metrics.close()
    assert path.read_text() == "".join(lines[:3]) + '{"step": 4, "loss": 2.0}\n'


def test_in_a_bucket_lines_are_there_when_they_are_asked_for_and_after_a_minute(monkeypatch, caplog):
    with in_process(monkeypatch) as service:
        workdir = path_of("gs://bucket/run")
        lines = "".join(json.dumps({"step": step, "loss": 1.5}) + "\n" for step in (1, 2, 3))
        service.put("run/metrics.jsonl", lines.encode() + b'{"step": 4, "lo')
        there = lambda: [json.loads(line)["step"] for line in service.objects["run/metrics.jsonl"][0].splitlines()]  # noqa: E731
        records = Records(workdir, 9, 2, write=True, show=False)
        assert there() == [1, 2], "what a killed run wrote past the step that is resumed from is cut off"
        records.write(3, {"loss": 2.0}, "")
        assert there() == [1, 2]
        records.flush()
        assert there() == [1, 2, 3]
        monkeypatch.setattr(reporting, "_SECONDS_BETWEEN_UPLOADS", 0.0)
        records.write(4, {"loss": 2.0}, "")
        assert there() == [1, 2, 3, 4]
        service.refuses = lambda method, name: 403
        records.write(5, {"loss": 2.0}, "")
        assert "gs://bucket/run/metrics.jsonl cannot be written" in caplog.text
        with pytest.raises(BucketError):
            records.flush()
        service.refuses = lambda method, name: None
        records.close()
        assert there() == [1, 2, 3, 4, 5] and service.names() == ["run/metrics.jsonl"], "no TensorBoard files"


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


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_is_told_what_the_file_is(tmp_path, monkeypatch, name):
    """And a run that goes on is the same run there, another one in a directory of the same name is not."""
    calls = stand_in(monkeypatch, name)
    check_tracker(name)
    for parent, done in (("a", 0), ("a", 1), ("b", 0)):
        workdir = tmp_path / parent / "mine"
        records = Records(workdir, 2, done, write=True, show=False, tracker=(name, {"steps": 2}))
        records.write(done + 1, {"loss": 0.5, "rate": 1e-3}, "fast")
        records.close()
    assert [function for function, *_ in calls] == ["init", "log", "finish"] * 3
    first, again, other = (named for function, _, named in calls if function == "init")
    assert first == again and first["config"] == {"steps": 2} and first["resume"] == "allow"
    assert first["name"].startswith("mine-") and first["name"] != other["name"]
    assert set(first) - {"project", "name", "config", "resume"} == ({"id", "dir"} if name == "wandb" else set())
    logged = [call for call in calls if call[0] == "log"]
    assert logged[1] == ("log", ({"loss": 0.5, "rate": 1e-3},), {"step": 2})


def test_a_tracker_is_imported_only_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    Records(tmp_path, 1, 0, write=True, show=False).close()
    Records(tmp_path, 1, 0, write=False, show=False, tracker=("wandb", {})).close()
    check_tracker(None)
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb").mkdir()  # as wandb itself leaves one, which Python takes for a package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match="report is 'wandb', which is not installed; pip install wandb"):
        check_tracker("wandb")
