"""How good is a model of the small world? Every score on fixed cases that training has not seen.

    python -m experiments.small_world.evaluate [--model DIR] [--count 500] [--json] [--out DIR] [--only NAME ...]

Without `--model` it is the model in the box. OUT/scores.json gets the scores with their 95% intervals and the settings
that they hold for, OUT/<name>.png successes and failures. Run again it goes on: what OUT/scores.json has, for the same
settings and the same parameters, is not computed again.
"""

from __future__ import annotations

import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import internvlu_jax
from internvlu_jax.config import Quantization
from internvlu_jax.evaluation.settings import fingerprint
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.small_world import WORLDS
from internvlu_jax.small_world.scoring.responder import NEW_TOKENS, PipelineResponder, SamplingOptions
from internvlu_jax.small_world.scoring.sheet import outcome_sheet
from internvlu_jax.small_world.scoring.suite import KEYS, Responder, run
from internvlu_jax.utils.files import write_json
from internvlu_jax.utils.sheets import save_sheet

Name = Literal["geneval_seen", "geneval_heldout", "questions", "edits", "words", "reasoning", "domain_questions"]
SHIPPED: tuple[Name, ...] = ("geneval_seen", "geneval_heldout", "questions", "edits", "words", "reasoning")
"""What the model in the box was trained for; the questions of the other domains are scored when they are named."""

_LEAST = 8  # cases: one of each kind of edit


@dataclass(frozen=True)
class Arguments:
    model: str | None = None
    """A checkpoint directory or a Hub id; by default the model in the box."""
    count: int = 500
    """Cases of each score."""
    json: bool = False
    """Print one JSON object instead of a table."""
    out: Path = Path("scores")
    """Directory of the scores and sheets; made if it is not there."""
    seed: int = 0
    """Of the cases and of the starting noise."""
    steps: int = 20
    """Steps of the sampler."""
    only: tuple[Name, ...] = SHIPPED
    """Scores to compute."""
    world: Literal["small", "full"] = "small"
    side: int | None = None
    """Pixels of the pictures; by default the checkpoint's."""
    all_cfg_scale: float | None = None
    """Guidance by everything; by default the pipeline's in each mode."""
    part_cfg_scale: float | None = None
    """Guidance by the source pictures alone; by default the pipeline's."""
    batch: int = 50
    """Prompts that run together."""
    devices: str | None = None
    """That share the prompts: all, pmap, or sizes of a mesh such as data=4,tensor=2. Default: one device."""
    quantize: Quantization | None = None
    """8-bit weights, as in the pipeline."""

    def check(self) -> None:
        """Raises ValueError naming the first argument that cannot be used."""
        for name, least in (("count", _LEAST), ("seed", 0), ("steps", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} is {getattr(self, name)}; expected at least {least}")
        if self.side is not None and self.side < 48:
            raise ValueError(f"--side is {self.side}; expected at least 48, from where on the reader is reliable")
        for name in ("all_cfg_scale", "part_cfg_scale"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"--{name.replace('_', '-')} is {value}; expected a finite number")
        if not self.only:
            raise ValueError(f"--only names no score; expected some of {', '.join(KEYS)}")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out} is a file; expected a directory")

    @property
    def options(self) -> SamplingOptions:
        return SamplingOptions(self.steps, self.seed, self.side, self.all_cfg_scale, self.part_cfg_scale, self.batch)


def settings(arguments: Arguments, side: int, fingerprint: str) -> dict[str, Any]:
    """Everything that decides about the scores."""
    guidance = {mode: {"all": a, "part": p} for mode, (a, p) in arguments.options.guidance().items()}
    return {
        "model": arguments.model or "the model in the box",
        "parameters": fingerprint,
        "world": f"{arguments.world} {zlib.crc32(repr(WORLDS[arguments.world]).encode()):08x}",
        "count": arguments.count,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "guidance": guidance,
        "side": side,
        "max_new_tokens": NEW_TOKENS,
        "version": internvlu_jax.__version__,
        **({"quantize": arguments.quantize} if arguments.quantize else {}),
    }


def stored(out: Path, holds_for: Mapping[str, Any]) -> dict[str, Any]:
    """The scores in OUT/scores.json, if they hold for the same settings; else none.

    Raises:
        ValueError: the file is not one that this script wrote.
    """
    path = out / "scores.json"
    if not path.exists():
        return {}
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        same = _deciding(scores["settings"]) == _deciding(json.loads(json.dumps(holds_for)))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of scores ({error}); remove it, or choose another --out") from None
    if not same:
        print(f"{path} has scores for other settings or parameters; they are replaced", file=sys.stderr)
    return {key: value for key, value in scores.items() if key != "settings"} if same else {}


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings but for the name of the checkpoint: its parameters are what counts."""
    return {key: value for key, value in settings.items() if key != "model"}


def save(out: Path, scores: Mapping[str, Any]) -> None:
    """Writes OUT/scores.json whole or not at all."""
    write_json(out / "scores.json", scores, allow_nan=False)


def evaluate(
    arguments: Arguments,
    model: Responder,
    side: int,
    holds_for: Mapping[str, Any],
    begin: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """All scores that are asked for, and those that were there; kept in OUT after each set of cases.

    Args:
        side: pixels of the pictures that the model is shown.
        holds_for: what `settings` gives.
        begin: called with the name of each set before its first case.
    """
    scores = stored(arguments.out, holds_for)
    for name in arguments.only:
        if all(key in scores for key in KEYS[name]):
            continue
        begin(name)
        started = time.perf_counter()
        result = run(WORLDS[arguments.world], name, arguments.count, model, side, arguments.seed)
        took = {"seconds": round(time.perf_counter() - started, 1), "device": jax.devices()[0].device_kind}
        scores |= {key: {**report.json(), **took} for key, report in result.reports.items()}
        save_sheet(outcome_sheet(result.outcomes), arguments.out / f"{name}.png")
        save(arguments.out, {**scores, "settings": holds_for})
    return {**scores, "settings": dict(holds_for)}


def table(scores: Mapping[str, Any]) -> Table:
    """Every score and, indented, its parts."""
    rows = Table("score", "value", "95% interval", "cases")
    for key, report in scores.items():
        if key != "settings":
            rows.add_row(*_row(key, report), style="bold")
            for name, part in report["parts"].items():
                rows.add_row(*_row(f"  {name}", part))
    return rows


def _row(name: str, score: Mapping[str, Any]) -> tuple[str, str, str, str]:
    interval = "" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"
    return name, f"{score['value']:.3f}", interval, str(score["count"])


class _Bars:
    """One bar of cases for each set, on standard error."""

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress, self._count = progress, count

    def begin(self, name: str) -> None:
        passes = 2 if name == "reasoning" else 1
        self._task = self._progress.add_task(name, total=self._count * passes)

    def advance(self, cases: int) -> None:
        self._progress.advance(self._task, cases)


def main(arguments: Arguments) -> int:
    """The command: status 2 for what a user can put right."""
    try:
        arguments.check()
        pipe = InternVLUPipeline.from_pretrained(
            arguments.model, devices=arguments.devices, quantize=arguments.quantize
        )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bars = _Bars(progress, arguments.count)
            model = PipelineResponder(pipe, arguments.options, bars.advance)
            holds_for = settings(arguments, model.side, fingerprint(pipe))
            scores = evaluate(arguments, model, model.side, holds_for, bars.begin)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(scores, allow_nan=False))
    else:
        Console().print(table(scores))
    print(f"scores and sheets are in {arguments.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
