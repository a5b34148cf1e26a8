"""Examples of a world, drawn once and kept in memory: all arms and seeds read the same ones in the same order.

A `Pool` has records, texts and 8-bit pictures, whatever reads them. `collated` is what one arm makes of them: every
example tokenised, laid out and packed as `data.loader` does it, as one large batch for each kind of example. A step
takes rows of these (`PooledSteps`), which costs next to nothing, and its number alone says which.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jaxtyping import Int, UInt8

from internvlu_jax.config import ConfigError, InternVLUConfig
from internvlu_jax.data.batch import Batch
from internvlu_jax.data.collate import Collator
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import DataError, ExampleBuilder, Kind
from internvlu_jax.data.plan import Plan
from internvlu_jax.data.records import BrokenRecord, PictureFile, Record, drawn_picture
from internvlu_jax.data.sources import open_source
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.utils.files import written_whole

KINDS = ("pictures", "edits", "questions")
"""Of examples: pictures to draw (edits whose prompt is dropped among them), edits, packed questions.

The rows of a step are numbered in this order, so a picture has the same noise whether or not there are questions.
"""


@dataclass(frozen=True)
class PoolConfig:
    """What is drawn.

    sources: (name, weight) of worlds, as in `DataConfig`, without a seed of their own.
    count: of examples, from all of them.
    """

    sources: tuple[tuple[str, float], ...]
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or not self.sources:
            raise ConfigError(f"{self.count} examples of {len(self.sources)} sources; expected one of each at least")


class Pool:
    """Records in memory; a `data.sources.Source`.

    cfg: what was drawn.
    """

    def __init__(self, cfg: PoolConfig, entries: Sequence[Mapping[str, Any]], pictures: UInt8[np.ndarray, "n y x 3"]):
        """entries: fields of the records, with the numbers of their pictures in place of these."""
        self.cfg, self._entries, self._pictures = cfg, entries, pictures

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        image = None if entry["image"] is None else self._picture("image.png", entry["image"])
        sources = tuple(self._picture("source.png", number) for number in entry["sources"])
        turns = tuple((asked, answer) for asked, answer in entry["turns"])
        return Record(
            entry["task"], f"pool/{self.cfg.seed}:{index}", entry["prompt"], entry["reasoning"], image, sources, turns
        )

    def without_reasoning(self) -> Pool:
        """The same examples, without the words that lead to a picture."""
        return Pool(self.cfg, [{**entry, "reasoning": None} for entry in self._entries], self._pictures)

    def _picture(self, name: str, number: int) -> PictureFile:
        height, width = self._pictures.shape[1:3]
        return drawn_picture(name, partial(self._pictures.__getitem__, number), (height, width))

    def save(self, path: Path) -> None:
        """Writes one file, whole or not at all."""
        text = json.dumps({"pool": dataclasses.asdict(self.cfg), "entries": list(self._entries)})
        with written_whole(path.with_suffix(".npz")) as partial_path:
            np.savez_compressed(partial_path, text=np.frombuffer(text.encode(), np.uint8), pictures=self._pictures)


def draw(cfg: PoolConfig) -> Pool:
    """Draws the examples; the same configuration always gives the same ones.

    Raises:
        ValueError: a source cannot be opened, or pictures differ in size.
    """
    sources = [open_source(f"{name}{'&' if '?' in name else '?'}seed={cfg.seed}") for name, _ in cfg.sources]
    weights = np.array([weight for _, weight in cfg.sources])
    chosen = np.random.default_rng(cfg.seed).choice(len(sources), cfg.count, p=weights / np.sum(weights))
    taken, entries, pictures = [0] * len(sources), [], list[np.ndarray]()

    def keep(picture: PictureFile) -> int:
        pictures.append(picture.pixels())
        return len(pictures) - 1

    for source in chosen.tolist():
        record = sources[source][taken[source]]
        taken[source] += 1
        entries.append(
            {
                "task": record.task,
                "prompt": record.prompt,
                "reasoning": record.reasoning,
                "image": None if record.image is None else keep(record.image),
                "sources": [keep(picture) for picture in record.sources],
                "turns": record.turns,
            }
        )
    return Pool(cfg, entries, np.stack(pictures))


def load_or_draw(cfg: PoolConfig, path: Path) -> Pool:
    """The pool in a file, or a new one that is written there.

    Raises:
        ConfigError: the file holds another pool, or is none.
    """
    path = path.with_suffix(".npz")
    if not path.exists():
        pool = draw(cfg)
        pool.save(path)
        return pool
    try:
        with np.load(path) as file:
            stored, pictures = json.loads(file["text"].tobytes()), file["pictures"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is not a pool ({error}); remove it") from None
    if stored["pool"] != json.loads(json.dumps(dataclasses.asdict(cfg))):
        raise ConfigError(f"{path} is the pool of {stored['pool']}, not of {cfg}; remove it, or take another directory")
    return Pool(cfg, stored["entries"], pictures)


def collated(
    pool: Pool, cfg: InternVLUConfig, tokenizer: Tokenizer, data: DataConfig, seed: int = 0
) -> dict[str, Batch]:
    """All examples of a pool as batches for one model, one for each of `KINDS` that there is.

    Which prompts are dropped, and which samples share a row, is as in a `Loader` of the pool without shuffling. The
    last examples of each kind, which fill no batch of `data.batch_size` or `data.packed_rows`, are left out.

    Args:
        data: its sources are not used.
        seed: decides which prompts are dropped for guidance; the same for all arms.

    Raises:
        DataError: an example does not fit `data`, or those of one kind have several shapes.
    """
    data = dataclasses.replace(data, sources=(("pool", 1.0),), shuffle=False, max_broken=0.0)
    plan = Plan(ExampleBuilder(cfg, tokenizer, data), [pool], data, seed)
    parts: dict[Kind, list[Batch]] = {}
    with ThreadPoolExecutor(data.threads) as threads:
        collator = Collator(cfg, tokenizer, data, threads, _refuse)
        while True:
            planned = next(plan)
            if plan.state()["position"] > len(pool):  # the second time round
                break
            batch = collator.batch(planned.kind, planned.rows, np.arange(len(planned.rows)))
            parts.setdefault(planned.kind, []).append(batch)
    if broken := plan.state()["broken"]:
        raise DataError(f"{len(broken)} examples of the pool do not fit the data configuration: see the log")
    whole: dict[str, Batch] = {}
    for kind, batches in parts.items():
        name = _name(kind)
        if name in whole:
            shapes = [kind for kind in parts if _name(kind) == name]
            raise DataError(f"{name} of the pool have several shapes, {shapes}; give data.text_lengths one length")
        whole[name] = jax.tree.map(lambda *rows: np.concatenate(rows), *batches)
    return {name: whole[name] for name in KINDS if name in whole}


def _refuse(error: BrokenRecord) -> NoReturn:
    raise DataError(f"an example of the pool cannot be read: {error}")


def _name(kind: Kind) -> str:
    if kind.target is None:
        return "questions"
    return "edits" if kind.tiles else "pictures"


def with_latents(batch: Batch, model: InternVLU, params: Params, rows: int = 64) -> Batch:
    """The batch with the latents of its pictures in place of these, computed once; without pictures it is as it was.

    Args:
        params: with the key vae, which is frozen.
        rows: that are computed together.
    """
    if batch.picture is None:
        return batch

    def latents(pictures: np.ndarray) -> np.ndarray:
        chunks = [pictures[first : first + rows] for first in range(0, len(pictures), rows)]
        padded = [np.pad(chunk, ((0, rows - len(chunk)), (0, 0), (0, 0), (0, 0))) for chunk in chunks]
        encoded = [np.asarray(_encoded(model, {"vae": params["vae"]}, chunk)) for chunk in padded]
        return np.concatenate(encoded)[: len(pictures)]

    target, sources = batch.picture.target, batch.picture.sources
    return batch._replace(picture=batch.picture._replace(target=latents(target), sources=tuple(map(latents, sources))))


@partial(jax.jit, static_argnums=0)
def _encoded(model: InternVLU, params: Params, pictures: jax.Array) -> jax.Array:
    return model.encode(params, pictures)


class PooledSteps:
    """From the number of a step to its micro-batches: so many rows of each kind, pass after pass over all of them.

    Args:
        whole: what `collated` gave.
        rows: of a micro-batch, by kind; kinds that are not named are not read.
        seed: of the order; the first pass is in that of the pool.

    Raises:
        ConfigError: the pool has no such kind, or fewer rows than one step takes.
    """

    def __init__(self, whole: Mapping[str, Batch], rows: Mapping[str, int], seed: int = 0) -> None:
        for name, count in rows.items():
            there = len(whole[name].index) if name in whole else 0
            if not 1 <= count <= there:
                raise ConfigError(f"{count} rows of {name!r} a step; expected 1 to {there}, which the pool has")
        self._whole, self._rows, self._seed = whole, {name: rows[name] for name in KINDS if name in rows}, seed

    def __call__(self, step: int) -> tuple[Batch, ...]:
        """Step `step`, from 0; `Batch.index` numbers all its rows."""
        batches, first = [], 0
        for name, count in self._rows.items():
            whole = self._whole[name]
            rows = rows_of_step(len(whole.index), count, step, self._seed)
            index = np.arange(first, first + count, dtype=np.int32)
            batches.append(jax.tree.map(lambda a, rows=rows: a[rows], whole)._replace(index=index))
            first += count
        return tuple(batches)


def rows_of_step(total: int, count: int, step: int, seed: int) -> Int[np.ndarray, "n"]:
    """Which of `total` rows a step of `count` reads: every pass has all of them, in an order of its own."""
    at = np.arange(step * count, (step + 1) * count)
    return np.array([_pass(total, int(number), seed)[place] for number, place in zip(*divmod(at, total), strict=True)])


@lru_cache(16)
def _pass(total: int, number: int, seed: int) -> Int[np.ndarray, "n"]:
    return np.arange(total) if number == 0 else np.random.default_rng([seed, number]).permutation(total)
