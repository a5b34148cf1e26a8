"""Runs a benchmark: items in batches through the pipeline, into a folder that a killed run leaves ready to go on.

Batches are cut from all items of a host, done or not, so a run that goes on puts each item among the same others as
one that was never stopped, and gets the same picture to the bit. Noise is of the run's seed and the item alone: another
size of batches, number of devices or of hosts changes no picture but by rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from internvlu_jax.evaluation.folder import RunFolder, check_folder, opened
from internvlu_jax.evaluation.pace import Pace, measured
from internvlu_jax.evaluation.settings import Mode, RunOptions, of_each_mode, settings
from internvlu_jax.evaluation.task import Benchmark, Item, distinct
from internvlu_jax.flow.noise import numbered_noise
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.processing.rows import bucket
from internvlu_jax.utils.progress import bar

_ITEMS_ERRORS = (ValueError, OSError)  # what a prompt or picture that cannot be used raises
_FEWEST_TIMED = 3  # batches of one kind, from which on their pace says something


@dataclass(frozen=True)
class Numbered:
    """An item and its place in the benchmark."""

    number: int
    item: Item


@dataclass(frozen=True)
class Batch:
    """Items that run as one program. size: the rows of all batches of this kind, which the last is filled up to."""

    kind: tuple[Any, ...]
    members: tuple[Numbered, ...]
    size: int


@dataclass
class Outcome:
    """done: items made now. there: that were there. failures: reasons by id. pace: None where too few batches ran."""

    done: int = 0
    there: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    pace: Pace | None = None
    complete: bool = False


def read_items(benchmark: Benchmark, data: Path, pictures: Path | None, out: Path) -> list[Item]:
    """All items, checked before a checkpoint is loaded.

    Raises:
        ValueError: the files are not the benchmark's, a picture is missing, an id comes twice, or `out` is no folder
            for a run.
    """
    if not data.exists():
        raise ValueError(f"--prompts {data} is not there; expected the prompts of {benchmark.name}")
    check_folder(out)
    return list(distinct(benchmark.items(data, pictures)))


def run(
    benchmark: Benchmark,
    items: Sequence[Item],
    pipe: InternVLUPipeline,
    out: Path,
    options: RunOptions,
    known: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """Makes what is not there yet of this host's share, and, when every host is done, what the scorer reads.

    known: goes into the settings, as the checkpoint's name, which a pipeline does not know.

    Raises:
        ValueError: an option cannot be used, or the folder has a run with other settings.
    """
    options.check()
    for item in of_each_mode(items, options).values():
        options.check_for(pipe, item)
    wanted = [Numbered(n, item) for n, item in enumerate(items[: options.limit])]
    own = wanted[options.host :: options.hosts]
    outcome = Outcome()
    with opened(out, options.host, options.hosts) as folder:
        folder.agree(settings(benchmark.name, items, pipe, known, options))
        outcome.there = sum(folder.has(one.item) for one in own)
        if outcome.there < len(own):
            todo = [b for b in plan(own, pipe, options, outcome) if not all(folder.has(m.item) for m in b.members)]
            _Work(pipe, folder, options, outcome).all(todo)
        folder.look_again()  # whoever ends last sees that nothing is missing
        there = {one.item.id for one in wanted if folder.has(one.item)}
        folder.keep_failures(outcome.failures, there)
        outcome.complete = len(there) == len(wanted)
        if outcome.complete and folder.answers():
            folder.merge_answers()
            if benchmark.finish is not None:
                benchmark.finish(out)
    return outcome


def plan(own: Sequence[Numbered], pipe: InternVLUPipeline, options: RunOptions, outcome: Outcome) -> list[Batch]:
    """Batches of items that run as one program: of one mode, size, number of tiles and bucket of tokens.

    Items that cannot be read are noted in the outcome.
    """
    groups: dict[tuple[Any, ...], list[Numbered]] = {}
    with bar("looking at items", len(own)) as advance:
        for one in own:
            try:
                groups.setdefault(_kind(one.item, pipe, options), []).append(one)
            except _ITEMS_ERRORS as error:
                outcome.failures[one.item.id] = str(error)
            advance(1)
    batches = []
    for kind, members in groups.items():
        size = min(max(1, options.batch // members[0].item.tiled), len(members))
        starts = range(0, len(members), size)
        batches += [Batch(kind, tuple(members[start : start + size]), size) for start in starts]
    return batches


def _kind(item: Item, pipe: InternVLUPipeline, options: RunOptions) -> tuple[Any, ...]:
    mode = options.mode(item)
    shown = [picture() for picture in item.pictures]
    (seen,) = pipe.processor.process([item.prompt], [shown], mode, max_tiles=item.max_tiles)
    sources = tuple(source.shape for source in seen.sources)
    size = None if mode == "text" else seen.size
    asked = item.max_tiles, item.tiled, item.max_new_tokens, item.noise is None
    return mode, bucket(len(seen.cond)), len(seen.tiles), sources, size, *asked


Loaded = list[tuple[Numbered, list[Image.Image]] | tuple[Numbered, Exception]]


class _Work:
    """Batch after batch: the next one's pictures are read, and the last one's files written, while a device works."""

    def __init__(self, pipe: InternVLUPipeline, folder: RunFolder, options: RunOptions, outcome: Outcome) -> None:
        self._pipe, self._folder, self._options, self._outcome = pipe, folder, options, outcome

    def all(self, batches: Sequence[Batch]) -> None:
        if not batches:
            return
        ends: dict[tuple[Any, ...], list[tuple[float, Batch]]] = {}
        count = sum(len(batch.members) for batch in batches)
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer, bar("items", count) as advance:
            writing: Future[None] | None = None
            reading = reader.submit(_load, batches[0])
            for batch, following in [*pairwise(batches), (batches[-1], None)]:
                loaded = reading.result()
                if following is not None:
                    reading = reader.submit(_load, following)
                made = self._made(batch, loaded)
                if writing is not None:
                    writing.result()  # a full disk ends the run
                writing = writer.submit(self._keep, batch, made)
                ends.setdefault(batch.kind, []).append((time.perf_counter(), batch))
                advance(len(batch.members))
            if writing is not None:
                writing.result()
        self._outcome.pace = self._pace(max(ends.values(), key=len))

    def _made(self, batch: Batch, loaded: Loaded) -> list[_Made]:
        ready = []
        for one, shown in loaded:
            if isinstance(shown, Exception):
                self._outcome.failures[one.item.id] = str(shown)
            else:
                ready.append((one, shown))
        try:
            return self._call(ready, batch.size, self._pipe) if ready else []
        except _ITEMS_ERRORS:
            return [made for one in ready for made in self._alone(one, batch.size)]

    def _alone(self, one: tuple[Numbered, list[Image.Image]], size: int) -> list[_Made]:
        """One of a batch that failed, in a batch of its own size, for which there is a program."""
        try:
            return self._call([one], size, self._pipe)
        except _ITEMS_ERRORS as error:
            self._outcome.failures[one[0].item.id] = str(error)
            return []

    def _call(
        self, ready: Sequence[tuple[Numbered, list[Image.Image]]], size: int, pipe: InternVLUPipeline
    ) -> list[_Made]:
        rows = [*ready, *[ready[-1]] * (size - len(ready))]
        first, options = rows[0][0].item, self._options
        mode = options.mode(first)
        out = pipe(
            [one.item.prompt for one, _ in rows],
            [shown for _, shown in rows],
            mode,
            max_tiles=first.max_tiles,
            num_images_per_prompt=1 if mode == "text" else first.tiled,
            **options.call(first),
            **self._noise([one.item for one, _ in rows], mode),
        )
        made = []
        for n, (one, shown) in enumerate(ready):
            drawn = [] if out.images is None else out.images[n * first.tiled : (n + 1) * first.tiled]
            made.append(_Made(one, None if out.text is None else out.text[n], drawn, shown[0].size if shown else None))
        return made

    def _noise(self, items: Sequence[Item], mode: Mode) -> dict[str, Any]:
        """What decides the starting noise of every picture."""
        if items[0].noise is None or mode == "text":
            return {"seed": [seed for item in items for seed in self._options.seeds(item)]}
        head = self._pipe.config.generation_decoder
        options = self._options
        grid = head.latent_grid(options.height or head.gen_image_height, options.width or head.gen_image_width)
        shape = (*grid, self._pipe.config.vae.z_dim)
        numbers = [item.noise for item in items if item.noise is not None]  # all have some, as one kind
        return {"latents": np.stack([numbered_noise(own, shape) for own in numbers])}

    def _keep(self, batch: Batch, made: Sequence[_Made]) -> None:
        for one in made:
            item = one.of.item
            if self._folder.has(item):
                continue
            for name, beside in item.beside.items():
                if isinstance(beside, str):
                    self._folder.keep_text(name, beside)
                else:
                    self._folder.keep_picture(name, beside())
            if one.text is not None:
                row = {**item.facts, "number": one.of.number, "id": item.id, "text": one.text}
                self._folder.keep_answers([row])
            if item.path is not None:
                self._folder.keep_picture(item.path, one.picture())
            self._outcome.done += 1

    def _pace(self, ends: Sequence[tuple[float, Batch]]) -> Pace | None:
        """Of full batches of one kind that followed each other, the first not counted, for it compiled."""
        if len(ends) < _FEWEST_TIMED:
            return None
        (begun, _), (ended, _) = ends[0], ends[-1]
        rows = ends[0][1].size * ends[0][1].members[0].item.tiled
        loaded = _load(ends[0][1])
        ready = [(one, shown) for one, shown in loaded if not isinstance(shown, Exception)]
        if not ready:
            return None
        run = rows * (len(ends) - 1) / (ended - begun)
        return measured(self._pipe, partial(self._call, ready, ends[0][1].size), rows, run)


@dataclass(frozen=True)
class _Made:
    """What came back for an item; source: (width, height) of its first picture."""

    of: Numbered
    text: str | None
    drawn: Sequence[Image.Image]
    source: tuple[int, int] | None

    def picture(self) -> Image.Image:
        """As it is kept: tiled, or in the size of its source."""
        whole = tiled(self.drawn)
        if self.of.item.as_source and self.source not in (None, whole.size):
            return whole.resize(self.source, Image.Resampling.LANCZOS)
        return whole


def tiled(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size row by row in a square; one alone is itself."""
    if len(pictures) == 1:
        return pictures[0]
    side = math.isqrt(len(pictures) - 1) + 1
    width, height = pictures[0].size
    whole = Image.new("RGB", (side * width, side * height))
    for n, picture in enumerate(pictures):
        whole.paste(picture, (n % side * width, n // side * height))
    return whole


def _load(batch: Batch) -> Loaded:
    loaded: Loaded = []
    for one in batch.members:
        try:
            loaded.append((one, [picture() for picture in one.item.pictures]))
        except _ITEMS_ERRORS as error:
            loaded.append((one, error))
    return loaded
