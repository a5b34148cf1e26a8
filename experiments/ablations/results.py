"""The file of results: JSON lines, one when a run starts and one when it ends; nothing that was started can vanish.

    {"event": "started", "study": ..., "arm": ..., "seed": ..., "budget": ..., "settings": {...}, "tuning": false,
     "commit": ..., "machine": {...}}
    {"event": "finished", the same, "seconds": ..., "steps": ..., "parity": {...}, "endpoints": {...}, ...}
    {"event": "failed", the same, "seconds": ..., "steps": ..., "reason": ...}

A line is written by one call, so processes can share the file. What a kill leaves of a line is kept, ignored and
reported. Study, arm, seed, budget and settings say which run it is; none ends twice.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.ablations.endpoints import CEILINGS, ENDPOINTS, PARITY
from internvlu_jax.utils.checkout import commit

Status = Literal["finished", "failed", "unfinished"]
_DIGITS = 5  # of the values of cases and curves


@dataclass(frozen=True)
class Run:
    """Which run it is.

    settings: everything that decides about the result, but for the seed; plain JSON, without paths or names of
        machines.
    tuning: it is for tuning or a pilot, and never counted.
    """

    study: str
    arm: str
    seed: int
    budget: str
    settings: Mapping[str, Any]
    tuning: bool = False

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """What two runs may not have in common."""
        return self.study, self.arm, self.seed, self.budget, self.settings_json

    @property
    def settings_json(self) -> str:
        return json.dumps(self.settings, sort_keys=True, allow_nan=False)

    def __str__(self) -> str:
        return f"{self.study}, arm {self.arm}, seed {self.seed}, budget {self.budget}"


@dataclass(frozen=True)
class Cases:
    """An endpoint case by case: its value is the mean of the values, or, with groups, of the groups' means.

    name: of the fixed cases, which are the same for every run of that name, in the same order.
    groups: a letter for each case, or none at all.
    """

    name: str
    values: tuple[float, ...]
    groups: str = ""

    def __post_init__(self) -> None:
        if not self.values or (self.groups and len(self.groups) != len(self.values)):
            raise ValueError(
                f"cases {self.name} have {len(self.values)} values and {len(self.groups)} letters of groups; expected "
                "at least one value, and a letter for each or none"
            )

    @property
    def mean(self) -> float:
        groups = np.array(list(self.groups or "a" * len(self.values)))
        values = np.array(self.values)
        return float(np.mean([np.mean(values[groups == group]) for group in sorted(set(groups))]))

    def json(self) -> dict[str, Any]:
        """Right and wrong as a string of bits, other values in five digits."""
        if set(self.values) <= {0.0, 1.0}:
            values: Any = "".join("1" if value else "0" for value in self.values)
        else:
            values = [_rounded(value) for value in self.values]
        return {"name": self.name, "values": values, **({"groups": self.groups} if self.groups else {})}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cases:
        return cls(value["name"], tuple(float(v) for v in value["values"]), value.get("groups", ""))


Curve = tuple[tuple[float, float], ...]
"""(operations so far, loss)."""


@dataclass(frozen=True)
class Outcome:
    """What a run that finished gave.

    parity: by the names of `endpoints.PARITY`.
    endpoints: by the names of `ENDPOINTS`, of the final averaged weights.
    ceilings: of the arm's autoencoder, by the names of `CEILINGS`.
    cases: by endpoint, where the bootstrap is to have them.
    curves: by the name of a loss.

    Raises:
        ValueError: a name is not known, a number is not finite, or an endpoint is not the mean of its cases.
    """

    seconds: float
    steps: int
    parity: Mapping[str, float]
    endpoints: Mapping[str, float]
    ceilings: Mapping[str, float] = field(default_factory=dict)
    cases: Mapping[str, Cases] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_names("endpoint", self.endpoints, ENDPOINTS)
        _check_names("ceiling", self.ceilings, CEILINGS)
        _check_names("cases", self.cases, self.endpoints)
        _check_names("quantity of parity", self.parity, PARITY)
        for name, value in {**self.parity, **self.endpoints, **self.ceilings}.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}; expected a finite number. A run that is not finite has failed")
        for name, cases in self.cases.items():
            value, mean = self.endpoints[name], cases.mean
            if not math.isclose(value, mean, rel_tol=1e-4, abs_tol=1e-4):
                raise ValueError(f"{name} is {value}, and the mean of its cases {mean}; expected the same")

    def json(self) -> dict[str, Any]:
        curves = {name: [[_rounded(x), _rounded(y)] for x, y in curve] for name, curve in self.curves.items()}
        cases = {name: value.json() for name, value in self.cases.items()}
        return {**asdict(self), "cases": cases, "curves": curves}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        cases = {name: Cases.from_json(v) for name, v in value["cases"].items()}
        curves = {name: tuple((float(x), float(y)) for x, y in curve) for name, curve in value["curves"].items()}
        plain = {name: value[name] for name in ("seconds", "steps", "parity", "endpoints", "ceilings")}
        return cls(**plain, cases=cases, curves=curves)


@dataclass(frozen=True)
class Record:
    """A run of the file.

    line: of its end, or of its start if it has none; from 1. So are machine and commit.
    outcome: of a run that finished; reason: why a run failed.
    seconds, steps: until its end; 0 where it has none.
    """

    run: Run
    status: Status
    line: int
    machine: Mapping[str, Any]
    commit: str
    outcome: Outcome | None = None
    reason: str = ""
    seconds: float = 0.0
    steps: int = 0


@dataclass(frozen=True)
class Results:
    """All runs in the order in which they were started, and the lines that a kill left half written."""

    records: tuple[Record, ...] = ()
    broken: tuple[int, ...] = ()


def begin(path: Path, run: Run) -> None:
    """Writes that a run starts; nothing where it was started before and goes on.

    Raises:
        ValueError: it has ended, or counted runs of its arm have other settings; or see `read`.
    """
    results = read(path)
    _check_settings([*(record.run for record in results.records), run], path)
    record = _of(results, run)
    if record is None:
        _append(path, {"event": "started", **asdict(run), **origin()})
    elif record.status != "unfinished":
        raise ValueError(f"{path}, line {record.line}: {run} {record.status} already; expected a run that has not")


def finish(path: Path, run: Run, outcome: Outcome) -> None:
    """Writes what a run gave.

    Raises:
        ValueError: it was never started, or has ended; or see `read`.
    """
    _end(path, run, {"event": "finished", **asdict(run), **origin(), **outcome.json()})


def fail(path: Path, run: Run, reason: str, seconds: float, steps: int) -> None:
    """Writes that a run cannot be brought to its end, and why: its numbers are not finite. Raises as `finish` does."""
    end = {"seconds": seconds, "steps": steps, "reason": reason}
    _end(path, run, {"event": "failed", **asdict(run), **origin(), **end})


def read(path: Path) -> Results:
    """The runs of a file, which may be packed with gzip to be kept; none where there is no file.

    Raises:
        ValueError: a line is whole but not one of these, a run is there twice, ended before it started, or counted
            runs of one study, arm and budget have different settings.
    """
    records: dict[tuple[str, str, int, str, str], Record] = {}
    broken = []
    packed = gzip.open if path.suffix == ".gz" else open
    text = ""
    if path.exists():
        with packed(path, "rt", encoding="utf-8", errors="replace") as file:
            text = file.read()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            broken.append(number)
            continue
        try:
            record = _record(value, number)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}, line {number} is not a line of results: {error!r}") from error
        records[record.run.key] = _joined(records.get(record.run.key), record, path)
    _check_settings([record.run for record in records.values()], path)
    return Results(tuple(records.values()), tuple(broken))


def origin() -> dict[str, Any]:
    """The machine, by the models of its parts and no name, and the commit; "+" where files differ from it."""
    import jax  # which reading results does not need

    device = jax.devices()[0]
    machine = {"device": device.device_kind, "devices": jax.device_count(), "cpu": _cpu(), "cores": os.cpu_count()}
    return {"machine": machine, "commit": commit() or "unknown"}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _append(path: Path, value: Mapping[str, Any]) -> None:
    """One line by one write, on a new line even where a half one stands before it."""
    line = json.dumps(value, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        line = "\n" + line
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())


def _end(path: Path, run: Run, value: Mapping[str, Any]) -> None:
    record = _of(read(path), run)
    if record is None:
        raise ValueError(f"{path}: {run} was never started with these settings; expected a line of its start")
    if record.status != "unfinished":
        raise ValueError(f"{path}, line {record.line}: {run} {record.status} already; expected one end of a run")
    _append(path, value)


def _of(results: Results, run: Run) -> Record | None:
    return next((record for record in results.records if record.run.key == run.key), None)


def _record(value: Mapping[str, Any], line: int) -> Record:
    run = Run(*(value[name] for name in ("study", "arm", "seed", "budget", "settings", "tuning")))
    of, event = (run, line, value["machine"], value["commit"]), value["event"]
    if event == "started":
        return Record(run, "unfinished", *of[1:])
    if event == "failed":
        return Record(run, "failed", *of[1:], None, value["reason"], value["seconds"], value["steps"])
    if event == "finished":
        outcome = Outcome.from_json(value)
        return Record(run, "finished", *of[1:], outcome, "", outcome.seconds, outcome.steps)
    raise ValueError(f"event is {event}; expected started, finished or failed")


def _joined(before: Record | None, record: Record, path: Path) -> Record:
    """A line put to what the file said of its run before."""
    if before is None and record.status != "unfinished":
        raise ValueError(f"{path}, line {record.line}: {record.run} {record.status}, and no line says that it started")
    if before is not None and (record.status == "unfinished" or before.status != "unfinished"):
        raise ValueError(
            f"{path}, lines {before.line} and {record.line}: {record.run} is there twice with the same settings; "
            "expected one start and one end of each run"
        )
    return record


def _check_settings(runs: Sequence[Run], path: Path) -> None:
    """Raises ValueError where counted runs of one study, arm and budget are not made alike."""
    first: dict[tuple[str, str, str], Run] = {}
    for run in runs:
        if not run.tuning:
            other = first.setdefault((run.study, run.arm, run.budget), run)
            if other.settings_json != run.settings_json:
                raise ValueError(
                    f"{path}: {run} and {other} are both counted with different settings; expected one setting of an "
                    "arm. Mark runs that are not counted as tuning, or give a changed study a new name"
                )


def _check_names(what: str, names: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{what} {', '.join(unknown)} is not known; expected some of {', '.join(known)}")


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
