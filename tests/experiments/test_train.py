"""What the command of training says of options that have another name since."""

import pytest

from experiments.train import main


@pytest.mark.parametrize(
    ("option", "now"),
    [
        (["--objective.draws", "3"], "--objective.noises_per_image"),
        (["--objective.text-weight=2"], "--objective.weights text 1 flow 20"),
        (["--data.no-condition-latents"], "--head_sources context"),
    ],
)
def test_former_options_say_what_they_are_called_now(tmp_path, capsys, option, now):
    assert main(["debug", "--workdir", str(tmp_path), *option]) == 2
    assert now in capsys.readouterr().err
