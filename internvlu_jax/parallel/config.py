"""How the devices of a run are laid out."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes what is left. Rows of a batch lie along data and fsdp.

    Attributes:
        data: so many groups of devices share the rows of a batch; each has all parameters.
        fsdp: so many devices share the rows of their group, and its parameters and optimizer state.
        tensor: so many devices share the attention heads and hidden units of each layer.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def mesh_config(devices: str) -> MeshConfig:
    """The mesh that is written "all", which has all devices along data, or "data=4,tensor=2" and the like.

    Raises:
        ValueError: it is neither.
    """
    if devices == "all":
        return MeshConfig()
    names = [field.name for field in fields(MeshConfig)]
    sizes: dict[str, int] = {}
    for part in devices.split(",") if isinstance(devices, str) else [""]:
        name, _, size = part.strip().partition("=")
        if name not in names or name in sizes or not size.removeprefix("-").isdecimal():
            raise ValueError(
                f'devices is {devices!r}; expected "all", "pmap", or sizes of a mesh such as "data=4,tensor=2", with '
                f"axes among {', '.join(names)}"
            )
        sizes[name] = int(size)
    return MeshConfig(**sizes)
