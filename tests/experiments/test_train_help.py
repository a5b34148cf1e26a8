"""What `train CONFIG --help` says: the page of the command, and a word on every option."""

import re

import pytest

from experiments.configs import CONFIGS
from experiments.train import main


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_is_explained(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    page, _, options = capsys.readouterr().out.partition("-h, --help")
    assert "config.json     the configuration with every override" in page
    starts = re.split(r"^[ │]+(--[a-z][\w.-]*)", options, flags=re.MULTILINE)[1:]
    shown = dict(zip(starts[::2], starts[1::2], strict=True))
    assert len(shown) > 50 and {"--workdir", "--start", "--data.shuffle", "--mesh.fsdp"} <= set(shown)
    # Its values, then, after spaces or on the next line, what it is and its default.
    texts = {option: re.split(r"\s{2,}|\n", text, maxsplit=1)[1].strip(" │\n") for option, text in shown.items()}
    assert not [option for option, text in texts.items() if text.startswith("(default:")]
    assert "batch_size:" not in options  # each where its option is, not all in one paragraph
