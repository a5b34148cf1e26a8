"""Runs a benchmark on all devices, and scores what it made.

    python -m experiments.benchmarks NAME --prompts FILE --checkpoint ID --out DIR [--devices all]
    python -m experiments.benchmarks score DIR

The files of each benchmark are those of its authors (`internvlu_jax/evaluation/README.md`). The same command again goes
on where it was stopped, and tries again what failed. Several hosts share a folder, each with its --host of --hosts.
Status 1: some items failed, and DIR/failures.json says why; 2: what a user can put right.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

import internvlu_jax
from internvlu_jax.config import Quantization
from internvlu_jax.evaluation.benchmarks import BENCHMARKS
from internvlu_jax.evaluation.folder import benchmark_of
from internvlu_jax.evaluation.runner import Outcome, read_items, run
from internvlu_jax.evaluation.settings import RunOptions
from internvlu_jax.evaluation.task import NeedsJudge, Report
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.utils.failures import failed, one_line, out_of_memory

Name = Literal["geneval", "dpg", "wise", "gedit", "imgedit", "risebench", "textedit", "ocrbench", "mme", "mmmu"]


@dataclass(frozen=True)
class Run:
    name: tyro.conf.Positional[Name]
    """The benchmark."""
    prompts: Annotated[Path, tyro.conf.arg(aliases=["--data"])]
    """Its prompts: a file, or a folder where it has several."""
    out: Path
    """The folder of the run."""
    pictures: Path | None = None
    """The folder of its pictures, where they lie apart."""
    checkpoint: str | None = None
    """A directory or a Hub id; by default the model in the box."""
    devices: str | None = None
    """That share the items: all, pmap, or sizes of a mesh such as data=4,tensor=2. Default: one device."""
    dtype: str | None = None
    """Of the computation; by default float32 on a CPU, bfloat16 elsewhere."""
    quantize: Quantization | None = None
    """8-bit weights, as in the pipeline."""
    options: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions()


@dataclass(frozen=True)
class Score:
    out: tyro.conf.Positional[Path]
    """The folder of a run."""


def execute(arguments: Run) -> int:
    """Runs a benchmark; the status of the command."""
    arguments.options.check()
    benchmark = BENCHMARKS[arguments.name]
    items = read_items(benchmark, arguments.prompts, arguments.pictures, arguments.out)
    pipe = InternVLUPipeline.from_pretrained(
        arguments.checkpoint, dtype=arguments.dtype, devices=arguments.devices, quantize=arguments.quantize
    )
    known = {
        "checkpoint": arguments.checkpoint or "the model in the box",
        "devices": arguments.devices,
        "version": internvlu_jax.__version__,
    }
    outcome = run(benchmark, items, pipe, arguments.out, arguments.options, known)
    print(told(outcome, arguments.out), file=sys.stderr)
    if outcome.complete:
        score(arguments.out)
    return 1 if outcome.failures else 0


def score(out: Path) -> None:
    """Prints the scores of a run's folder beside what was published, or what has to come first."""
    benchmark = BENCHMARKS[benchmark_of(out)]
    try:
        report = benchmark.score(out)
    except NeedsJudge as error:
        print(error)
        return
    Console().print(table(report))
    for note in report.notes:
        print(note)


def told(outcome: Outcome, out: Path) -> str:
    """What a run did, in lines."""
    lines = [f"{out}: {outcome.done} made, {outcome.there} were there, {len(outcome.failures)} failed"]
    if outcome.failures:
        name, reason = next(iter(outcome.failures.items()))
        lines.append(f"{out / 'failures.json'} says why; the first is {name}: {reason}")
    if outcome.pace is not None:
        pace = outcome.pace
        lines.append(
            f"{pace.run:.3g} a second with files, {pace.run / pace.alone:.2f} of {pace.alone:.3g} without, "
            "in the same batches"
        )
    return "\n".join(lines)


def table(report: Report) -> Table:
    """Every score, its interval, and what was published."""
    rows = Table("score", "value", "95% interval", "of", "published")
    for name, found in report.scores.items():
        published = report.published.get(name)
        known = found.json()
        interval = "" if known["low"] is None or known["high"] is None else f"{found.low:.4g} to {found.high:.4g}"
        rows.add_row(
            name, f"{found.value:.4g}", interval, str(found.count), "" if published is None else f"{published:g}"
        )
    for name in report.published.keys() - report.scores.keys():
        rows.add_row(name, "", "", "", f"{report.published[name]:g}")
    return rows


def main(arguments: Sequence[str]) -> int:
    """The command; its status."""
    try:
        if list(arguments[:1]) == ["score"]:
            score(tyro.cli(Score, args=arguments[1:], prog="python -m experiments.benchmarks score").out)
            return 0
        return execute(tyro.cli(Run, args=arguments, description=__doc__))
    except (ValueError, OSError) as error:
        return failed("error", one_line(error), 2)
    except (RuntimeError, MemoryError) as error:
        return failed("error", out_of_memory(error), 1)
    except KeyboardInterrupt:
        return failed("interrupted", "the same command goes on from here", 130)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
