"""Connected blobs of a picture: what stands out from the background, piece by piece."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

Mask = Bool[np.ndarray, "y x"]
Plane = Float[np.ndarray, "y x"]


def labels(mask: Mask) -> tuple[Int[np.ndarray, "y x"], int]:
    """Numbers 1, 2, ... of the blobs whose pixels touch at sides or corners, 0 elsewhere; and how many there are.

    Runs of each row are joined with the runs of the row above that they touch.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    edges = np.diff(padded, axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    parents = list(range(len(rows)))

    def root(n: int) -> int:
        while parents[n] != n:
            parents[n] = parents[parents[n]]
            n = parents[n]
        return n

    runs = list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))
    first = np.searchsorted(rows, np.arange(height + 1)).tolist()
    for n, (row, start, stop) in enumerate(runs):
        for m in range(first[row - 1], first[row]) if row else ():
            if runs[m][1] <= stop and start <= runs[m][2]:
                parents[root(n)] = root(m)
    names: dict[int, int] = {}
    found = np.zeros((height, width), np.int32)
    for n, (row, start, stop) in enumerate(runs):
        found[row, start:stop] = names.setdefault(root(n), len(names) + 1)
    return found, len(names)


def eroded(mask: Mask) -> Mask:
    """The pixels all of whose eight neighbours are in the mask as well."""
    padded = np.pad(mask, 1)
    across = padded[:, :-2] & padded[:, 1:-1] & padded[:, 2:]
    return across[:-2] & across[1:-1] & across[2:]


def dilated(mask: Mask) -> Mask:
    """The mask and its neighbours."""
    padded = np.pad(mask, 1)
    across = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return across[:-2] | across[1:-1] | across[2:]


def smoothed(plane: Plane) -> Plane:
    """Blurred by about one pixel, the plane taken as 0 outside."""
    weights = np.array([0.06, 0.24, 0.4, 0.24, 0.06])
    for axis in (0, 1):
        padded = np.pad(plane, [(2, 2) if a == axis else (0, 0) for a in (0, 1)])
        size = plane.shape[axis]
        plane = sum(w * np.take(padded, range(k, k + size), axis) for k, w in enumerate(weights))  # type: ignore[assignment]
    return plane
