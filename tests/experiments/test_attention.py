"""The comparison times every way that runs here; its figures are no business of the tests."""

from experiments import attention
from experiments.attention import Arguments, Shape, main


def test_every_way_is_timed_and_named(monkeypatch, capsys):
    monkeypatch.setattr(attention, "CASES", {"vision": Shape(1, 40, 4, 2, 16, causal=True)})
    main(Arguments(("vision",), repeats=1))
    rows = [row for row in capsys.readouterr().out.splitlines() if "vision" in row]
    assert [[word for word in ("forward", "both", "xla", "chunked") if word in row] for row in rows] == [
        ["forward", "xla"],
        ["forward", "chunked"],
        ["both", "xla"],
        ["both", "chunked"],
    ]
