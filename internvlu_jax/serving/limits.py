"""What a server takes on."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a server takes on at most."""

    max_queue: int = 256
    """Pictures and answers that wait; who comes then is told to try later."""
    max_batch: int = 32
    """Of them drawn or answered together; rounded down to a power of two."""
    max_body: int = 32
    """MiB of a request."""
    max_pixels: int = 16
    """Millions of pixels of a picture that a client sends."""
    max_seconds: float = 600.0
    """From a request's arrival to its answer."""

    def check(self) -> None:
        """Raises ValueError for a limit with which nothing could be taken on."""
        for name in ("max_queue", "max_batch", "max_body", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 < self.max_seconds < math.inf:
            raise ValueError(f"max_seconds is {self.max_seconds:g}; expected a number of seconds over 0")
