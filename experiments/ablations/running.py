"""Runs of one arm: several train together, every one is scored, and each writes its line of results.

In WORKDIR: parts/ (see `parts`), pool-WORLD-COUNT.npz or, of another mixture than the general one,
pool-WORLD-MIXTURE-COUNT.npz, results.jsonl, and for each group of runs a directory runs/STUDY/BUDGET/ARM/GROUP as
`together.train_together` has it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.ablations import interference, matching, results
from experiments.ablations.arms import arms_of
from experiments.ablations.codes import in_rows, model_of, objective_of, with_codes
from experiments.ablations.design import SEEDS
from experiments.ablations.judging import Measured, judged
from experiments.ablations.matching import Row
from experiments.ablations.parts import Part, arm_start, codec_name
from experiments.ablations.pool import KINDS, Pool, PoolConfig, PooledSteps, collated, load_or_draw, with_latents
from experiments.ablations.report import pictures_name
from experiments.ablations.results import Curve, Outcome, Run
from experiments.ablations.scoring import Sampling, Scorer
from experiments.ablations.studies import Budget, Study, Variant
from experiments.ablations.together import Member, final_params, train_together
from experiments.ablations.world import DATA, sources, tokenizer
from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.data.batch import Batch
from internvlu_jax.models.code_model import CodeModel
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.small_world.scoring.suite import Reply
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.step import Step, TrainState
from internvlu_jax.utils.files import read_json, write_json
from internvlu_jax.utils.sheets import save_sheet

_INTERFERENCE = "interference.jsonl"
_POINTS = 40  # of a curve
_SHOWN = 16  # pictures of an arm that the report shows


@dataclass(frozen=True, eq=False)
class Bench:
    """What all runs of one arm share on one machine: read once, compiled once.

    model: as it is scored, in float32; step: of training.
    start: from a seed to all parameters of its model.
    read: from the number of a step to its micro-batches.
    row: of `matching`, already held against the reference where the study wants that.
    ceilings: by the names of `endpoints.CEILINGS`.
    """

    study: Study
    variant: Variant
    budget: Budget
    workdir: Path
    model: InternVLU
    step: Step
    start: Callable[[int], Params]
    read: PooledSteps
    row: Row
    ceilings: Mapping[str, float]

    @property
    def results(self) -> Path:
        return self.workdir / "results.jsonl"

    def run(self, seed: int, settings: Mapping[str, Any], tuning: bool = False) -> Run:
        """One run. settings: beside those that the budget says."""
        budget = self.budget
        fixed = {
            "kinds": list(self.variant.kinds), "rows": dict(budget.rows), "noises": budget.noises,
            "examples": budget.examples, "warmup": budget.warmup, "ema": budget.ema,
            "dtype": budget.dtype, **self.variant.told(),
        }  # fmt: skip
        return Run(self.study.name, self.variant.name, seed, budget.name, {**fixed, **settings}, tuning)

    def scorer(self, scores: tuple[str, ...], cases: int, case_seed: int) -> Scorer:
        return Scorer(self.model, tokenizer(), self.study.world, count=cases, case_seed=case_seed, scores=scores)


def bench(study: Study, variant: Variant, budget: Budget, parts: Mapping[str, Part], workdir: Path) -> Bench:
    """Reads the pool and prepares the step.

    Raises:
        ValueError: the arm is not like the reference (`matching.parity`) and has to be, or a part does not fit it.
        ConfigError: the pool in `workdir` is another one, or too small.
    """
    start = partial(_params, variant, parts)
    config, params = arm_start(variant.arm, parts, 0)
    model = model_of(config, tokenizer().special_table_ids, Compute(attention="xla"))
    trained = replace(model, compute=replace(model.compute, dtype=budget.dtype, time="float32"))
    optimizer = OptimizerConfig(
        schedule="cosine", warmup=budget.warmup, b2=0.99, ema=budget.ema, rates=variant.arm.rates,
        matrices=variant.matrices,
    )  # fmt: skip
    objective = objective_of(trained, variant.objective(budget.noises))
    step = Step(objective, optimizer, factors(params, optimizer), budget.steps)
    rows = dict(budget.rows)
    mixture = Mixture(study.world, variant.mixture, variant.reasoned, study.sizes.contexts, budget.examples)
    whole = {
        name: _stored(batch, model, params)
        for name, batch in pool(mixture, config, workdir).items()
        if name in variant.kinds
    }
    reference = [arms_of(study.size)["decoupled"]] if study.matched else []
    arms = list(dict.fromkeys((*reference, variant.arm)))
    *_, row = matching.parity(arms, rows, replace(study.sizes, noises=budget.noises))
    read = PooledSteps(whole, {kind: rows[kind] for kind in variant.kinds})
    limits = parts[codec_name(variant.arm)].ceiling
    assert limits is not None, "an autoencoder has a ceiling"
    return Bench(
        study, variant, budget, workdir, model, step, start, read, row,
        {"reader": limits.right.value, "psnr": limits.psnr.value, **limits.drawn},
    )  # fmt: skip


def _stored(batch: Batch, model: InternVLU, params: Params) -> Batch:
    """A whole batch with latents or codes in place of its pictures, as the arm reads them."""
    if isinstance(model, CodeModel):
        return with_codes(in_rows(batch, model.cfg, tokenizer().img_context), model, params)
    return with_latents(batch, model, params)


def _params(variant: Variant, parts: Mapping[str, Part], seed: int) -> Params:
    return arm_start(variant.arm, parts, seed)[1]


@cache
def drawn(world: str, mixture: str, examples: int, workdir: Path) -> Pool:
    """The examples of a mixture, drawn into `workdir` or taken from there."""
    name = f"pool-{world}-{examples}" if mixture == "general" else f"pool-{world}-{mixture}-{examples}"
    return load_or_draw(PoolConfig(sources(world, mixture), examples), workdir / name)


@dataclass(frozen=True)
class Mixture:
    """What examples a run reads. reasoned, contexts: as in `Variant` and `Sizes`."""

    world: str
    name: str
    reasoned: bool
    contexts: tuple[int, ...]
    examples: int


@lru_cache(1)  # an arm and its controls read the same ones, one after another
def pool(mixture: Mixture, config: InternVLUConfig, workdir: Path) -> dict[str, Any]:
    """The batches of all kinds as a model takes them. Not to be written to."""
    every = drawn(mixture.world, mixture.name, mixture.examples, workdir)
    data = replace(DATA, text_lengths=mixture.contexts)
    return collated(every if mixture.reasoned else every.without_reasoning(), config, tokenizer(), data)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that train together. members: one for each run; steps: of each."""

    name: str
    runs: tuple[Run, ...]
    members: tuple[Member, ...]
    steps: int


def open_runs(path: Path, runs: Sequence[Run]) -> list[int]:
    """Numbers of the runs that have not ended yet."""
    ended = {record.run.key for record in results.read(path).records if record.status != "unfinished"}
    return [n for n, run in enumerate(runs) if run.key not in ended]


def directory(at: Bench, group: Group) -> Path:
    return at.workdir / "runs" / at.study.name / at.budget.name / at.variant.name / group.name


def train(at: Bench, group: Group, quiet: bool = False) -> TrainState:
    """Trains a group, or goes on with it, after noting that its runs are started.

    Raises:
        Stopped: a signal came; the same call goes on.
        ConfigError, ValueError: as `train_together` and `results.begin`.
    """
    for n in open_runs(at.results, group.runs):
        results.begin(at.results, group.runs[n])
    where = directory(at, group)
    before, began = _seconds(where), time.perf_counter()
    both = not group.runs[0].tuning and at.variant.kinds == KINDS
    looks = interference.looks(at.step, at.read, group.steps, group.members, where / _INTERFERENCE) if both else {}
    try:
        return train_together(
            at.step, at.start, group.members, at.read, where, {"arm": at.variant.name, "world": at.study.world},
            looks=looks, count=group.steps, quiet=quiet,
        )  # fmt: skip
    finally:
        where.mkdir(parents=True, exist_ok=True)
        write_json(where / "seconds.json", before + time.perf_counter() - began)


def _seconds(where: Path) -> float:
    """Of training until now, over all processes."""
    path = where / "seconds.json"
    return float(read_json(path)) if path.is_file() else 0.0


# Scores


@dataclass(frozen=True, eq=False)
class Pending:
    """A run whose pictures are being judged."""

    run: Run
    seconds: float
    measured: Measured
    judged: tuple[Future[Measured], ...]
    curves: Mapping[str, Curve]


def score(
    at: Bench, group: Group, states: TrainState, scorer: Scorer, sampling: Sampling, judges: Executor,
    cases: tuple[int, int],
) -> list[Pending]:  # fmt: skip
    """Puts the cases to each run that has not ended; runs that are not finite are noted as failed.

    Args:
        judges: where pictures are read. cases: their number in each set, and their seed.
    """
    lines = _metrics(directory(at, group))
    trained = _seconds(directory(at, group)) / len(group.runs)
    pending = []
    for n in open_runs(at.results, group.runs):
        run, began = group.runs[n], time.perf_counter()
        if reason := _failure(lines, n):
            results.fail(at.results, run, reason, trained, group.steps)
            continue
        params = final_params(states, n)
        measured = scorer.losses(params)
        told = interference.told(directory(at, group) / _INTERFERENCE, n)
        measured[0].update(interference.endpoints(told))
        if bad := [name for name, value in measured[0].items() if not math.isfinite(value)]:
            results.fail(at.results, run, f"{bad[0]} is not finite", trained, group.steps)
            continue
        futures = []
        for name in scorer.sets:
            replies = scorer.replies(params, name, sampling)
            if name == "geneval_heldout" and not run.tuning and run.seed == SEEDS[0]:
                _show(at, run, replies)
            futures.append(judges.submit(judged, at.study.world, name, *cases, replies))
        seconds = trained + time.perf_counter() - began
        curves = _curves(lines, n, at) | interference.curves(told, _operations(at))
        pending.append(Pending(run, seconds, measured, tuple(futures), curves))
    return pending


def finish(at: Bench, pending: Sequence[Pending], steps: int) -> None:
    """Waits for the judges, and writes the results."""
    row, counts = at.row, at.row.operations
    parity = {
        "parameters": row.learned, "decoder_parameters": row.decoder, "operations": row.mean,
        "vision_tokens": row.tokens[0], "head_tokens": row.tokens[1], "trained_parameters": row.trained,
        "encoder_parameters": row.encoder, "copied_parameters": row.copies,
        "question_operations": counts["questions"], "picture_operations": counts["pictures"],
        "edit_operations": counts["edits"],
    }  # fmt: skip
    for one in pending:
        endpoints, cases = dict(one.measured[0]), dict(one.measured[1])
        for future in one.judged:
            more, of = future.result()
            endpoints |= more
            cases |= of
        outcome = Outcome(one.seconds, steps, parity, endpoints, at.ceilings, cases, one.curves)
        results.finish(at.results, one.run, outcome)


def _show(at: Bench, run: Run, replies: Sequence[Reply]) -> None:
    """The first pictures of the arm's first seed in a row, as the report shows them."""
    pictures = [reply.picture for reply in replies[:_SHOWN] if reply.picture is not None]
    sheet = Image.fromarray(np.concatenate(pictures, axis=1))
    save_sheet(sheet, at.workdir / pictures_name(run.study, run.budget, run.arm))


def _metrics(where: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (where / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _failure(lines: Sequence[Mapping[str, float]], n: int) -> str:
    """Why member n failed; nothing where every step was finite."""
    step = next((int(line["step"]) for line in lines if not line[f"finite/{n}"]), None)
    return "" if step is None else f"the gradient of step {step} is not finite"


def _operations(at: Bench) -> float:
    """Of a step."""
    rows = dict(at.budget.rows)
    return sum(rows[kind] * at.row.operations[kind] for kind in at.variant.kinds)


def _curves(lines: Sequence[Mapping[str, float]], n: int, at: Bench) -> dict[str, Curve]:
    """Mean losses of member n over equal parts of its run, by operations until the end of each part."""
    a_step = _operations(at)
    parts = np.array_split(np.arange(len(lines)), min(_POINTS, len(lines)))
    kinds = at.variant.kinds
    terms = {"text_loss": "questions" in kinds, f"{at.variant.term}_loss": "pictures" in kinds}
    return {
        name: tuple(
            (float(a_step * (part[-1] + 1)), float(np.mean([lines[i][f"{name}/{n}"] for i in part]))) for part in parts
        )
        for name, there in terms.items()
        if there
    }
