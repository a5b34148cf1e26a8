"""What the command of training says of options that have another name since, and how one of several processes ends."""

import jax
import pytest

from experiments import train
from experiments.configs import CONFIGS
from experiments.train import Arguments, Cluster, main, run


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


@pytest.mark.parametrize(
    ("error", "status", "said"), [(OSError("no space"), 1, "error: no space"), (KeyError("k"), 1, "KeyError: 'k'")]
)
def test_of_several_processes_one_that_fails_leaves_when_it_has_said_so(
    tmp_path, capsys, monkeypatch, error, status, said
):
    def fail(*_, **__):
        raise error

    def leave(status):
        assert said in capsys.readouterr().err
        raise SystemExit(status)

    monkeypatch.setattr(train, "train", fail)
    monkeypatch.setattr(train, "leave", leave)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(SystemExit) as ended:
        run(Arguments(tmp_path, CONFIGS["debug"]))
    assert ended.value.code == status


def test_a_process_that_does_not_know_where_the_others_are_does_not_train_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *_, **__: pytest.fail("trains"))
    assert run(Arguments(tmp_path, CONFIGS["debug"], Cluster(processes=2, process=1))) == 2
    assert "coordinator None, processes 2, process 1: give all three" in capsys.readouterr().err
