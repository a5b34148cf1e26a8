"""The tables of a report, in Markdown, each of one sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from experiments.ablations import statistics
from experiments.ablations.analysis import Finding, Sample, difference, findings, predicted, transfers, values
from experiments.ablations.design import ALPHA, Comparison, Family
from experiments.ablations.endpoints import CEILINGS, ENDPOINTS, PARITY
from experiments.ablations.results import Record
from internvlu_jax.evaluation.scores import Score, share

NOTHING = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a sentence where it has no rows."""
    if not rows:
        return "Nothing to show yet."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(endpoint: str, value: float) -> str:
    """A value: shares in points of 100."""
    unit = ENDPOINTS[endpoint].unit
    if unit == "share":
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if unit == "dB" else f"{value:.4g}"


def change(endpoint: str, value: float) -> str:
    """A difference: of shares in points of 100, of logarithms as a change in percent."""
    about = ENDPOINTS[endpoint]
    if about.log:
        return f"{100 * math.expm1(value):+.2f}%"
    if about.unit == "share":
        return f"{100 * value:+.1f}"
    return f"{value:+.2f}" if about.unit == "dB" else f"{value:+.3g}"


def interval(endpoint: str, score: Score | None, how: Callable[[str, float], str] = shown) -> str:
    """A value with its interval."""
    if score is None:
        return NOTHING
    if not math.isfinite(score.low):
        return f"{how(endpoint, score.value)} (one seed)"
    return f"{how(endpoint, score.value)} ({how(endpoint, score.low)} to {how(endpoint, score.high)})"


def numbers(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or NOTHING


def runs(sample: Sample) -> str:
    """What was planned, started and ended."""
    rows = []
    for arm in sample.arms:
        by_status = {s: [r.run.seed for r in sample.of(arm, s)] for s in ("finished", "failed", "unfinished")}
        started = [record.run.seed for record in sample.of(arm)]
        waiting = [seed for seed in sample.planned(arm) if seed not in started]
        steps = sorted({record.steps for record in sample.of(arm, "finished")})
        seconds = sum(record.seconds for record in sample.of(arm))
        cells = [str(len(sample.planned(arm))), *map(numbers, by_status.values()), numbers(waiting)]
        rows.append([arm, *cells, numbers(steps), f"{seconds / 3600:.2f}"])
    return table(["arm", "planned", "finished", "failed", "no end", "not started", "steps", "hours"], rows)


def verdicts(sample: Sample, family: Family) -> str:
    """The tests of a family."""
    head = ["endpoint", "arm", "pairs", "difference, t interval", "bootstrap", "p, Holm", "p equal, Holm", "verdict"]
    return table(head, [_finding(finding) for finding in findings(sample, family)])


def _finding(finding: Finding) -> list[str]:
    endpoint = finding.comparison.endpoint
    said = finding.verdict.replace("open", "not decided").replace("untested", "not tested")
    marks = [
        *(["interim"] if finding.interim else []),
        *([f"without seeds {numbers(finding.missing)}"] if finding.missing else []),
        *([f"failed at seeds {numbers(finding.imputed)}, which count as the worst; without them "
           + interval(endpoint, finding.finished_only, change)] if finding.imputed else []),
    ]  # fmt: skip
    return [
        ENDPOINTS[endpoint].title,
        finding.comparison.arm,
        str(len(finding.seeds)),
        interval(endpoint, finding.difference, change),
        interval(endpoint, finding.resampled, change),
        f"{_p(finding.p)}, {_p(finding.p_adjusted)}",
        f"{_p(finding.p_equal)}, {_p(finding.p_equal_adjusted)}",
        f"**{said}**" + (f" ({'; '.join(marks)})" if marks else ""),
    ]


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else "<0.0001"


def margins(family: Family) -> str:
    """What counts as no difference, in words."""
    named = dict.fromkeys(comparison.endpoint for comparison in family.comparisons)
    parts = []
    for name in named:
        about = ENDPOINTS[name]
        size = f"a ratio of exp({about.margin:g})" if about.log else f"{change(name, about.margin)[1:]}"
        unit = " points" if about.unit == "share" else "" if about.log else f" {about.unit}"
        parts.append(f"{about.title} {size}{unit}")
    return f"Each of the two sets of tests is held at {ALPHA:g}. Margins: {'; '.join(parts)}."


def scores(sample: Sample) -> str:
    """Means over seeds of every endpoint that some run has, as they are and as a share of the arm's ceiling."""
    rows = []
    for name, about in ENDPOINTS.items():
        for arm in sample.arms:
            if by_seed := values(sample, arm, name):
                score = statistics.t_interval(list(by_seed.values()))
                ceiling = _ceiling(sample, arm, about.ceiling) if about.ceiling else None
                of_it = f"{100 * score.value / ceiling:.1f}%" if ceiling else NOTHING
                rows.append([about.title, about.unit, arm, str(score.count), interval(name, score), of_it])
    return table(["endpoint", "unit", "arm", "seeds", "mean, t interval", "of the ceiling"], rows)


def differences(sample: Sample) -> str:
    """Paired differences of every other arm to the reference, without tests."""
    rows = []
    for name, about in ENDPOINTS.items():
        for arm in compared_arms(sample, name):
            if score := difference(sample, arm, sample.design.reference, name):
                rows.append([about.title, arm, str(score.count), interval(name, score, change)])
    return table(["endpoint", f"arm minus {sample.design.reference}", "pairs", "difference, t interval"], rows)


def compared_arms(sample: Sample, endpoint: str) -> list[str]:
    """Arms whose endpoint can be put beside that of the reference; not those trained on one task alone."""
    reference, one_space = sample.design.reference, ENDPOINTS[endpoint].one_space
    singles = {arm for pair in sample.design.singles.values() for arm in pair}
    arms = [arm for arm in sample.arms if arm != reference and arm not in singles]
    return [arm for arm in arms if not one_space or sample.design.comparable(arm, reference)]


def transfer(sample: Sample) -> str:
    """Joint training minus a single task's, and whether interference predicts it."""
    rows = []
    for one in transfers(sample):
        name, count = one.endpoint, str(one.gain.count)
        cells = [interval(name, one.gain, change), interval(name, one.against, change)]
        rows.append([ENDPOINTS[name].title, one.arm, count, *cells])
    against = f"minus that of {sample.design.reference}"
    lines = [table(["endpoint", "arm", "seeds", "joint minus single, t interval", against], rows)]
    for name in dict.fromkeys(one.endpoint for one in transfers(sample)):
        if correlation := predicted(sample, name):
            lines.append(
                f"Interference and transfer of {ENDPOINTS[name].title}: rank correlation {correlation[0]:+.2f} over "
                f"{correlation[1]} arms and seeds."
            )
    return "\n\n".join(lines)


def parity(sample: Sample) -> str:
    """Each arm's quantities beside the reference's, and whether they are within the limits."""
    reference = _parity(sample, sample.design.reference)
    rows = []
    for arm in sample.arms:
        for name, sizes in _parity(sample, arm).items():
            limit = PARITY[name] if sample.design.matched else None
            if len(sizes) > 1:
                rows.append([arm, name, " and ".join(f"{size:,.0f}" for size in sizes), NOTHING, "differs over seeds"])
                continue
            base, size = reference.get(name, []), sizes[0]
            cells = [arm, name, f"{size:,.0f}"]
            if len(base) != 1 or not base[0]:
                rows.append([*cells, NOTHING, "nothing to compare with"])
                continue
            rows.append([*cells, f"{100 * (size / base[0] - 1):+.2f}%", _within(size / base[0] - 1, limit)])
    return table(["arm", "quantity", "value", f"beside {sample.design.reference}", "within the limit"], rows)


def _within(off: float, limit: float | None) -> str:
    if limit is None:
        return NOTHING
    return "yes" if abs(off) <= limit else f"**over {100 * limit:g}%**"


def _parity(sample: Sample, arm: str) -> dict[str, list[float]]:
    sizes: dict[str, set[float]] = {}
    for record in sample.of(arm, "finished"):
        for name, size in (record.outcome.parity if record.outcome else {}).items():
            sizes.setdefault(name, set()).add(size)
    return {name: sorted(each) for name, each in sizes.items()}


def ceilings(sample: Sample) -> str:
    """What each arm's autoencoder allows."""
    made = {name: {arm: _ceiling(sample, arm, name) for arm in sample.arms} for name in CEILINGS}
    known = {name: sizes for name, sizes in made.items() if any(size is not None for size in sizes.values())}
    rows = []
    for arm in sample.arms:
        sizes = [own[arm] for own in known.values()]
        if any(size is not None for size in sizes):
            rows.append([arm, *(NOTHING if size is None else f"{size:.3f}" for size in sizes)])
    return table(["arm", *(CEILINGS[name] for name in known)], rows)


def _ceiling(sample: Sample, arm: str, name: str) -> float | None:
    """The mean over runs, which share one autoencoder unless each seed has its own."""
    records = sample.of(arm, "finished")
    sizes = [r.outcome.ceilings[name] for r in records if r.outcome and name in r.outcome.ceilings]
    return math.fsum(sizes) / len(sizes) if sizes else None


def one_seed(sample: Sample) -> str:
    """Shares of each arm's first seed, with Wilson's intervals over its cases."""
    rows = []
    for arm in sample.arms:
        for record in sample.of(arm, "finished")[:1]:
            for name, cases in (record.outcome.cases if record.outcome else {}).items():
                if set(cases.values) <= {0.0, 1.0}:
                    score = share([bool(value) for value in cases.values])
                    rows.append([ENDPOINTS[name].title, arm, str(record.run.seed), str(score.count),
                                 interval(name, score)])  # fmt: skip
    return table(["endpoint", "arm", "seed", "cases", "share of all cases, Wilson's interval"], rows)


def tuning(records: Sequence[Record]) -> str:
    """Every run of tuning and pilot, with what was varied within its arm."""
    rows = []
    for record in sorted(records, key=lambda r: r.run.arm):
        own = [r.run.settings for r in records if r.run.arm == record.run.arm]
        varied = {k: v for k, v in record.run.settings.items() if any(other.get(k) != v for other in own)}
        said = ", ".join(f"{key} {value}" for key, value in varied.items()) or NOTHING
        endpoints = record.outcome.endpoints if record.outcome else {}
        gave = ", ".join(f"{name} {shown(name, value)}" for name, value in endpoints.items())
        rows.append([record.run.arm, str(record.run.seed), said, record.status, gave or record.reason or NOTHING])
    return table(["arm", "seed", "varied", "status", "gave"], rows)


def rates_at_an_end(sample: Sample) -> list[str]:
    """A sentence for each arm whose runs have the lowest or the highest of the learning rates that were tried."""

    def rates(records: Sequence[Record]) -> list[float]:
        return sorted({r.run.settings["learning_rate"] for r in records if "learning_rate" in r.run.settings})

    def grid(arm: str) -> list[float]:
        """What was tried first, at one weight: the others are tried at the best rate and its half."""
        own = [r for r in sample.tuning if r.run.arm == arm]
        weights = [r.run.settings.get("flow_weight") for r in own]
        return rates([r for r, weight in zip(own, weights, strict=True) if weight == weights[0]])

    tried = {arm: grid(arm) for arm in sample.arms}
    return [
        f"{arm}: of the learning rates tried the best, {rate}, is at an end; better ones may lie beyond."
        for arm, rated in tried.items()
        for rate in rates(sample.of(arm))
        if len(rated) > 1 and not rated[0] < rate < rated[-1]
    ]


def forest_comparisons(sample: Sample) -> list[Comparison]:
    """What the forest plot shows: the tests of all families, then what else is compared but for diagnostics."""
    first = [comparison for family in sample.design.families for comparison in family.comparisons]
    names = [name for name, about in ENDPOINTS.items() if about.task != "diagnostic"]
    return list(dict.fromkeys([*first, *(Comparison(n, arm) for n in names for arm in compared_arms(sample, n))]))
