"""Tuning of an arm by the rules of `protocol.md`: rates, then weights, then how pictures are drawn.

Every run of it is in the results, marked as tuning, and `chosen` finds the settings there: whoever has the file of
results can see why they are what they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from experiments.ablations import results
from experiments.ablations.design import CASE_SEEDS, TUNING_SEEDS
from experiments.ablations.judging import judged
from experiments.ablations.results import Outcome, Record, Run
from experiments.ablations.running import Bench, Group, finish, open_runs, score, train
from experiments.ablations.scoring import Sampling
from experiments.ablations.studies import Budget
from experiments.ablations.together import Member, final_params

_SEED = TUNING_SEEDS[0]
_VALIDATION = CASE_SEEDS["validation"]


@dataclass(frozen=True)
class Settings:
    """What tuning decides about an arm.

    flow_weight: of the loss of pictures, be they latents or codes.
    shift, temperature: 1 where the arm is sampled by the other (`Arm.sampled_by`).
    """

    learning_rate: float
    flow_weight: float
    guidance: float
    shift: float = 1.0
    temperature: float = 1.0

    def member(self, seed: int, term: str = "flow") -> Member:
        """term: that of pictures."""
        return Member(seed, self.learning_rate, ((term, self.flow_weight),))

    def sampling(self, budget: Budget) -> Sampling:
        return Sampling(self.guidance, self.shift, budget.sampler_steps, budget.cases, self.temperature)


def tune(at: Bench, judges: Executor, together: int, quiet: bool = False) -> Settings:
    """Makes the runs of tuning that are missing, and gives what is best.

    Args:
        together: runs of one program.

    Raises:
        ValueError: no run of tuning was finite. Stopped: a signal came; the same call goes on.
    """
    tried = at.budget.tuning
    first = [(rate, tried.flow_weights[0]) for rate in tried.learning_rates]
    groups = _trained(at, judges, "rates", first, together, quiet)
    rate, _ = _best_trained(at, first)
    second = [(r, weight) for r in (rate, rate / 2) for weight in tried.flow_weights[1:]]
    groups |= _trained(at, judges, "weights", second, together, quiet)
    best = _best_trained(at, first + second)
    _sampled(at, judges, groups[best], best, quiet)
    return chosen(at.results, at.study.name, at.variant.name, at.budget, at.variant.arm.sampled_by)


def chosen(path: Path, study: str, arm: str, budget: Budget, sampled_by: str = "shift") -> Settings:
    """What the results say is best for an arm.

    Args:
        sampled_by: `Arm.sampled_by`.

    Raises:
        ValueError: tuning is not there, or has not ended.
    """
    tried = {
        tuple(s.get(name, 1.0) for name in _SETTINGS): record.outcome.endpoints["geneval_seen"]
        for record in results.read(path).records
        if record.outcome
        and (record.run.study, record.run.arm, record.run.budget, record.run.tuning) == (study, arm, budget.name, True)
        and "guidance" in (s := record.run.settings)
    }
    if len(tried) < len(budget.tuning.guidance) * len(budget.tuning.third(sampled_by)):
        raise ValueError(
            f"{path}: arm {arm} of {study} is not tuned at budget {budget.name}; run that arm first: python -m "
            f"experiments.ablations {study} --arms {arm} --budget {budget.name} --until tuning --workdir {path.parent}"
        )
    # Rounded: means of one value by other ways differ in the last bit.
    best = max(tried, key=lambda key: (round(tried[key], 9), -key[2], -abs(math.log(key[3] * key[4]))))
    return Settings(*best)


_SETTINGS = tuple(field.name for field in fields(Settings))
_Pair = tuple[float, float]  # learning rate, weight of the loss of pictures


def _run(at: Bench, pair: _Pair, sampling: Sampling | None = None) -> Run:
    settings = {"learning_rate": pair[0], "flow_weight": pair[1], "steps": at.budget.tuning_steps}
    if sampling is not None:
        third = at.variant.arm.sampled_by
        settings |= {"guidance": sampling.guidance, third: getattr(sampling, third)}
    return at.run(_SEED, {**settings, "cases": at.budget.tuning_cases}, tuning=True)


def _trained(
    at: Bench, judges: Executor, name: str, pairs: Sequence[_Pair], together: int, quiet: bool
) -> dict[_Pair, tuple[Group, int]]:
    """Trains and measures what has not ended; for each pair its group, and its number there."""
    places: dict[_Pair, tuple[Group, int]] = {}
    scores = tuple(s for s in (at.study.drawing_loss(at.variant), "answer_log_likelihood") if s in at.variant.scores)
    for first in range(0, len(pairs), together):
        some = pairs[first : first + together]
        group = Group(
            f"tuning-{name}-{first // together}",
            tuple(_run(at, pair) for pair in some),
            tuple(Member(_SEED, rate, ((at.variant.term, weight),)) for rate, weight in some),
            at.budget.tuning_steps,
        )
        places |= {pair: (group, n) for n, pair in enumerate(some)}
        if open_runs(at.results, group.runs):
            states = train(at, group, quiet)
            cases = (at.budget.tuning_cases, _VALIDATION)
            scorer = at.scorer(scores, *cases)
            finish(at, score(at, group, states, scorer, Sampling(), judges, cases), group.steps)
    return places


def _best_trained(at: Bench, pairs: Sequence[_Pair]) -> _Pair:
    """The lowest ln(loss of pictures) minus log-likelihood: the two have one margin, so they count alike."""
    records = {record.run.key: record for record in results.read(at.results).records}
    drawing = at.study.drawing_loss(at.variant)
    values = {pair: _worth(records.get(_run(at, pair).key), drawing) for pair in pairs}
    best = min(pairs, key=lambda pair: values[pair])
    if math.isinf(values[best]):
        raise ValueError(f"{at.results}: of {at.variant.name} no run of tuning is finite; expected one at least")
    return best


def _worth(record: Record | None, drawing: str) -> float:
    if record is None or record.outcome is None:
        return math.inf
    endpoints = record.outcome.endpoints
    return math.log(endpoints[drawing]) - endpoints["answer_log_likelihood"]


def _sampled(at: Bench, judges: Executor, place: tuple[Group, int], pair: _Pair, quiet: bool) -> None:
    """Draws the validation cases of the best model in all ways; each is a line of the results."""
    tried, steps, count = at.budget.tuning, at.budget.sampler_steps, at.budget.tuning_cases
    third = at.variant.arm.sampled_by
    thirds: list[Any] = [{third: value} for value in tried.third(third)]
    ways = [Sampling(guidance=g, steps=steps, batch=count, **other) for g in tried.guidance for other in thirds]
    runs = [_run(at, pair, way) for way in ways]
    missing = open_runs(at.results, runs)
    if not missing:
        return
    group, number = place
    params = final_params(train(at, group, quiet), number)
    cases = (at.budget.tuning_cases, _VALIDATION)
    scorer = at.scorer(("geneval_seen",), *cases)
    futures = {}
    for n in missing:
        results.begin(at.results, runs[n])
        replies = scorer.replies(params, "geneval_seen", ways[n])
        futures[n] = judges.submit(judged, at.study.world, "geneval_seen", *cases, replies)
    for n, future in futures.items():
        endpoints, of = future.result()
        results.finish(at.results, runs[n], Outcome(0.0, group.steps, {}, endpoints, {}, of))
