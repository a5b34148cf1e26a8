"""How the devices of a run are laid out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes what is left. Rows of a batch lie along data and fsdp."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
