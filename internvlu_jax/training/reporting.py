"""What a run writes about itself: metrics.jsonl, TensorBoard files where that package is there, the live line; and,
where it is asked to, it reports to a tracker of experiments."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
import time
import zlib
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from internvlu_jax.config import ConfigError
from internvlu_jax.utils.buckets import BucketError, in_bucket
from internvlu_jax.utils.files import write_text

log = logging.getLogger("internvlu_jax.training")
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_UPLOADS = 60.0


class MetricsFile:
    """One JSON object a step. What a killed run wrote past the step that is resumed from is cut off first.

    Args:
        path: the file.
        resumed: steps that are done; their lines stay.

    Raises:
        ValueError: a line of the file is not one of these; names the file and the line.
    """

    def __init__(self, path: Path, resumed: int) -> None:
        write_text(path, _kept(path, resumed).decode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Does nothing: what is written is there."""

    def close(self) -> None:
        self._file.close()


class MetricsObject:
    """The same in a bucket, where nothing is appended to: all of it is written anew once a minute, and by `flush`.

    Args, raises: as `MetricsFile`.
    """

    def __init__(self, path: Path, resumed: int) -> None:
        self._path, self._lines = path, bytearray(_kept(path, resumed))
        self.flush()

    def write(self, values: dict[str, Any]) -> None:
        self._lines += (json.dumps(values) + "\n").encode()
        if time.monotonic() - self._written > _SECONDS_BETWEEN_UPLOADS:
            self._try_to_flush()

    def flush(self) -> None:
        """Raises BucketError if it cannot be written."""
        self._written = time.monotonic()
        self._path.write_bytes(bytes(self._lines))

    def close(self) -> None:
        self._try_to_flush()

    def _try_to_flush(self) -> None:
        """Between the steps that are saved, lines that are not there yet end no run."""
        try:
            self.flush()
        except BucketError as error:
            log.warning("%s", error)


def _kept(path: Path, resumed: int) -> bytes:
    """The complete lines of steps up to `resumed`."""
    lines = enumerate(_complete_lines(path), 1)
    return b"".join(line for number, line in lines if _step(path, number, line) <= resumed)


def _complete_lines(path: Path) -> list[bytes]:
    if not path.is_file():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _step(path: Path, number: int, line: bytes) -> int:
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        step = None
    if type(step) is not int:
        raise ValueError(
            f"{path}, line {number}: {line[:60]!r} is not the metrics of a step; remove that line, or the file"
        )
    return step


class TensorBoard:
    """Event files for TensorBoard; does nothing where the package `tensorboard` is not installed."""

    def __init__(self, directory: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            self._writer = None
            return
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(directory))

    def write(self, values: dict[str, Any]) -> None:
        if self._writer is None:
            return
        scalars = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items() if name != "step"
        ]
        event = self._event(wall_time=time.time(), step=values["step"], summary=self._summary(value=scalars))
        self._writer.add_event(event)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


TrackerName = Literal["wandb", "trackio"]


def check_tracker(name: TrackerName | None) -> None:
    """Raises ConfigError if there is no such tracker here; before anything is compiled."""
    spec = None if name is None else importlib.util.find_spec(name)
    if name is not None and (
        spec is None or spec.origin is None
    ):  # a folder of that name, as wandb makes, has no origin
        raise ConfigError(f"report is {name!r}, which is not installed; pip install {name}")


class Tracker:
    """Reports to Weights & Biases or to trackio, which have the same calls. A run that goes on is the same run there.

    Args:
        name: of the package. workdir: of the run, whose path tells it from others of its name.
        config: the run's configuration.
    """

    def __init__(self, name: TrackerName, workdir: Path, config: dict[str, Any]) -> None:
        self._module = importlib.import_module(name)
        run = f"{workdir.name}-{zlib.crc32(str(workdir).encode()):08x}"
        places = {"id": run} if name == "wandb" else {}  # trackio knows a run by its name alone
        if places and not in_bucket(workdir):
            places["dir"] = str(workdir)
        self._module.init(project="internvlu_jax", name=run, config=config, resume="allow", **places)

    def write(self, values: dict[str, Any]) -> None:
        self._module.log({name: value for name, value in values.items() if name != "step"}, step=values["step"])

    def close(self) -> None:
        self._module.finish()


class LiveLine:
    """The step, its losses and the speed: a line that changes on a terminal, one every ten seconds elsewhere."""

    def __init__(self, steps: int, done: int, show: bool) -> None:
        self._show, self._steps = show, steps
        self._last = 0.0
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("starting", total=steps, completed=done)
            self._bar.start()

    def update(self, step: int, text: str) -> None:
        """`step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif self._show and (time.monotonic() - self._last > _SECONDS_BETWEEN_LINES or step == self._steps):
            self._last = time.monotonic()
            print(f"step {step}/{self._steps}  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class Records:
    """All of these together.

    Args:
        workdir: of the run. steps, done: how many it has, and how many are done.
        write: whether this process writes files; show: whether it shows the live line.
        tracker: the one that is reported to by the process that writes files, and the run's configuration.
    """

    def __init__(
        self,
        workdir: Path,
        steps: int,
        done: int,
        *,
        write: bool,
        show: bool,
        tracker: tuple[TrackerName, dict[str, Any]] | None = None,
    ) -> None:
        self._files: list[Any] = []
        self._metrics: MetricsFile | MetricsObject | None = None
        if write:
            kind = MetricsObject if in_bucket(workdir) else MetricsFile
            self._metrics = kind(workdir / "metrics.jsonl", done)
            self._files.append(self._metrics)
        if write and not in_bucket(workdir):
            self._files.append(TensorBoard(workdir))
        if write and tracker is not None:
            self._files.append(Tracker(tracker[0], workdir, tracker[1]))
        self._line = LiveLine(steps, done, show)

    def write(self, step: int, values: dict[str, float], speed: str) -> None:
        """Notes a step that has ended."""
        for file in self._files:
            file.write({"step": step, **values})
        losses = "  ".join(f"{name.removesuffix('_loss')} {values[name]:.4f}" for name in _SHOWN if name in values)
        self._line.update(step, f"{losses}  {speed}")

    def flush(self) -> None:
        """Returns when the metrics are where a run that goes on finds them; called before a step is saved."""
        if self._metrics is not None:
            self._metrics.flush()

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._line.close()


_SHOWN = ("loss", "flow_loss", "codes_loss", "text_loss", "valid_loss")
