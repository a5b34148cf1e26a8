"""Data of processes that run one program: all go on with the same step, or none does.

Each host walks the data by itself (`data.plan`) and would make other batches than the rest from the first record on
that it alone cannot read: other examples than the step takes them for, or other shapes, on which all would hang.
"""

from __future__ import annotations

import json
import zlib
from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np
from jax.experimental import multihost_utils

from internvlu_jax.data.batch import Batch
from internvlu_jax.data.examples import DataError
from internvlu_jax.data.prefetch import Prefetcher


def next_step(loader: Prefetcher, waits: AbstractContextManager[object] | None = None) -> tuple[Batch, ...]:
    """The next step of a loader, once all processes have theirs and are at the same place; all of them call it.

    Of several processes each waits for the step before to end on its devices, for they carry the answers.

    Args:
        waits: entered while this process waits for its own data.

    Raises:
        DataError: on all processes, if the loader of one raised it or they have read other records.
    """
    waits = waits or nullcontext()
    if jax.process_count() == 1:
        with waits:
            return next(loader)
    batches: tuple[Batch, ...] = ()
    failure, place = None, 0
    try:
        with waits:
            batches = next(loader)
        place = zlib.crc32(json.dumps(loader.state()).encode())
    except DataError as error:
        failure = error
    mine = np.array([jax.process_index(), failure is not None, place], np.uint32)
    _check(multihost_utils.process_allgather(mine), failure)
    return batches


def _check(answers: np.ndarray, failure: DataError | None) -> None:
    """Raises DataError if not all agree.

    answers: (processes, 3): which it is, whether it failed, the checksum of its place.
    """
    if failure is not None:
        raise failure
    failed = [int(process) for process, fails, _ in answers if fails]
    if failed:
        raise DataError(f"the data of process {failed[0]} ended; its message says why")
    processes, places = answers[:, 0], answers[:, 2]
    if len(set(places.tolist())) > 1:
        other = processes[places != places[0]].tolist()
        raise DataError(
            f"process {other[0]} has read other records than process {processes[0]}; expected that all hosts see the "
            "same files. One may lack a picture, or could not read it: the lines `skipped ...` of each say what it "
            "left out. Put that right and run the same command again"
        )
