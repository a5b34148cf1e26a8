"""The file of results, the rules of verdicts, and the report."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.ablations import analysis, results
from experiments.ablations.design import (
    JOINT,
    REPRESENTATIONS,
    SEEDS,
)
from experiments.ablations.endpoints import ENDPOINTS
from experiments.ablations.figures import ForestRow, forest
from experiments.ablations.report import pictures_name, write_report
from experiments.ablations.results import Cases
from experiments.ablations.studies import designs
from internvlu_jax.evaluation.scores import Score
from tests.helpers.ablations import finished, made_outcome, made_run, made_sample

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "results.jsonl"


def begun(path, *runs):
    for run in runs:
        results.begin(path, run)


# The file


def test_a_run_from_its_start_to_its_end(path):
    assert results.read(path) == results.Results()
    run = made_run("decoupled", 3, settings={"rate": 1e-3, "weights": [1, 5]})
    begun(path, run, run)  # it goes on after a stop: one line
    (record,) = results.read(path).records
    assert (record.run, record.status, record.outcome) == (run, "unfinished", None)
    cases = {"questions": Cases("questions/0", (1.0, 0.0, 1.0), "aab"), "flow_loss": Cases("x", (0.25, 0.75))}
    outcome = made_outcome(
        {"questions": 0.75, "flow_loss": 0.5}, cases=cases, parity={"parameters": 10}, ceilings={"reader": 0.9},
        curves={"flow_loss": ((1e9, 1.5), (2e9, 0.5))},
    )  # fmt: skip
    results.finish(path, run, outcome)
    (record,) = results.read(path).records
    assert (record.status, record.outcome, record.seconds, record.steps) == ("finished", outcome, 60.0, 10)
    assert set(record.machine) == {"device", "devices", "cpu", "cores"}
    lines = path.read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[1])["cases"]["questions"]["values"] == "101"


def test_a_half_line_is_ignored_and_reported(path):
    first, second = made_run("decoupled", 0), made_run("decoupled", 1)
    begun(path, first, second)
    whole = path.read_text()
    results.finish(path, first, made_outcome({"questions": 0.5}))
    path.write_text(path.read_text()[:-20])  # killed while it wrote
    assert [record.status for record in results.read(path).records] == ["unfinished"] * 2
    assert results.read(path).broken == (3,)
    results.finish(path, first, made_outcome({"questions": 0.5}))
    assert path.read_text().startswith(whole), "nothing is dropped"
    again = results.read(path)
    assert ([record.status for record in again.records], again.broken) == (["finished", "unfinished"], (3,))


def test_nothing_is_counted_twice(path):
    run = made_run("decoupled", 0, settings={"rate": 1})
    begun(path, run)
    results.finish(path, run, made_outcome({"questions": 0.5}))
    for call in (
        lambda: results.begin(path, run),
        lambda: results.fail(path, run, "not finite", 1.0, 1),
        lambda: results.finish(path, run, made_outcome({})),
    ):
        with pytest.raises(ValueError, match="arm decoupled, seed 0, budget laptop finished already"):
            call()
    with pytest.raises(ValueError, match="was never started with these settings"):
        results.finish(path, made_run("decoupled", 1, settings={"rate": 1}), made_outcome({}))
    path.write_text(path.read_text() * 2)
    with pytest.raises(ValueError, match=r"lines 2 and 3: .*seed 0.* is there twice"):
        results.read(path)


def test_one_setting_of_an_arm(path):
    begun(path, made_run("twin", 0, settings={"rate": 1}), made_run("twin", 7, settings={"rate": 2}, tuning=True))
    begun(path, made_run("twin", 0, settings={"rate": 2}, budget="gpu"))
    with pytest.raises(ValueError, match=r"arm twin, seed 1, .* and .*arm twin, seed 0, .*different settings"):
        results.begin(path, made_run("twin", 1, settings={"rate": 2}))


@pytest.mark.parametrize(
    "made, said",
    [
        (lambda: made_outcome({"speed": 1.0}), "endpoint speed is not known"),
        (lambda: made_outcome({"questions": math.nan}), "questions is nan; expected a finite number"),
        (lambda: made_outcome({}, ceilings={"sky": 1.0}), "ceiling sky is not known"),
        (lambda: made_outcome({}, parity={"weight": 1.0}), "quantity of parity weight is not known"),
        (lambda: made_outcome({}, cases={"words": Cases("w", (1.0,))}), "cases words is not known"),
        (lambda: made_outcome({"words": 0.5}, cases={"words": Cases("w", (1.0,))}), "words is 0.5, and the mean"),
        (lambda: Cases("w", ()), "cases w have 0 values"),
        (lambda: Cases("w", (1.0, 0.0), "a"), "2 values and 1 letters"),
    ],
)
def test_outcomes_that_cannot_be(made, said):
    with pytest.raises(ValueError, match=said):
        made()


@pytest.mark.parametrize("line", ['{"event": "finished"}', "[1]", '{"event": "lost", "study": "a"}'])
def test_a_whole_line_of_something_else_is_an_error(path, line):
    path.parent.mkdir()
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1 is not a line of results"):
        results.read(path)


# The rules


@pytest.mark.parametrize(
    "difference, p, p_equal, said",
    [
        (1.0, 0.04, 0.5, "better"), (-1.0, 0.05, 0.5, "worse"), (1.0, 0.051, 0.051, "open"), (1.0, 0.9, 0.05, "equal"),
        (1.0, 0.01, 0.01, "better within the margin"), (-1.0, 0.01, 0.01, "worse within the margin"),
    ],
)  # fmt: skip
def test_verdicts(difference, p, p_equal, said):
    assert analysis.verdict(difference, True, p, p_equal) == said
    turned = {"better": "worse", "worse": "better"}
    other = re.sub("better|worse", lambda word: turned[word[0]], said)
    assert analysis.verdict(difference, False, p, p_equal) == other


def steady(mean, count=8):
    """Values whose differences to those of another mean all have one sign."""
    return mean + 0.001 * np.arange(count)


def scores(questions, drawn, count=8):
    return {"questions": steady(questions, count), "geneval_heldout": steady(drawn, count)}


FAMILY, CONTINUOUS = REPRESENTATIONS.families


def test_a_family_with_tests_that_cannot_be_made():
    """Eight pairs of shared-latent pass among four tests, two of which have no pairs; seven pairs do not."""
    sample = made_sample({"decoupled": scores(0.9, 0.5), "shared-latent": scores(0.8, 0.7)})
    by_test = {(f.comparison.endpoint, f.comparison.arm): f for f in analysis.findings(sample, FAMILY)}
    worse, better = by_test["questions", "shared-latent"], by_test["geneval_heldout", "shared-latent"]
    assert (worse.verdict, better.verdict) == ("worse", "better")
    assert (worse.p, worse.p_adjusted, worse.interim) == (2 / 256, 4 * 2 / 256, False)
    absent = by_test["questions", "shared-semantic"]
    assert (absent.verdict, absent.p, absent.seeds, absent.missing, absent.interim) == (
        "untested",
        1.0,
        (),
        SEEDS,
        True,
    )
    short = made_sample({"decoupled": scores(0.9, 0.5, 7), "shared-latent": scores(0.8, 0.7)})
    first = analysis.findings(short, FAMILY)[0]
    assert (first.verdict, first.missing, first.interim) == ("open", (7,), True)


def test_failed_runs_count_the_worst():
    values = {arm: scores(0.9, 0.5) | {"answer_log_likelihood": steady(-0.3)} for arm in JOINT}
    sample = made_sample(values, failures=[("shared-latent", 2)])
    first = analysis.findings(sample, FAMILY)[0]
    assert (first.imputed, first.missing, first.interim) == ((2,), (), False)
    assert first.difference.value == pytest.approx(-0.902 / 8) and first.finished_only.value == 0
    likelihood = next(f for f in analysis.findings(sample, CONTINUOUS) if f.comparison.endpoint != "flow_loss")
    assert likelihood.difference.value == pytest.approx((-0.3 - -0.298) / 8), "the worst of any finished run"


def test_logarithms_are_compared_and_spaces_kept_apart():
    flow = {"decoupled": 0.4, "shared-latent": 0.5, "twin": 0.7, "shared-semantic": 9.0}
    sample = made_sample({arm: {"flow_loss": np.full(8, value)} for arm, value in flow.items()})
    first = analysis.findings(sample, CONTINUOUS)[0]
    assert (first.verdict, first.difference.value) == ("worse", pytest.approx(math.log(0.5 / 0.4)))
    with pytest.raises(ValueError, match="flow loss of held-out pictures is 0"):
        ENDPOINTS["flow_loss"].compared(0.0)
    # a failed run of the reference counts the worst of its own space, the twin's
    sample = made_sample({arm: {"flow_loss": np.full(8, value)} for arm, value in flow.items()}, [("decoupled", 0)])
    assert analysis.imputed(sample, "decoupled", "flow_loss") == {0: 0.7}


def test_transfer_and_what_predicts_it():
    values = {
        "decoupled": {"questions": [0.9, 0.8], "interference_cosine": [0.1, 0.2], "interference_noise": [0.5, 0.5]},
        "decoupled-understanding-only": {"questions": [0.8, 0.6]},
        "shared-latent": {"questions": [0.9, 0.9], "interference_cosine": [0.3, 0.4], "interference_noise": [0.5, 0.5]},
        "shared-latent-understanding-only": {"questions": [0.6, 0.5]},
    }
    sample = made_sample(values)
    first, second = analysis.transfers(sample)
    assert first.by_seed == pytest.approx({0: 0.1, 1: 0.2}) and first.against is None
    assert second.gain.value == pytest.approx(0.35) and second.against.value == pytest.approx(0.2)
    assert analysis.predicted(sample, "questions") == (pytest.approx(1), 4)
    assert analysis.predicted(sample, "geneval_heldout") is None


def test_which_family_leads():
    assert analysis.leading(made_sample({"decoupled": scores(0.5, 0.3)})) == FAMILY
    assert analysis.leading(made_sample({"decoupled": scores(0.5, 0.2)})) == CONTINUOUS
    assert analysis.leading(made_sample({"twin": scores(0.5, 0.2)})) == CONTINUOUS


def test_other_cases_are_not_compared():
    records = [
        finished(arm, seed, {"questions": 0.5}, cases={"questions": Cases(f"of {arm}", (0.0, 1.0))})
        for arm in JOINT for seed in SEEDS
    ]  # fmt: skip
    sample = analysis.Sample("representations", "laptop", REPRESENTATIONS, tuple(records))
    with pytest.raises(ValueError, match="expected the same cases of every run"):
        analysis.findings(sample, FAMILY)


# The report


def run_study(path, arms, budget="laptop", seeds=SEEDS):
    """A whole study of made-up runs: shared-latent answers much worse, and the twin has too many parameters."""
    rng = np.random.default_rng(0)
    for arm in arms:
        for seed in seeds:
            run = made_run(arm, seed, budget=budget, settings={"arm": arm})
            right = rng.random(200) < (0.6 if arm == "shared-latent" else 0.9)
            begun(path, run)
            if (arm, seed) == ("shared-semantic", 1):
                results.fail(path, run, "the loss is not finite at step 7", 5.0, 7)
                continue
            endpoints = {
                "questions": float(right.mean()),
                "geneval_heldout": 0.5 + 0.01 * rng.normal(),
                "flow_loss": 0.4,
            }
            outcome = made_outcome(
                endpoints,
                cases={"questions": Cases("questions", tuple(map(float, right)))},
                parity={"parameters": 1_030_000 if arm == "twin" else 1_000_000, "operations": 5e9},
                ceilings={"reader": 0.9, "psnr": 30.0, "geneval_heldout": 0.8},
                curves={"flow_loss": tuple((n * 1e12, 1.5 / n + 0.1 * rng.random()) for n in range(1, 9))},
            )
            results.finish(path, run, outcome)


def row(report, *cells):
    """The one row of a table that has these cells among its own."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if line.startswith("|")]
    (line,) = [line for line in lines if set(cells) <= set(line)]
    return line


def test_report_of_a_whole_study(path, tmp_path):
    run_study(path, (*JOINT, "twin"))
    tuned = made_run("decoupled", 1000, settings={"rate": 0.002, "steps": 5}, tuning=True)
    begun(path, tuned, made_run("decoupled", 1000, settings={"rate": 0.004, "steps": 5}, tuning=True))
    results.finish(path, tuned, made_outcome({"questions": 0.123}))
    report = write_report(path, tmp_path / "out").read_text(encoding="utf-8")
    worse = row(report, "questions answered", "shared-latent", "**worse**")
    assert worse[2] == "8" and worse[5] == "0.0078, 0.0312"
    assert "failed at seeds 1" in row(report, "questions answered", "shared-semantic", "8")[-1]
    assert row(report, "twin", "parameters")[3:] == ["+3.00%", "**over 1%**"]
    assert row(report, "twin", "operations")[3:] == ["+0.00%", "yes"]
    assert row(report, "shared-semantic", "8", "1", "10")[2] == "0, 2, 3, 4, 5, 6, 7"
    drawn = row(report, "held-out combinations drawn", "decoupled", "share")
    assert float(drawn[5].rstrip("%")) == pytest.approx(float(drawn[4].split()[0]) / 0.8, abs=0.1)
    assert row(report, "decoupled", "1000", "rate 0.002")[-1] == "questions 12.3"
    assert "shared-semantic, seed 1, failed: the loss is not finite at step 7" in report
    assert "34 runs were started, of which 2 for tuning: 32 finished, 1 failed, 1 have no end" in report
    assert "arm random-semantic: no run" in report and "cannot say anything about 4B" in report
    assert "To quote at this budget: the tests named right or wrong" in report
    for name in re.findall(r"!\[.*\]\((.*)\)", report):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 200 and len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 5
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "report.md", "representations-laptop-forest.png", "representations-laptop-curves.png",
    }  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1])
def test_what_lies_beyond_the_axis_is_an_arrow_that_points_there(sign):
    """And no value at its end."""
    low, high = sorted((7.0 * sign, 9.0 * sign))
    ink = np.asarray(forest([ForestRow("", Score(8.0 * sign, low, high, 8), 0)], "decoupled"))[75].sum(-1) < 600
    edge = 490 + (520 if sign > 0 else 0)  # of the axis
    assert ink[edge + 5 * sign] and not ink[edge - 5 * sign]


def test_pictures_that_runs_left_are_in_the_report(path, tmp_path):
    begun(path, made_run("decoupled", 0))
    name = pictures_name("representations", "laptop", "twin")
    Image.new("RGB", (64, 8)).save(tmp_path / name)
    Image.new("RGB", (64, 8)).save(tmp_path / pictures_name("representations", "gpu", "decoupled"))
    report = write_report(path, tmp_path).read_text(encoding="utf-8")
    assert row(report, "twin", f"![twin]({name})") and "gpu-decoupled" not in report


def test_report_of_nothing_and_of_little(path, tmp_path):
    report = write_report(path, tmp_path).read_text(encoding="utf-8")
    assert "0 runs were started" in report and "## Without a run" in report and "decoupled (8)" in report
    begun(path, made_run("decoupled", 0), made_run("decoupled", 99))
    report = write_report(path, tmp_path).read_text(encoding="utf-8")
    assert "arm decoupled: seeds 0, 1, 2, 3, 4, 5, 6, 7 have not ended" in report
    assert "Beyond the plan, and in no score or test below: decoupled seed 99" in report
    assert report.count("**not tested**") == 7 and "![" not in report
    results.finish(path, made_run("decoupled", 0), made_outcome({"questions": 0.5}))
    report = write_report(path, tmp_path).read_text(encoding="utf-8")
    assert "50.0 (one seed)" in report and "arm decoupled: geneval_heldout of no run" in report


def test_smoke_and_other_studies_have_no_verdicts(path, tmp_path):
    run_study(path, JOINT, budget="smoke", seeds=(0,))
    other = made_run("gated", 0, study="head")
    begun(path, other)
    results.finish(path, other, made_outcome({"questions": 0.5}))
    report = write_report(path, tmp_path).read_text(encoding="utf-8")
    assert "budget smoke shows that the code runs" in report and "None were fixed for this study" in report
    assert "verdict |" not in report


@pytest.mark.parametrize("rate, said", [(0.001, True), (0.002, False), (0.004, True)])
def test_a_rate_at_an_end_of_the_grid_is_said(path, tmp_path, rate, said):
    for tried, weight in ((0.001, 5.0), (0.002, 5.0), (0.004, 5.0), (0.0005, 1.0)):  # the last is half of the best
        tuned = {"learning_rate": tried, "flow_weight": weight}
        begun(path, made_run("decoupled", 1000, settings=tuned, tuning=True))
    begun(path, made_run("decoupled", 0, settings={"learning_rate": rate}))
    begun(path, made_run("twin", 0, settings={"learning_rate": 0.001}))  # which was not tuned
    report = write_report(path, tmp_path).read_text(encoding="utf-8")
    assert (f"decoupled: of the learning rates tried the best, {rate}, is at an end" in report) == said
    assert "twin: of the" not in report


@pytest.mark.parametrize("budget", ["gpu", "laptop"])
def test_kept_reports_are_what_kept_results_say(tmp_path, budget):
    kept = ROOT / "experiments/ablations/results" / budget
    (file,) = kept.glob("results.jsonl*")
    for picture in kept.glob("*.png"):
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    assert write_report(file, tmp_path, designs()).read_text() == (kept / "report.md").read_text()
