"""What results say by the rules of `protocol.md`: values by seed, verdicts, transfer. No text, no pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.ablations import statistics
from experiments.ablations.design import ALPHA, DESIGNS, Comparison, Design, Family
from experiments.ablations.endpoints import ENDPOINTS
from experiments.ablations.results import Cases, Record, Results
from internvlu_jax.evaluation.scores import Score

Verdict = Literal["better", "worse", "better within the margin", "worse within the margin", "equal", "open", "untested"]
"""Of an arm against the reference; "equal" is a finding, "open" is none."""

Values = dict[int, float]
"""A number of each seed."""


@dataclass(frozen=True)
class Sample:
    """Runs of one study at one budget."""

    study: str
    budget: str
    design: Design
    counted: tuple[Record, ...]
    tuning: tuple[Record, ...] = ()

    @property
    def arms(self) -> list[str]:
        """Those of the plan, then others; of the plan also those without a run."""
        return list(dict.fromkeys([*self.design.seeds, *(record.run.arm for record in self.counted)]))

    def of(self, arm: str, status: str | None = None) -> list[Record]:
        """Counted runs of an arm by seed."""
        records = [r for r in self.counted if r.run.arm == arm and status in (None, r.status)]
        return sorted(records, key=lambda record: record.run.seed)

    def planned(self, arm: str) -> tuple[int, ...]:
        """Seeds of the plan; where there is no plan, those that were started."""
        return self.design.seeds.get(arm) or tuple(record.run.seed for record in self.of(arm))

    @property
    def tested(self) -> bool:
        return self.budget in self.design.counted_budgets


@dataclass(frozen=True)
class Finding:
    """One test of a family as it came out.

    seeds: the pairs; missing: planned seeds without a pair; imputed: seeds at which a run failed.
    difference: arm minus reference with its t interval; resampled: the same with the interval of the bootstrap.
    p, p_equal: of the sign flip and of equivalence; the adjusted ones are Holm's over the family.
    interim: not all planned runs of the two arms have ended.
    finished_only: the difference without the imputed pairs, where there are some.
    """

    comparison: Comparison
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    imputed: tuple[int, ...]
    difference: Score | None
    resampled: Score | None
    finished_only: Score | None
    p: float
    p_adjusted: float
    p_equal: float
    p_equal_adjusted: float
    verdict: Verdict
    interim: bool


@dataclass(frozen=True)
class Transfer:
    """Joint training minus training on the task alone, with t intervals; against: minus that of the reference."""

    arm: str
    endpoint: str
    by_seed: Values
    gain: Score
    against: Score | None


def samples(results: Results, designs: Mapping[str, Design] = DESIGNS) -> list[Sample]:
    """The results by study and budget, in order of appearance."""
    parts: dict[tuple[str, str], list[Record]] = {}
    for record in results.records:
        parts.setdefault((record.run.study, record.run.budget), []).append(record)
    made = []
    for (study, budget), records in parts.items():
        counted = tuple(r for r in records if not r.run.tuning)
        design = designs.get(study) or Design(reference=records[0].run.arm)
        made.append(Sample(study, budget, design, counted, tuple(r for r in records if r.run.tuning)))
    return made


def values(sample: Sample, arm: str, endpoint: str) -> Values:
    """What the planned runs of an arm gave, of those that finished and have the endpoint."""
    planned = sample.planned(arm)
    records = [r for r in sample.of(arm, "finished") if r.run.seed in planned]
    return {r.run.seed: r.outcome.endpoints[endpoint] for r in records if r.outcome and endpoint in r.outcome.endpoints}


def imputed(sample: Sample, arm: str, endpoint: str) -> Values:
    """What the planned runs of an arm count that failed: the endpoint's worst, or the worst that any run gave.

    Only arms that can be compared with this one are looked at; nothing is imputed where none of them has a value.
    """
    about = ENDPOINTS[endpoint]
    others = [a for a in sample.arms if not about.one_space or sample.design.comparable(arm, a)]
    seen = [value for other in others for value in values(sample, other, endpoint).values()]
    if about.worst is not None:
        worst = about.worst
    elif seen:
        worst = min(seen) if about.better == "higher" else max(seen)
    else:
        return {}
    planned = sample.planned(arm)
    return {r.run.seed: worst for r in sample.of(arm, "failed") if r.run.seed in planned}


def difference(sample: Sample, arm: str, other: str, endpoint: str) -> Score | None:
    """Paired over the seeds that finished in both arms, as `Endpoint.compared` has it; None where there are none."""
    pairs = _differences(endpoint, values(sample, arm, endpoint), values(sample, other, endpoint))
    return statistics.t_interval(list(pairs.values())) if pairs else None


def findings(sample: Sample, family: Family) -> list[Finding]:
    """All tests of a family, Holm's procedure over all of them; a test that cannot be made counts with p = 1."""
    made = [_pairs(sample, comparison) for comparison in family.comparisons]
    p = [statistics.sign_flip(list(pairs.values())) if len(pairs) > 1 else 1.0 for pairs in made]
    margins = [ENDPOINTS[comparison.endpoint].margin for comparison in family.comparisons]
    equal = [
        statistics.equivalence(list(pairs.values()), margin) if len(pairs) > 1 else 1.0
        for pairs, margin in zip(made, margins, strict=True)
    ]
    adjusted, equal_adjusted = statistics.holm(p), statistics.holm(equal)
    return [
        _finding(sample, comparison, made[n], (p[n], adjusted[n], equal[n], equal_adjusted[n]))
        for n, comparison in enumerate(family.comparisons)
    ]


def leading(sample: Sample) -> Family | None:
    """The family to quote: the first that the reference's means reach; None where no family is reached, or planned."""

    def reached(endpoint: str, least: float) -> bool:
        by_seed = values(sample, sample.design.reference, endpoint)
        return bool(by_seed) and float(np.mean(list(by_seed.values()))) >= least

    families = sample.design.families
    return next((f for f in families if all(reached(*item) for item in f.leads_from.items())), None)


def verdict(difference: float, higher_is_better: bool, p_adjusted: float, p_equal_adjusted: float) -> Verdict:
    """The rule that turns adjusted p values of a test into words."""
    differs, equals = p_adjusted <= ALPHA, p_equal_adjusted <= ALPHA
    if not differs:
        return "equal" if equals else "open"
    if (difference > 0) == higher_is_better:
        return "better within the margin" if equals else "better"
    return "worse within the margin" if equals else "worse"


def transfers(sample: Sample) -> list[Transfer]:
    """For each joint arm what training on both tasks does to each endpoint of one."""
    made: dict[tuple[str, str], Values] = {}
    for arm, singles in sample.design.singles.items():
        for name, about in ENDPOINTS.items():
            if about.task in ("understanding", "generation"):
                single = singles[0] if about.task == "understanding" else singles[1]
                pairs = _differences(name, values(sample, arm, name), values(sample, single, name))
                if pairs:
                    made[arm, name] = pairs
    return [_transfer(sample, made, arm, name) for arm, name in made]


def predicted(sample: Sample, endpoint: str) -> tuple[float, int] | None:
    """Does interference predict transfer: the rank correlation over arms and seeds, and of how many; None under 3.

    Interference is the cosine of the two losses' gradients minus that of two batches of one task.
    """
    better = 1 if ENDPOINTS[endpoint].better == "higher" else -1
    points = []
    for transfer in transfers(sample):
        if transfer.endpoint == endpoint:
            cosine, noise = (
                values(sample, transfer.arm, name) for name in ("interference_cosine", "interference_noise")
            )
            shared = set(cosine) & set(noise) & set(transfer.by_seed)
            points += [(cosine[seed] - noise[seed], better * transfer.by_seed[seed]) for seed in sorted(shared)]
    if len(points) < 3:
        return None
    a, b = zip(*points, strict=True)
    return statistics.rank_correlation(a, b), len(points)


def _differences(endpoint: str, arm: Values, other: Values) -> Values:
    compared = ENDPOINTS[endpoint].compared
    seeds = sorted(set(arm) & set(other))
    first, second = ({seed: compared(side[seed]) for seed in seeds} for side in (arm, other))
    return dict(zip(seeds, statistics.paired(first, second).tolist(), strict=True)) if seeds else {}


def _pairs(sample: Sample, comparison: Comparison) -> Values:
    """Differences by seed, failed runs imputed."""
    arm, other = (
        values(sample, name, comparison.endpoint) | imputed(sample, name, comparison.endpoint)
        for name in (comparison.arm, sample.design.reference)
    )
    return _differences(comparison.endpoint, arm, other)


def _finding(sample: Sample, comparison: Comparison, pairs: Values, p: tuple[float, float, float, float]) -> Finding:
    arms = (comparison.arm, sample.design.reference)
    planned = sorted(set().union(*(sample.planned(arm) for arm in arms)))
    failed = {seed for arm in arms for seed in imputed(sample, arm, comparison.endpoint)} & set(pairs)
    ended = [{r.run.seed for r in sample.of(arm) if r.status != "unfinished"} for arm in arms]
    estimate = statistics.t_interval(list(pairs.values())) if pairs else None
    said: Verdict = "untested"
    if estimate and len(pairs) > 1:
        said = verdict(estimate.value, ENDPOINTS[comparison.endpoint].better == "higher", p[1], p[3])
    return Finding(
        comparison,
        seeds=tuple(pairs),
        missing=tuple(seed for seed in planned if seed not in pairs),
        imputed=tuple(sorted(failed)),
        difference=estimate,
        resampled=_resampled(sample, comparison),
        finished_only=difference(sample, *arms, comparison.endpoint) if failed else None,
        p=p[0],
        p_adjusted=p[1],
        p_equal=p[2],
        p_equal_adjusted=p[3],
        verdict=said,
        interim=any(set(planned) - seeds for seeds in ended),
    )


def _resampled(sample: Sample, comparison: Comparison) -> Score | None:
    """The bootstrap over seeds, then cases; None where logarithms are compared, or under two pairs have cases."""
    endpoint = comparison.endpoint
    arm, other = (_cases(sample, name, endpoint) for name in (comparison.arm, sample.design.reference))
    seeds = sorted(set(arm) & set(other))
    if ENDPOINTS[endpoint].log or len(seeds) < 2:
        return None
    rows = [[side[seed] for seed in seeds] for side in (arm, other)]
    kinds = {(cases.name, cases.groups, len(cases.values)) for side in rows for cases in side}
    if len(kinds) > 1:
        raise ValueError(
            f"{sample.study}, budget {sample.budget}: cases of {endpoint} are {sorted(kinds)} in {comparison.arm} and "
            f"{sample.design.reference}; expected the same cases of every run"
        )
    first, second = (np.array([cases.values for cases in side]) for side in rows)
    return statistics.bootstrap(first, second, rows[0][0].groups)


def _cases(sample: Sample, arm: str, endpoint: str) -> dict[int, Cases]:
    planned = sample.planned(arm)
    records = [r for r in sample.of(arm, "finished") if r.run.seed in planned]
    return {r.run.seed: r.outcome.cases[endpoint] for r in records if r.outcome and endpoint in r.outcome.cases}


def _transfer(sample: Sample, made: Mapping[tuple[str, str], Values], arm: str, endpoint: str) -> Transfer:
    own, reference = made[arm, endpoint], made.get((sample.design.reference, endpoint), {})
    seeds: Sequence[int] = sorted(set(own) & set(reference))
    against = None
    if arm != sample.design.reference and seeds:
        against = statistics.t_interval([own[seed] - reference[seed] for seed in seeds])
    return Transfer(arm, endpoint, own, statistics.t_interval(list(own.values())), against)
