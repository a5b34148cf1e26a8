"""The report goes on where it stopped, keeps what failed apart, and its sections run; figures are not the tests'."""

import json

import jax
import pytest

from experiments.device_report import __main__ as report
from experiments.device_report import parity, training
from experiments.device_report.sections import GOLDENS, Section, Settings


def arguments(out, **given):
    return report.Arguments(out, size="debug", **given)


@pytest.fixture
def sections(monkeypatch):
    """Three sections: one that gives figures, one that the device refuses, one that lasts an hour."""
    calls = []

    def good(settings):
        calls.append("good")
        return [{"case": "a", "seconds": 0.25}, {"case": "b", "of peak": 0.5}]

    def bad(settings):
        calls.append("bad")
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory\nmore lines")

    def long(settings):
        raise AssertionError("never begun")

    made = (
        Section("good", "It works.", 1, good),
        Section("bad", "It fails.", 1, bad),
        Section("long", "-", 3600, long),
    )
    monkeypatch.setattr(report, "SECTIONS", made)
    return calls


def test_a_report_and_going_on(tmp_path, sections, capsys):
    assert report.main(arguments(tmp_path)) == 1
    record = json.loads((tmp_path / "good.json").read_text())
    assert record["rows"][0] == {"case": "a", "seconds": 0.25}
    assert record["device"] == jax.devices()[0].device_kind and record["size"] == "debug" and record["jax"]
    page = (tmp_path / "report.md").read_text()
    assert "| a | 0.25 |  |" in page and "| b |  | 0.5 |" in page
    assert "JaxRuntimeError: RESOURCE_EXHAUSTED: no memory\n" in page and "Not begun." in page
    assert "long: not begun" in capsys.readouterr().out
    report.main(arguments(tmp_path))
    assert sections == ["good", "bad", "bad"], "what is there is not measured again; what failed is tried again"


def test_what_took_the_process_with_it_comes_last(tmp_path, sections):
    (tmp_path / "good.json").write_text(json.dumps(report.whole("debug")))
    report.main(arguments(tmp_path))
    assert sections == ["bad", "good"]


def test_another_device_is_refused(tmp_path, sections, capsys):
    (tmp_path / "good.json").write_text(json.dumps(report.whole("debug") | {"device": "TPU v9"}))
    assert report.main(arguments(tmp_path)) == 2
    assert "good.json: device is 'TPU v9'" in capsys.readouterr().err and not sections


def test_an_unknown_section_is_named(tmp_path, sections, capsys):
    assert report.main(arguments(tmp_path, sections=("best",))) == 2
    assert "'best'; expected some of good, bad, long" in capsys.readouterr().err


@pytest.mark.slow
def test_numbers_are_as_recorded():
    """What is compared: float32 on a CPU gives the recorded picture and words."""
    rows = parity.rows(GOLDENS / "base", "float32", ("text_image",))
    assert rows[0] == {"case": "text_image", "dtype": "float32", "texts equal": "yes"}
    assert [row["case"] for row in rows[1:]] == ["vision encoder", "VAE encoder", "language model"]
    assert all(row["relative L2"] < 1e-5 for row in rows[1:])


def test_missing_goldens_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"meta\.json is missing.*--goldens"):
        parity.rows(tmp_path, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", [section.name for section in report.SECTIONS])
def test_section_runs(name):
    (section,) = report.chosen((name,))
    rows = section.rows(Settings("debug", GOLDENS))
    assert rows and all(value == value for row in rows for value in row.values())


@pytest.mark.slow
def test_a_step_that_does_not_fit_when_it_runs_says_so_and_the_others_run(monkeypatch):
    seconds, calls = training._seconds, []

    def once(program, state, batch, key):
        calls.append(program)
        if len(calls) == 1:
            jax.tree.map(lambda leaf: leaf.delete(), state)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return seconds(program, state, batch, key)

    monkeypatch.setattr(training, "_seconds", once)
    first, *others = training.rows("debug", 1)
    assert first["memory, GB"] == "too much for this device" and "s a step" not in first
    assert others and all(row["s a step"] > 0 for row in others)
