"""Runs a benchmark on all devices, and scores what it made.

    python -m experiments.benchmarks NAME --prompts FILE --checkpoint ID --out DIR [--devices all]
    python -m experiments.benchmarks small-world --out DIR [--checkpoint ID] [--count 500] [--only words edits ...]
    python -m experiments.benchmarks score DIR

The files of each benchmark are those of its authors (`internvlu_jax/evaluation/README.md`). The same command again goes
on where it was stopped, and tries again what failed. Several hosts share a folder, each with its --host of --hosts.
Status 1: some items failed, and DIR/failures.json says why; 2: what a user can put right.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

import internvlu_jax
from internvlu_jax.config import Quantization
from internvlu_jax.evaluation.benchmarks import BENCHMARKS
from internvlu_jax.evaluation.folder import benchmark_of, check_folder
from internvlu_jax.evaluation.pace import Pace
from internvlu_jax.evaluation.runner import Outcome, read_items, run
from internvlu_jax.evaluation.settings import RunOptions
from internvlu_jax.evaluation.task import NeedsJudge, Report, distinct
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.small_world import benchmark as small_world
from internvlu_jax.small_world.benchmark import Cases
from internvlu_jax.utils.failures import failed, nobody_reads, one_line, out_of_memory
from internvlu_jax.utils.signals import interrupts_unwrapped

Name = Literal["geneval", "dpg", "wise", "gedit", "imgedit", "risebench", "textedit", "ocrbench", "mme", "mmmu"]


@dataclass(frozen=True)
class Model:
    checkpoint: str | None = None
    """A directory or a Hub id; by default the model in the box."""
    devices: str | None = None
    """That share the items: all, pmap, or sizes of a mesh such as data=4,tensor=2. Default: one device."""
    dtype: str | None = None
    """Of the computation; by default float32 on a CPU, bfloat16 elsewhere."""
    time: str | None = None
    """What the head's time is rounded to, as in the pipeline."""
    quantize: Quantization | None = None
    """8-bit weights, as in the pipeline."""

    def load(self) -> InternVLUPipeline:
        return InternVLUPipeline.from_pretrained(
            self.checkpoint, dtype=self.dtype, devices=self.devices, quantize=self.quantize, time=self.time
        )

    def known(self) -> dict[str, Any]:
        """What of it goes into the settings of a run."""
        named = self.checkpoint or "the model in the box"
        return {"checkpoint": named, "devices": self.devices, "version": internvlu_jax.__version__}


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
    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    options: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions()


@dataclass(frozen=True)
class SmallWorld:
    out: Path
    """The folder of the run."""
    cases: tyro.conf.OmitArgPrefixes[Cases] = Cases()
    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    options: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions(batch=50)


@dataclass(frozen=True)
class Score:
    out: tyro.conf.Positional[Path]
    """The folder of a run."""


def execute(arguments: Run) -> int:
    """Runs a benchmark; the status of the command."""
    arguments.options.check()
    benchmark = BENCHMARKS[arguments.name]
    items = read_items(benchmark, arguments.prompts, arguments.pictures, arguments.out)
    known = arguments.model.known()
    return ended(run(benchmark, items, arguments.model.load(), arguments.out, arguments.options, known), arguments.out)


def execute_small_world(arguments: SmallWorld) -> int:
    """Runs the small world's cases; the status of the command."""
    options, cases = arguments.options, arguments.cases
    options.check()
    if options.limit is not None:
        raise ValueError(f"--limit is {options.limit}, which would cut sets in half; give --count, of each, or --only")
    cases.check(options.height)
    check_folder(arguments.out)
    pipe = arguments.model.load()
    head = pipe.config.generation_decoder
    sides = {options.height or head.gen_image_height, options.width or head.gen_image_width}
    if len(sides) > 1:
        raise ValueError(f"pictures would have sides of {sides}; expected a square: give --height and --width")
    (side,) = sides
    known = {**arguments.model.known(), **small_world.known(cases, side)}
    asked = list(distinct(small_world.items(cases, side)))
    return ended(run(small_world.benchmark(cases, side), asked, pipe, arguments.out, options, known), arguments.out)


def ended(outcome: Outcome, out: Path) -> int:
    """Says what a run did, and its scores where it is complete; the status of the command."""
    print(told(outcome, out), file=sys.stderr)
    if outcome.complete:
        score(out)
    return 1 if outcome.failures else 0


def score(out: Path) -> None:
    """Prints the scores of a run's folder beside what was published, or what has to come first."""
    out = Path(os.path.abspath(out))  # scorers know a run by its folder's name, which "." and ".." are not
    benchmark = {**BENCHMARKS, small_world.NAME: small_world.benchmark()}[benchmark_of(out)]
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
        lines.append(paced(outcome.pace))
    return "\n".join(lines)


def paced(pace: Pace) -> str:
    """A run's pace beside that of the programs that it calls."""
    parts = {"all its programs alone": pace.compiled, "the sampler alone": pace.sampler}
    shares = [f"{pace.run / alone:.2f} of {alone:.3g} by {name}" for name, alone in parts.items() if alone is not None]
    return f"{pace.run:.3g} a second with files, {', '.join(shares)}"


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
    program, first = "python -m experiments.benchmarks", list(arguments[:1])
    try:
        with interrupts_unwrapped():
            if first == ["score"]:
                score(tyro.cli(Score, args=arguments[1:], prog=f"{program} score").out)
                return 0
            if first == [small_world.NAME]:
                return execute_small_world(
                    tyro.cli(SmallWorld, args=arguments[1:], prog=f"{program} {small_world.NAME}")
                )
            return execute(tyro.cli(Run, args=arguments, prog=program, description=__doc__))
    except BrokenPipeError:
        return nobody_reads()
    except (ValueError, OSError) as error:
        return failed("error", one_line(error), 2)
    except (RuntimeError, MemoryError) as error:
        return failed("error", out_of_memory(error), 1)
    except KeyboardInterrupt:
        return failed("interrupted", "the same command goes on from here", 130)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
