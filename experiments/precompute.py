"""Writes down once what frozen parts would compute again and again: latents and contexts, for stages 1 and 2.

    python -m experiments.precompute CONFIG DST [--start CHECKPOINT] [--data.sources FILE WEIGHT ...] [--any.field X]

Takes the configuration of the run that is to read the result, and gives for each source of records a directory of
shards DST/0, DST/1, ..., in the order of the sources and of their records: train with `--data.sources DST/0 4 DST/1 1`,
the weights as before. Every record keeps its prompt; its pictures become latents, and its prompt the hidden states of
the backbone, whole and in the forms that guidance drops. They have the precision of `--compute.dtype`; in float32
training on them gives the same losses as training on the pictures. Runs that train more than the head are refused,
here and where they would read the result. The same command goes on with the source at which it was stopped, also with
another `--data.batch-size` where that took too much memory.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.progress import track

from experiments.configs import CONFIGS, not_named
from internvlu_jax.checkpoints.run_directory import config_differences
from internvlu_jax.config import ConfigError
from internvlu_jax.data.batch import Batch
from internvlu_jax.data.collate import Collator
from internvlu_jax.data.examples import BranchName, Draft, ExampleBuilder, Kind
from internvlu_jax.data.loader import check_named
from internvlu_jax.data.records import BrokenRecord, Record
from internvlu_jax.data.sources import Source, entry, open_source, write_shards
from internvlu_jax.models.internvlu import InternVLU
from internvlu_jax.parallel.config import MeshConfig
from internvlu_jax.parallel.executors import make_executor
from internvlu_jax.training import setup
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.losses import Forward, Objective
from internvlu_jax.training.optimizer import factors
from internvlu_jax.utils.failures import failed, one_line
from internvlu_jax.utils.files import check_free, write_json

log = logging.getLogger("internvlu_jax.data")
_BRANCHES: dict[str, tuple[BranchName, ...]] = {"t2i": ("cond", "uncond"), "edit": ("cond", "text_dropped", "uncond")}
_BLOCK = 256  # records that are looked at together, so that rows of one kind fill a batch
_PER_SHARD = 1000
# What the result depends on, of a run's configuration; and of that, what it does not.
_DEPENDS = ("model", "start", "seed", "head_sources", "compute", "data")
_MAY_CHANGE = (
    "data.threads", "data.prefetch", "data.workers", "data.max_broken", "data.allow_outside", "data.batch_size",
    "data.packed_rows", "data.pack_length", "data.pack_tiles", "data.drop_all_t2i", "data.drop_all_edit",
    "data.drop_text_edit", "data.text_targets", "data.shuffle", "compute.remat",
)  # fmt: skip


class Precomputer:
    """From records to entries of shards, for one model and one data configuration.

    Raises:
        ValueError: the configuration or checkpoint cannot be used, or the run trains what is computed beforehand.
    """

    def __init__(self, cfg: TrainConfig) -> None:
        initial = setup.initial_model(cfg)
        _check_frozen(cfg, initial)
        key, single = jax.random.key(cfg.seed), make_executor("single", MeshConfig())
        made = initial.params is None
        self._params = setup.random_params(initial.config, key, single) if made else single.place(initial.params)
        data = dataclasses.replace(cfg.data, text_targets=False)
        self._builder, self._batch_size = ExampleBuilder(initial.config, initial.tokenizer, data), data.batch_size
        self._pool = ThreadPoolExecutor(data.threads)
        self._collator = Collator(initial.config, initial.tokenizer, data, self._pool, self._raise)
        model = InternVLU(initial.config, initial.tokenizer.special_table_ids, cfg.compute)
        objective = Objective(model, cfg.objective)
        self._contexts = jax.jit(lambda params, batch: Forward(objective, params, batch).context)
        self._encode = jax.jit(model.encode)

    @staticmethod
    def _raise(error: BrokenRecord) -> None:
        raise error

    def entries(self, records: Iterable[Record]) -> Iterator[bytes]:
        """Entries in the order of the records; those that cannot be used are reported and left out."""
        remaining = iter(records)
        while block := list(islice(remaining, _BLOCK)):
            arrays: list[dict[str, np.ndarray] | None] = [{} for _ in block]
            by_kind: dict[Kind, list[tuple[int, Draft]]] = defaultdict(list)
            for n, record in enumerate(block):
                try:
                    for branch in _BRANCHES.get(record.task, ()):
                        draft = self._builder.draft(record, branch)
                        by_kind[draft.kind].append((n, draft))
                except BrokenRecord as error:
                    log.warning("left out %s", error)
                    arrays[n] = None
            for members in by_kind.values():
                for start in range(0, len(members), self._batch_size):
                    self._compute(members[start : start + self._batch_size], arrays)
            for record, stored in zip(block, arrays, strict=True):
                if stored:
                    yield entry(_description(record), arrays=stored)

    def _compute(self, members: Sequence[tuple[int, Draft]], arrays: list[dict[str, np.ndarray] | None]) -> None:
        """One batch of one kind; short ones are filled up with their last row, so that they compile once."""
        drafts = [draft for n, draft in members if arrays[n] is not None]
        rows = [[draft] for draft in drafts] + [[drafts[-1]]] * (self._batch_size - len(drafts)) if drafts else []
        if not rows:
            return
        try:
            batch: Batch = self._collator.batch(drafts[0].kind, rows, np.arange(len(rows)))
        except BrokenRecord as error:
            log.warning("left out %s", error)
            broken = next(n for n, draft in members if draft.where == error.where)
            arrays[broken] = None
            return self._compute(members, arrays)
        assert batch.picture is not None
        contexts = np.asarray(self._contexts(self._params, batch))
        pictures = {"target": batch.picture.target}
        pictures |= {f"source/{n}": source for n, source in enumerate(batch.picture.sources)}
        latents = {name: np.asarray(self._encode(self._params, pixels)) for name, pixels in pictures.items()}
        kept = [(n, draft) for n, draft in members if arrays[n] is not None]
        for row, (n, draft) in enumerate(kept):
            stored = arrays[n]
            assert stored is not None
            stored[f"context/{draft.branch}"] = contexts[row, : len(draft.context)]
            stored.update({name: values[row] for name, values in latents.items()})


def _check_frozen(cfg: TrainConfig, initial: setup.InitialModel) -> None:
    """Raises ConfigError if anything but the head is trained: what is stored would be of a model that is no more."""
    moving = factors(initial.shapes, cfg.optimizer).trained_beside_head()
    if moving:
        raise ConfigError(
            f"{cfg.name} trains {', '.join(moving)}, on which latents and contexts depend; expected a run that trains "
            "the head alone, as stages 1 and 2. Train it on the records themselves, or give --optimizer.rates "
            "'head/.*' 1 '.*' 0"
        )


def _description(record: Record) -> dict[str, Any]:
    """The JSON object of a record whose pictures' files are not kept, only their sizes."""
    return {**record.data, "sizes": {name: list(picture.size()) for name, picture in record.pictures().items()}}


def usable(source: Source) -> Iterator[Record]:
    """The records of a source in order; broken ones are reported and left out."""
    for n in track(range(len(source)), "storing"):
        try:
            record = source[n]
        except BrokenRecord as error:
            log.warning("left out %s", error)
            continue
        if record.task != "understanding":
            yield record


def precompute(cfg: TrainConfig, target: Path) -> list[Path]:
    """Writes the shards of every source that is not there yet; returns the directories of all.

    Raises:
        ValueError, OSError: configuration, checkpoint or data cannot be used, or something else is at the target:
            before anything is computed.
        RuntimeError: the disk is full.
    """
    check_named(cfg.data)
    sources = [open_source(path, cfg.data.allow_outside) for path, _ in cfg.data.sources]
    directories = [target / str(n) for n in range(len(sources))]
    told = {name: value for name, value in dataclasses.asdict(cfg).items() if name in _DEPENDS}
    goes_on = _was_begun(target, told)
    left = [n for n, directory in enumerate(directories) if not (goes_on and directory.is_dir())]
    for n in left:
        check_free(directories[n])
    if left:
        computer = Precomputer(cfg)
        write_json(target / "config.json", told)
        for n in left:
            write_shards(directories[n], computer.entries(usable(sources[n])), _PER_SHARD)
    return directories


def _was_begun(target: Path, told: dict[str, Any]) -> bool:
    """Whether the same was begun at the target before. Raises ValueError if something else was."""
    if not (target / "config.json").is_file():
        return False
    weights = (f"data.sources.{n}.1" for n in range(len(told["data"]["sources"])))
    differences = config_differences(target, told, (*_MAY_CHANGE, *weights))
    if differences:
        raise ValueError(f"{target} holds what was computed otherwise: {'; '.join(differences)}. Choose another name")
    return True


@dataclasses.dataclass(frozen=True)
class Arguments:
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Where the shards go, in a directory for each source."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")]


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    status = not_named(argv, __doc__)
    if status is not None:
        return status
    arguments = tyro.cli(
        Arguments,
        args=argv[1:],
        default=Arguments(tyro.MISSING, CONFIGS[argv[0]]),
        prog=f"python -m experiments.precompute {argv[0]}",
        description=__doc__,
        config=(tyro.conf.AvoidSubcommands,),
    )
    try:
        written = precompute(arguments.run, arguments.target)
    except (ValueError, OSError, RuntimeError) as error:
        return failed("error", one_line(error), 2)
    weights = [weight for _, weight in arguments.run.data.sources]
    print("--data.sources " + " ".join(f"{path} {weight:g}" for path, weight in zip(written, weights, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
