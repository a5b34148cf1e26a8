"""Scripts that say in one line what a user can put right, with status 2 and before any work."""

from experiments import overfit
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


def test_sheets_of_no_world_or_to_no_directory(tmp_path, capsys):
    assert sheets.main(sheets.Arguments(tmp_path, world="nosuch")) == 2
    assert "the world is 'nosuch'; expected one of small, " in one_line(capsys)
    (tmp_path / "file").touch()
    assert sheets.main(sheets.Arguments(tmp_path / "file", side=16)) == 2
    assert "file is a file; expected a directory" in one_line(capsys)
