"""How many of the records that were read cannot be used, and when they are too many."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from internvlu_jax.data.examples import DataError
from internvlu_jax.data.records import BrokenRecord

log = logging.getLogger("internvlu_jax.data")
_ENOUGH = 20  # records after which the share of broken ones says something; fewer do when they are all there are


class Tally:
    """Records read and broken so far; complains, and gives up when too many are broken.

    A record counts once, however often it is read: of a small set a run makes many passes, and would else count one
    broken record again in each. Among the first hundreds chance brings more broken ones than their share, so three
    standard deviations are allowed.

    Of a set of 8 or 20 one broken record is more than any share that is meant for thousands. One is therefore borne, as
    long as the share is not 0, and two of so few end the run once all have been read.

    Args:
        share: of broken records that is borne.
        sizes: of the sources. weights: by which they are mixed.
    """

    def __init__(self, share: float, sizes: Sequence[int], weights: Sequence[float]) -> None:
        self._share, self._total = share, sum(sizes)
        self._sizes = [(size, weight / sum(weights)) for size, weight in zip(sizes, weights, strict=True)]
        self.read = 0  # repeats too
        self.broken: dict[str, None] = {}  # where they are, in the order in which they were met
        self._settled = self._in_vain = 0

    def records(self) -> int:
        """How many different records have been read, as the sources are mixed."""
        return round(sum(min(self.read * weight, size) for size, weight in self._sizes))

    def bad(self, error: BrokenRecord) -> None:
        """Notes that one of the records that were read is broken.

        Raises DataError when clearly more than the share are, or as many reads as there are records were all in vain.
        """
        self._in_vain += 1
        if error.where not in self.broken:
            self.broken[error.where] = None
            log.warning("skipped %s", error)
        records = self.records()
        expected = self._share * records
        most = max(1.0, expected + 3 * math.sqrt(expected)) if self._share else 0.0
        too_many = records >= min(_ENOUGH, self._total) and len(self.broken) > most
        whole_pass = self._in_vain == self.read - self._settled and self._in_vain >= self._total
        if too_many or whole_pass:
            raise DataError(
                f"{len(self.broken)} of the {records} records read so far cannot be used, and data.max_broken is "
                f"{self._share:g}; the last one is {error}"
            )

    def settle(self) -> None:
        """After some reads and what is bad of them: forgets reads in vain if one was not."""
        if self._in_vain < self.read - self._settled:
            self._settled, self._in_vain = self.read, 0

    def restore(self, read: int, broken: Sequence[str]) -> None:
        """Goes on where there were so many reads and these broken records."""
        self.read, self.broken = read, dict.fromkeys(broken)
        self._settled, self._in_vain = read, 0
