"""The runner: which runs are made and when, what is chosen, and what is left after a stop. Nothing is trained here.

Models are made up: a member's scores are a function of its settings, so that what is best is known.
"""

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.ablations import __main__ as command
from experiments.ablations import results, running, tuning
from experiments.ablations.__main__ import Arguments, run, status
from experiments.ablations.design import JOINT, SEEDS, TUNING, TUNING_SEEDS
from experiments.ablations.judging import SETS
from experiments.ablations.matching import Row
from experiments.ablations.report import write_report
from experiments.ablations.running import Bench
from experiments.ablations.studies import BUDGETS, STUDIES, designs
from experiments.ablations.tuning import Settings, chosen, tune
from internvlu_jax.training.resuming import Stopped
from tests.helpers.ablations import made_outcome

ROW = Row("made up", 1000, 900, 0, 100, 0, {"pictures": 2.0, "edits": 3.0, "questions": 1.0}, 2.0, (16, 16))


class Machine:
    """Trains and scores in no time, and notes what it was asked for.

    trained: (arm, group, members), each time. At a group in `stops` a signal comes, once; from one in `kills` nothing
    is scored, once. broken: (seed or learning rate) of members whose gradient is not finite at the second step.
    loss, seen, right: from (arm, member), or these and sampling, to scores.
    """

    def __init__(self):
        self.trained, self.stops, self.kills, self.broken = [], set(), set(), set()
        self.loss = self.seen = lambda arm, member: 1.0
        self.right = lambda arm, member, sampling: 0.5
        self.answered = lambda arm, member: 0.5

    def train_together(self, step, start, members, read, where, settings, *, looks, count, quiet):
        arm = settings["arm"]
        if where.name in self.stops:
            self.stops.remove(where.name)
            raise Stopped(where, 1)
        self.trained.append((arm, where.name, len(members)))
        bad = [member.seed in self.broken or member.learning_rate in self.broken for member in members]
        lines = []
        for number in range(1, count + 1):
            line = {"step": number}
            for n in range(len(members)):
                line |= {f"{term}_loss/{n}": 1.0 for term in ("text", "flow", "codes")}
                line |= {f"finite/{n}": float(number != 2 or not bad[n])}
            lines.append(line)
        where.mkdir(parents=True, exist_ok=True)
        (where / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines).replace("'", '"'))
        return [(arm, member, where.name) for member in members]

    def scorer(self, scores):
        return SimpleNamespace(
            sets=tuple(name for name in scores if name in SETS),
            losses=lambda trained: self.losses(scores, trained),
            replies=lambda trained, name, sampling: [(trained, sampling)],
        )

    def losses(self, scores, trained):
        arm, member, group = trained
        if group in self.kills:
            self.kills.remove(group)
            raise KeyboardInterrupt
        every = {
            "flow_loss": self.loss(arm, member), "flow_loss_seen": self.seen(arm, member),
            "code_loss": self.loss(arm, member), "answer_log_likelihood": -1.0,
        }  # fmt: skip
        return {name: value for name, value in every.items() if name in scores}, {}

    def judged(self, world, name, count, case_seed, replies):
        (((arm, member, _), sampling),) = replies
        if name == "questions":
            return {"questions": self.answered(arm, member)}, {}
        if name in ("geneval_seen", "geneval_heldout"):
            return {name: self.right(arm, member, sampling)}, {}
        return {}, {}


@pytest.fixture
def machine(monkeypatch):
    made = Machine()

    class Made(Bench):
        def scorer(self, scores, cases, case_seed):
            return made.scorer(scores)

    def bench(study, variant, budget, parts, workdir):
        return Made(study, variant, budget, workdir, None, None, None, None, ROW, {"reader": 0.8, "psnr": 30.0})

    still = SimpleNamespace(looks=lambda *_: {}, told=lambda *_: {}, endpoints=lambda _: {}, curves=lambda *_: {})
    for name, value in {"make_parts": lambda *_: {}, "drawn": lambda *_: None, "bench": bench}.items():
        monkeypatch.setattr(command, name, value)
    for module in (running, tuning):
        monkeypatch.setattr(module, "judged", made.judged)
        monkeypatch.setattr(module, "final_params", lambda states, n: states[n])
    monkeypatch.setattr(running, "train_together", made.train_together)
    monkeypatch.setattr(running, "interference", still)
    monkeypatch.setattr(running, "_show", lambda *_: None)
    return made


@pytest.fixture
def judges():
    with ThreadPoolExecutor(1) as threads:
        yield threads


def at(tmp_path, arm="decoupled", budget="laptop", study="representations"):
    study = STUDIES[study]
    return command.bench(study, study.chosen((arm,))[0], BUDGETS[budget], {}, tmp_path)


def go(arguments, judges):
    run(arguments, arguments.of.chosen(arguments.arms), judges)


def outcomes(path):
    """(arm, seed) of the runs that are counted, by how they stand."""
    records = [record for record in results.read(path / "results.jsonl").records if not record.run.tuning]
    return {(record.run.arm, record.run.seed): record.status for record in records}


def counted(machine):
    return [(arm, group, members) for arm, group, members in machine.trained if not group.startswith("tuning-")]


# Tuning


def test_what_tuning_tries_and_what_it_chooses(machine, judges, tmp_path):
    """Rates with the first weight; the other weights at the best rate and at its half; pictures by the best of all."""

    def loss(arm, member):
        weight = dict(member.weights)["flow"]
        if weight == 20.0 and member.learning_rate == 1e-3:
            return 0.9
        return 1.0 + abs(np.log2(member.learning_rate / 2e-3)) + abs(weight - 5.0)

    machine.loss = loss
    machine.right = lambda arm, member, sampling: 0.7 if sampling.guidance > 1.0 else 0.6  # ties over all shifts
    bench = at(tmp_path)
    settings = tune(bench, judges, together=4, quiet=True)
    assert settings == Settings(1e-3, 20.0, 2.0, 1.0), "the lower of two guidances, and the factor nearest to 1"
    records = results.read(bench.results).records
    assert all(record.run.tuning and record.status == "finished" for record in records)
    assert {record.run.seed for record in records} == set(TUNING_SEEDS)
    tried = [record.run.settings for record in records]
    pairs = [(s["learning_rate"], s["flow_weight"]) for s in tried if "guidance" not in s]
    assert pairs == [(rate, 5.0) for rate in TUNING.learning_rates] + [
        (rate, weight) for rate in (2e-3, 1e-3) for weight in (1.0, 20.0)
    ]
    ways = [(s["guidance"], s["shift"]) for s in tried if "guidance" in s]
    assert ways == [(g, s) for g in TUNING.guidance for s in TUNING.shifts]
    assert {(s["learning_rate"], s["flow_weight"]) for s in tried if "guidance" in s} == {(1e-3, 20.0)}
    once = list(machine.trained)
    assert [group for _, group, _ in once] == [
        "tuning-rates-0", "tuning-rates-1", "tuning-weights-0", "tuning-weights-0",
    ]  # fmt: skip
    assert tune(bench, judges, together=4, quiet=True) == settings and machine.trained == once
    assert settings.sampling(bench.budget).guidance == 2.0
    assert settings.member(3).learning_rate == 1e-3 and settings.member(3).weights == (("flow", 20.0),)


def test_a_study_says_which_flow_loss_it_is_tuned_by(machine, judges, tmp_path):
    machine.seen = lambda arm, member: member.learning_rate
    machine.loss = lambda arm, member: 1.0 / member.learning_rate
    bench = at(tmp_path, budget="gpu-long", study="representations-long")
    assert tune(bench, judges, together=4, quiet=True).learning_rate == min(TUNING.learning_rates) / 2
    assert tune(at(tmp_path), judges, together=4, quiet=True).learning_rate == max(TUNING.learning_rates)


def test_an_arm_that_draws_codes_is_tuned_by_their_loss_and_sampled_by_temperature(machine, judges, tmp_path):
    machine.loss = lambda arm, member: member.learning_rate + dict(member.weights)["codes"]
    machine.right = lambda arm, member, sampling: 1 - abs(sampling.temperature - 0.7) - abs(sampling.guidance - 2.0)
    arguments = Arguments("discrete", tmp_path, "laptop", arms=("shared-discrete",), seeds=2, together=8)
    go(arguments, judges)
    records = results.read(tmp_path / "results.jsonl").records
    ways = [s for r in records if r.run.tuning and "guidance" in (s := r.run.settings)]
    grid = [(g, t) for g in TUNING.guidance for t in TUNING.temperatures]
    assert [(s["guidance"], s["temperature"]) for s in ways] == grid
    made = [r.run.settings for r in records if not r.run.tuning]
    wanted = {"learning_rate": min(TUNING.learning_rates) / 2, "flow_weight": 1.0, "guidance": 2.0, "temperature": 0.7}
    assert len(made) == 2 and all(s.items() >= wanted.items() and "shift" not in s for s in made)
    outcome = next(r.outcome for r in records if not r.run.tuning)
    assert set(outcome.curves) == {"text_loss", "codes_loss"}


def test_shares_that_are_equal_but_for_rounding_tie(machine, judges, tmp_path):
    """The same right pictures in other categories: then the lower guidance, and the shift of training."""
    machine.right = lambda arm, member, sampling: 0.1 + 0.2 if sampling.guidance > 1 else 0.3
    settings = tune(at(tmp_path), judges, together=4, quiet=True)
    assert (settings.guidance, settings.shift) == (1.0, 1.0)


def test_a_run_of_tuning_that_is_not_finite_is_not_chosen(machine, judges, tmp_path):
    machine.loss = lambda arm, member: 1.0 / member.learning_rate  # the highest rates would be the best
    machine.broken = {1.6e-2, 3.2e-2}
    bench = at(tmp_path)
    assert tune(bench, judges, together=4, quiet=True).learning_rate == 8e-3
    failed = {r.run.settings["learning_rate"]: r.reason for r in results.read(bench.results).records if r.reason}
    assert failed == dict.fromkeys(machine.broken, "the gradient of step 2 is not finite")


def test_tuning_without_a_finite_run_is_an_error(machine, judges, tmp_path):
    machine.loss = lambda arm, member: float("nan")
    with pytest.raises(ValueError, match="of decoupled no run of tuning is finite; expected one at least"):
        tune(at(tmp_path), judges, together=4, quiet=True)
    with pytest.raises(ValueError, match="arm decoupled of representations is not tuned at budget laptop; run that"):
        chosen(tmp_path / "results.jsonl", "representations", "decoupled", BUDGETS["laptop"])


# Runs


def test_runs_of_a_study_and_none_twice(machine, judges, tmp_path):
    arguments = Arguments(
        "representations", tmp_path, arms=("decoupled", "decoupled-generation-only"), seeds=3, together=2
    )
    go(arguments, judges)
    assert counted(machine) == [
        (arm, group, members)
        for arm in ("decoupled", "decoupled-generation-only")
        for group, members in (("seeds-0-1", 2), ("seed-2", 1))
    ]
    assert {arm for arm, group, _ in machine.trained if group.startswith("tuning-")} == {"decoupled"}
    assert outcomes(tmp_path) == {
        (arm, seed): "finished" for arm in ("decoupled", "decoupled-generation-only") for seed in range(3)
    }
    records = {r.run.arm: r for r in results.read(tmp_path / "results.jsonl").records if not r.run.tuning}
    assert set(records["decoupled"].outcome.curves) == {"text_loss", "flow_loss"}
    alone = records["decoupled-generation-only"]
    assert set(alone.outcome.curves) == {"flow_loss"} and "questions" not in alone.outcome.endpoints
    assert alone.outcome.curves["flow_loss"][-1][0] == 2 * (2 * 2.0 + 1 * 3.0), "two steps of two pictures and an edit"
    assert alone.run.settings["learning_rate"] == records["decoupled"].run.settings["learning_rate"]
    assert alone.outcome.ceilings == {"reader": 0.8, "psnr": 30.0} and alone.outcome.parity["parameters"] == 1000
    once = list(machine.trained)
    go(arguments, judges)
    assert machine.trained == once


def test_a_stop_keeps_what_has_ended_and_the_same_command_goes_on(machine, judges, tmp_path):
    """The second group is stopped while the pictures of the first are still being judged."""
    arguments = Arguments("representations", tmp_path, arms=("decoupled",), seeds=3, together=2)
    machine.stops = {"seed-2"}
    with pytest.raises(Stopped):
        go(arguments, judges)
    first, last = "finished", "unfinished"
    assert outcomes(tmp_path) == {("decoupled", 0): first, ("decoupled", 1): first, ("decoupled", 2): last}
    go(arguments, judges)
    assert set(outcomes(tmp_path).values()) == {first}
    assert counted(machine) == [("decoupled", "seeds-0-1", 2), ("decoupled", "seed-2", 1)]


def test_killed_between_training_and_scoring_it_goes_on(machine, judges, tmp_path):
    arguments = Arguments("representations", tmp_path, arms=("decoupled",), seeds=2, together=2)
    machine.kills = {"seeds-0-1"}
    with pytest.raises(KeyboardInterrupt):
        go(arguments, judges)
    assert set(outcomes(tmp_path).values()) == {"unfinished"}
    go(arguments, judges)
    assert set(outcomes(tmp_path).values()) == {"finished"}
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum('"event": "started"' in line and '"tuning": false' in line for line in lines) == 2


def test_a_member_that_is_not_finite_fails_alone(machine, judges, tmp_path):
    machine.broken = {1}
    machine.loss = lambda arm, member: float("inf") if member.seed == 2 else 1.0
    go(Arguments("representations", tmp_path, arms=("decoupled",), seeds=4, together=4), judges)
    failed = {r.run.seed: r.reason for r in results.read(tmp_path / "results.jsonl").records if r.status == "failed"}
    assert failed == {1: "the gradient of step 2 is not finite", 2: "flow_loss is not finite"}
    assert Counter(outcomes(tmp_path).values()) == {"finished": 2, "failed": 2}
    before = len(machine.trained)
    go(Arguments("representations", tmp_path, arms=("decoupled",), seeds=4, together=4), judges)
    assert len(machine.trained) == before, "a run that failed is not tried again"


def test_status(machine, tmp_path):
    arguments = Arguments("representations", tmp_path, arms=("decoupled", "twin"), seeds=2)
    variants = arguments.of.chosen(arguments.arms)
    assert status(arguments, variants).splitlines() == [
        f"{'decoupled':34} 0 of 2 runs ended, 0 of tuning",
        f"{'twin':34} 0 of 2 runs ended, 0 of tuning",
        "4 runs are left; what one takes is not known before one has ended",
    ]
    for seed, tuned in ((0, False), (1000, True)):
        ended = at(tmp_path, budget="smoke").run(seed, {}, tuned)
        results.begin(tmp_path / "results.jsonl", ended)
        results.finish(tmp_path / "results.jsonl", ended, made_outcome({"questions": 0.5}, seconds=7200.0))
    assert status(arguments, variants).splitlines() == [
        f"{'decoupled':34} 1 of 2 runs ended, 1 of tuning",
        f"{'twin':34} 0 of 2 runs ended, 0 of tuning",
        "3 runs are left, 7200 s each by those that ended: 6.0 hours",
    ]


def test_what_a_user_can_put_right_is_said(tmp_path, capsys):
    assert command.main(Arguments("representations", tmp_path, arms=("shared",))) == 2
    assert "study representations has no arm 'shared'; expected some of decoupled, " in capsys.readouterr().err
    assert command.main(Arguments("representations", tmp_path, together=0)) == 2
    assert "--together 0 --judges 0; expected at least 1 and 0" in capsys.readouterr().err
    assert command.main(Arguments("representations", tmp_path, seeds=0)) == 2
    assert "--seeds 0; expected at least 1" in capsys.readouterr().err
    assert command.main(Arguments("head", tmp_path)) == 2  # before anything is made
    assert "experiments.ablations representations --arms decoupled --budget smoke --unti" in capsys.readouterr().err
    assert command.main(Arguments("representations", tmp_path, status=True)) == 0
    assert "48 runs are left" not in capsys.readouterr().out and not list(tmp_path.iterdir())


# From runs to verdicts


def test_an_arm_made_worse_is_found_worse_and_an_equal_one_is_not(machine, judges, tmp_path):
    """Through tuning, runs, results and report: shared-latent answers 5 points less, and all have a point of noise."""
    made = {"decoupled": 0.9, "shared-latent": 0.85, "shared-semantic": 0.9}

    def noise(arm, seed):
        return 0.01 * (seed % 3 - 1) if arm == "decoupled" else 0.01 * (-1) ** seed

    machine.answered = lambda arm, member: made[arm] + noise(arm, member.seed)
    machine.right = lambda arm, member, sampling: 0.5 + noise(arm, member.seed)
    go(Arguments("representations", tmp_path, "laptop", arms=JOINT, together=8), judges)
    assert outcomes(tmp_path) == {(arm, seed): "finished" for arm in JOINT for seed in SEEDS}
    report = write_report(tmp_path / "results.jsonl", tmp_path, designs()).read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if "**" in line]
    said = {tuple(row[:2]): row[-1] for row in rows if row[:1] == ["questions answered"]}
    assert said == {
        ("questions answered", "shared-latent"): "**worse**", ("questions answered", "shared-semantic"): "**equal**",
    }  # fmt: skip


@pytest.mark.slow
def test_a_smoke_run_is_a_whole_study(tmp_path):
    """Every arm and control is trained, sampled and scored, alike in size; a second command finds nothing to do."""
    arms = {variant.name for variant in STUDIES["representations"].all()}
    ask = [sys.executable, "-m", "experiments.ablations", "representations", "--workdir", str(tmp_path)]
    subprocess.run(ask, check=True, timeout=1200)
    assert outcomes(tmp_path) == {(arm, 0): "finished" for arm in arms} and len(arms) == 11
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    for record in results.read(tmp_path / "results.jsonl").records:
        if not record.run.tuning:
            alone = record.run.arm.endswith("-only")
            drawn, read = (f"{task}-only" not in record.run.arm for task in ("understanding", "generation"))
            scored = record.outcome.endpoints.keys()
            assert ({"geneval_heldout", "flow_loss", "edits_done", "transfer_pictures"} <= scored) == drawn
            assert ({"questions", "answer_log_likelihood", "transfer_questions"} <= scored) == read
            assert ("interference_cosine" in scored) == (not alone)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    listed = {cell.strip() for line in report.splitlines() if line.startswith("|") for cell in line.split("|")}
    assert arms <= listed and "**over" not in report and "budget smoke shows that the code runs" in report
    assert {f"![{arm}](" in report for arm in arms if not arm.endswith("understanding-only")} == {True}
    subprocess.run(ask, check=True, timeout=300)
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8") == lines
    left = subprocess.run([*ask, "--status"], check=True, capture_output=True, text=True).stdout
    assert "0 runs are left" in left
