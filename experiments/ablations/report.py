"""The report of a file of results: tables, verdicts by the rules of `protocol.md`, and pictures.

`write_report(results, DIR)` writes DIR/report.md and beside it, for each study and budget, STUDY-BUDGET-forest.png and
STUDY-BUDGET-curves.png. Runs leave STUDY-BUDGET-ARM.png there, of what an arm's first seed drew. What is missing is
named in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from experiments.ablations import tables
from experiments.ablations.analysis import Sample, difference, leading, samples, values
from experiments.ablations.design import DESIGNS, Design
from experiments.ablations.endpoints import ENDPOINTS
from experiments.ablations.figures import ForestRow, curves_figure, forest
from experiments.ablations.results import Curve, Results, read
from internvlu_jax.evaluation.scores import Score
from internvlu_jax.utils.files import write_text
from internvlu_jax.utils.sheets import save_sheet

LIMITS = """\
- Models of one to ten million parameters, trained from nothing on drawn shapes: the results cannot say anything about \
4B, about real photographs, or about encoders that come with knowledge.
- Intervals and tests are over seeds of training, with one autoencoder an arm, one order of examples and one set of \
cases; other ones, another world or another optimizer are not covered by them.
- What an interval leaves open is not shown to be equal: only "equal" is a finding of no difference, within its margin.
- Everything outside of the tables of tests is exploratory, without correction for how many there are."""


def write_report(results_path: Path, out_dir: Path, designs: Mapping[str, Design] = DESIGNS) -> Path:
    """Writes the report and its pictures, each whole or not at all.

    Args:
        results_path: as `results` writes it; it may be partial, or not be there.
        designs: of the studies, by name; one without a design is described and not tested.

    Returns:
        The path of report.md.

    Raises:
        ValueError: the file has a line that is no line of results.
    """
    results = read(results_path)
    parts = [f"# Report of `{results_path.name}`", _contents(results)]
    every = samples(results, designs)
    for sample in every:
        parts += _section(sample, out_dir)
    if waiting := {study: design for study, design in designs.items() if study not in {s.study for s in every}}:
        parts += ["## Without a run", "\n".join(_planned(study, design) for study, design in waiting.items())]
    parts += ["## Limits", LIMITS]
    path = out_dir / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def missing(sample: Sample) -> list[str]:
    """What the plan names and the results do not have, one sentence each."""
    said = []
    for arm in sample.arms:
        planned, ended = sample.planned(arm), {r.run.seed for r in sample.of(arm) if r.status != "unfinished"}
        if not sample.of(arm):
            said.append(f"arm {arm}: no run")
        elif waiting := [seed for seed in planned if seed not in ended]:
            said.append(f"arm {arm}: seeds {tables.numbers(waiting)} have not ended")
    for family in sample.design.families:
        for one in family.comparisons:
            for arm in (one.arm, sample.design.reference):
                if sample.of(arm, "finished") and not values(sample, arm, one.endpoint):
                    said.append(f"arm {arm}: {one.endpoint} of no run")
    finished = [record.outcome for record in sample.counted if record.outcome]
    for name in ("ceilings", "curves", "cases"):
        if finished and not any(getattr(outcome, name) for outcome in finished):
            said.append(f"{name}: in no run")
    if not sample.tuning and sample.design.tuned_in is None:
        said.append("tuning: no run")
    return list(dict.fromkeys(said))


def _contents(results: Results) -> str:
    count = {s: sum(r.status == s for r in results.records) for s in ("finished", "failed", "unfinished")}
    lines = [
        f"{len(results.records)} runs were started, of which {sum(r.run.tuning for r in results.records)} for tuning: "
        f"{count['finished']} finished, {count['failed']} failed, {count['unfinished']} have no end."
    ]
    if results.broken:
        lines.append(f"Lines left half written by a kill, and ignored: {tables.numbers(results.broken)}.")
    return " ".join(lines)


def _planned(study: str, design: Design) -> str:
    seeds = ", ".join(f"{arm} ({len(each)})" for arm, each in design.seeds.items())
    return f"- {study}" + (f"; planned are, with their numbers of seeds, {seeds}" if seeds else "")


def _section(sample: Sample, out_dir: Path) -> list[str]:
    parts = [f"## {sample.study}, budget {sample.budget}", "### What was run", tables.runs(sample)]
    if failures := [record for record in sample.counted if record.status == "failed"]:
        parts.append("\n".join(f"- {r.run.arm}, seed {r.run.seed}, failed: {r.reason}" for r in failures))
    extra = [r for r in sample.counted if r.run.seed not in sample.planned(r.run.arm)]
    if extra:
        named = ", ".join(f"{r.run.arm} seed {r.run.seed}" for r in extra)
        parts.append(f"Beyond the plan, and in no score or test below: {named}.")
    parts.append(_machines(sample))
    if sample.design.found:
        parts.append("**Found afterwards**\n\n" + "\n".join(f"- {one}" for one in sample.design.found))
    if gaps := missing(sample):
        parts.append("**Missing**\n\n" + "\n".join(f"- {gap}" for gap in gaps))
    parts += _verdicts(sample)
    parts += ["### Scores", tables.scores(sample)]
    parts += [f"### Differences to {sample.design.reference}", "Exploratory: no tests.", tables.differences(sample)]
    parts += _forest(sample, out_dir)
    parts += _pictures(sample, out_dir)
    if sample.design.singles:
        parts += ["### Transfer", tables.transfer(sample)]
    parts += ["### Parity", tables.parity(sample), "### Ceilings", tables.ceilings(sample)]
    parts += ["### Losses against operations", *_curves(sample, out_dir)]
    parts += ["### Cases of one seed", "Intervals over cases. They say nothing about seeds.", tables.one_seed(sample)]
    return [*parts, "### Tuning", *_tuning(sample)]


def _tuning(sample: Sample) -> list[str]:
    if sample.design.tuned_in is not None:
        return [f"None: the settings are those of {sample.design.tuned_in}."]
    return ["Never counted.", tables.tuning(sample.tuning), *tables.rates_at_an_end(sample)]


def _machines(sample: Sample) -> str:
    records = sample.counted
    machines = dict.fromkeys(
        f"{r.machine.get('device', 'unknown')} ({r.machine.get('cpu', 'unknown')}, {r.machine.get('cores', '?')} cores)"
        for r in records
    )
    commits = dict.fromkeys(record.commit[:12] for record in records)
    return f"Machines: {'; '.join(machines) or 'none'}. Commits: {', '.join(commits) or 'none'}."


def _verdicts(sample: Sample) -> list[str]:
    if not sample.design.families:
        return ["### Tests", "None were fixed for this study."]
    if not sample.tested:
        budgets = ", ".join(sample.design.counted_budgets)
        return ["### Tests", f"None: budget {sample.budget} shows that the code runs. Verdicts are given at {budgets}."]
    leads = leading(sample)
    parts = [f"To quote at this budget: the tests named {leads.name}."] if leads else []
    for family in sample.design.families:
        parts += [f"### Tests: {family.name}", tables.margins(family), tables.verdicts(sample, family)]
    return parts


def _forest(sample: Sample, out_dir: Path) -> list[str]:
    """The picture of the paired differences of the runs that finished, in margins."""
    colours = {arm: n for n, arm in enumerate(arm for arm in sample.arms if arm != sample.design.reference)}
    rows = []
    for one in tables.forest_comparisons(sample):
        about = ENDPOINTS[one.endpoint]
        if score := difference(sample, one.arm, sample.design.reference, one.endpoint):
            scaled = _scaled(score, (1 if about.better == "higher" else -1) / about.margin)
            rows.append(ForestRow(f"{about.title}: {one.arm}", scaled, colours[one.arm]))
    if not rows:
        return []
    name = f"{sample.study}-{sample.budget}-forest.png"
    save_sheet(forest(rows, sample.design.reference), out_dir / name)
    return [f"![paired differences in margins]({name})"]


def _scaled(score: Score, factor: float) -> Score:
    low, high = sorted((score.low * factor, score.high * factor))
    return replace(score, value=score.value * factor, low=low, high=high)


def pictures_name(study: str, budget: str, arm: str) -> str:
    """The file beside the report with pictures of an arm."""
    return f"{study}-{budget}-{arm}.png"


def _pictures(sample: Sample, out_dir: Path) -> list[str]:
    """What the first seed of each arm drew for the first held-out cases."""
    names = {arm: pictures_name(sample.study, sample.budget, arm) for arm in sample.arms}
    rows = [[arm, f"![{arm}]({name})"] for arm, name in names.items() if (out_dir / name).is_file()]
    return ["### Drawn", tables.table(["arm", "the first held-out cases, one seed"], rows)] if rows else []


def _curves(sample: Sample, out_dir: Path) -> list[str]:
    panels: dict[str, dict[str, list[Curve]]] = {}
    for arm in sample.arms:
        planned = sample.planned(arm)
        for record in (r for r in sample.of(arm, "finished") if r.run.seed in planned):
            curves = record.outcome.curves if record.outcome else {}
            for loss, curve in ((name, curve) for name, curve in curves.items() if name.endswith("_loss")):
                drawable = tuple(point for point in curve if min(point) > 0)  # axes are logarithmic
                if len(drawable) > 1:
                    panels.setdefault(loss, {}).setdefault(arm, []).append(drawable)
    if not panels:
        return ["Nothing to show yet."]
    name = f"{sample.study}-{sample.budget}-curves.png"
    save_sheet(curves_figure(panels), out_dir / name)
    return [f"![losses against operations]({name})"]
