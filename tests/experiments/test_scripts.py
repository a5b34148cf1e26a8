"""Scripts that say in one line what a user can put right, with status 2 and before any work."""

import pytest

from experiments import attention, benchmark, overfit, writing
from experiments.small_world import sheets


def one_line(capsys) -> str:
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_overfit_in_no_directory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(overfit, "enable_cache", lambda: None)
    monkeypatch.setattr(overfit, "records", lambda _: 1 / 0)
    (tmp_path / "file").touch()
    assert overfit.main(overfit.Arguments(tmp_path / "file" / "run")) == 2
    assert "file is a file; expected a directory" in one_line(capsys)


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (attention.main, attention.Arguments(repeats=0), "--repeats is 0"),
        (benchmark.main, benchmark.Arguments(("text",), repeats=0), "--repeats is 0"),
        (writing.measure, writing.Arguments(rounds=0), "--rounds is 0"),
    ],
)
def test_nothing_is_timed_no_times(main, arguments, said):
    with pytest.raises(ValueError, match=f"{said}; expected at least 1"):
        main(arguments)


def test_sheets_of_a_world_that_lacks_tasks(tmp_path):
    """Those that it has."""
    assert sheets.main(sheets.Arguments(tmp_path, world="xs", side=16)) == 0
    assert {"world_general.png", "world_reasoning.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "world_text.png" not in {path.name for path in tmp_path.iterdir()}


def test_sheets_of_no_world_or_to_no_directory(tmp_path, capsys):
    assert sheets.main(sheets.Arguments(tmp_path, world="nosuch")) == 2
    assert "the world is 'nosuch'; expected one of small, " in one_line(capsys)
    (tmp_path / "file").touch()
    assert sheets.main(sheets.Arguments(tmp_path / "file", side=16)) == 2
    assert "file is a file; expected a directory" in one_line(capsys)
