"""A study from nothing to its report: what is made beforehand, tuning, training, scores, tables and pictures.

    python -m experiments.ablations STUDY --workdir DIR [--budget smoke|laptop|gpu|gpu-long] [--arms NAME ...]

The same command goes on where it was stopped, run by run. DIR/report.md has the tables and pictures, DIR/results.jsonl
one line for each run that was started and one for each that ended. Several commands with different `--arms` may share
DIR and a machine. `--status` says what is done and what the rest will take, and runs nothing.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import tyro

from experiments.ablations import results
from experiments.ablations.design import CASE_SEEDS
from experiments.ablations.parts import make_parts, needed
from experiments.ablations.report import write_report
from experiments.ablations.running import Bench, Group, Pending, bench, drawn, finish, open_runs, score, train
from experiments.ablations.studies import BUDGETS, STUDIES, Budget, Study, Variant, design_of, designs
from experiments.ablations.tuning import Settings, chosen, tune
from experiments.command import command
from internvlu_jax.config import ConfigError
from internvlu_jax.training.resuming import Stopped
from internvlu_jax.utils.compilation import compile_quickly, enable_cache
from internvlu_jax.utils.devices import prepare_cpu
from internvlu_jax.utils.signals import children_spared


@dataclass(frozen=True)
class Arguments:
    study: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(constructor=tyro.extras.literal_type_from_choices(tuple(STUDIES)))
    ]
    """What is run, of `studies.STUDIES`."""
    workdir: Path
    budget: Literal["smoke", "laptop", "gpu", "gpu-long"] = "smoke"
    arms: tuple[str, ...] = ()
    """By default all arms of the study."""
    seeds: int | None = None
    """The first so many of those that are planned; by default all. At `smoke` one."""
    together: int = 1
    """Runs of one program. On a GPU several cost little more than one."""
    judges: int = 0
    """Processes that read pictures; 0 reads them between runs."""
    until: Literal["parts", "tuning", "runs"] = "runs"
    """Where to stop."""
    status: bool = False
    """Say what is done and what is left, and run nothing."""

    @property
    def of(self) -> Study:
        return STUDIES[self.study].at(self.size.size)

    @cached_property
    def size(self) -> Budget:
        return BUDGETS[self.budget]

    def planned(self, arm: str) -> tuple[int, ...]:
        """Seeds of an arm."""
        seeds = design_of(self.of).seeds[arm]
        return seeds[: (1 if self.budget == "smoke" else None) if self.seeds is None else self.seeds]


def main(arguments: Arguments) -> int:
    """Status 0 also where a signal stopped it, 2 for what a user can put right."""
    try:
        variants = arguments.of.chosen(arguments.arms)
        if arguments.together < 1 or arguments.judges < 0:
            raise ConfigError(f"--together {arguments.together} --judges {arguments.judges}; expected at least 1 and 0")
        if arguments.seeds is not None and arguments.seeds < 1:
            raise ConfigError(f"--seeds {arguments.seeds}; expected at least 1, how many of those planned are run")
        if arguments.status:
            print(status(arguments, variants))
            return 0
        prepare_cpu()
        enable_cache()
        if not arguments.size.optimized:
            compile_quickly()
        signal.signal(signal.SIGTERM, _leave)
        try:
            with _judges(arguments.judges) as judges:
                run(arguments, variants, judges)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
        print(write_report(arguments.workdir / "results.jsonl", arguments.workdir, designs()))
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Between trainings, which take the signal themselves: what is being judged is still written down."""
    sys.exit(128 + number)


def _judges(count: int) -> Executor:
    return _Processes(count, get_context("spawn")) if count else ThreadPoolExecutor(1)


class _Processes(ProcessPoolExecutor):
    """That are not interrupted themselves; one is started when it has something to do."""

    def submit(self, *call: Any, **named: Any) -> Future:
        with children_spared():
            return super().submit(*call, **named)


def run(arguments: Arguments, variants: tuple[Variant, ...], judges: Executor) -> None:
    """All that is missing of some arms of a study. Raises as `bench`, `tune` and `train` do."""
    if arguments.until != "parts":
        check_tuned(arguments, variants)
    names = needed(variant.arm for variant in arguments.of.all())
    parts = make_parts(arguments.workdir, arguments.size.parts, arguments.of.size, names, arguments.of.lessons)
    for mixture in dict.fromkeys(variant.mixture for variant in variants):
        drawn(arguments.of.world, mixture, arguments.size.examples, arguments.workdir)
    if arguments.until == "parts":
        return
    for variant in variants:
        at = bench(arguments.of, variant, arguments.size, parts, arguments.workdir)
        settings = settings_of(arguments, variant) or tune(at, judges, arguments.together)
        if arguments.until == "runs":
            count(arguments, at, settings, judges)


def check_tuned(arguments: Arguments, variants: tuple[Variant, ...]) -> None:
    """Raises ValueError, before anything is made, if an arm has the settings of one that is not tuned, nor will be."""
    now = {v.name for v in variants if v.tuned_as is None and arguments.of.tuned_in is None}
    for variant in variants:
        if variant.tuned_as not in now:
            settings_of(arguments, variant)


def settings_of(arguments: Arguments, variant: Variant) -> Settings | None:
    """Of an arm that is not tuned in this study; None where it is tuned here."""
    study = arguments.of
    if variant.tuned_as is None and study.tuned_in is None:
        return None
    path = arguments.workdir / "results.jsonl"
    arm = variant.tuned_as or variant.name
    settings = chosen(path, study.tuned_in or study.name, arm, arguments.size, variant.arm.sampled_by)
    return settings if variant.flow_weight is None else replace(settings, flow_weight=variant.flow_weight)


def count(arguments: Arguments, at: Bench, settings: Settings, judges: Executor) -> None:
    """The counted runs of one arm. While the pictures of some are judged the next ones train."""
    budget, pending = at.budget, list[Pending]()
    cases = (budget.cases, CASE_SEEDS["test"])
    scorer = None
    try:
        for group in groups(arguments, at, settings):
            if open_runs(at.results, group.runs):
                scorer = scorer or at.scorer(at.variant.scores, *cases)
                states = train(at, group)
                waiting = score(at, group, states, scorer, settings.sampling(budget), judges, cases)
                judged, pending = pending, waiting
                finish(at, judged, budget.steps)
    finally:
        finish(at, pending, budget.steps)


def groups(arguments: Arguments, at: Bench, settings: Settings) -> Iterator[Group]:
    """An arm's runs, so many at a time as train together."""
    seeds, together, third = arguments.planned(at.variant.name), arguments.together, at.variant.arm.sampled_by
    told: Mapping[str, float] = {
        "learning_rate": settings.learning_rate, "flow_weight": settings.flow_weight, "guidance": settings.guidance,
        third: getattr(settings, third), "steps": at.budget.steps, "cases": at.budget.cases,
    }  # fmt: skip
    for first in range(0, len(seeds), together):
        some = seeds[first : first + together]
        name = f"seeds-{some[0]}-{some[-1]}" if len(some) > 1 else f"seed-{some[0]}"
        runs = tuple(at.run(seed, told) for seed in some)
        yield Group(name, runs, tuple(settings.member(seed, at.variant.term) for seed in some), at.budget.steps)


def status(arguments: Arguments, variants: tuple[Variant, ...]) -> str:
    """A line for each arm: what is done, and by the time of what is done how long the rest takes."""
    records = results.read(arguments.workdir / "results.jsonl").records
    mine = [r for r in records if (r.run.study, r.run.budget) == (arguments.study, arguments.budget)]
    means = [r.seconds for r in mine if not r.run.tuning and r.status == "finished"]
    lines, left = [], 0
    for variant in variants:
        own = [record for record in mine if record.run.arm == variant.name]
        ended = {r.run.seed for r in own if not r.run.tuning and r.status != "unfinished"}
        planned = arguments.planned(variant.name)
        left += len(set(planned) - ended)
        tuned = sum(record.run.tuning and record.status == "finished" for record in own)
        lines.append(f"{variant.name:34} {len(ended & set(planned))} of {len(planned)} runs ended, {tuned} of tuning")
    if means:
        mean = sum(means) / len(means)
        lines.append(f"{left} runs are left, {mean:.0f} s each by those that ended: {left * mean / 3600:.1f} hours")
    else:
        lines.append(f"{left} runs are left; what one takes is not known before one has ended")
    return "\n".join(lines)


if __name__ == "__main__":
    command(main, Arguments, "experiments.ablations", __doc__)
