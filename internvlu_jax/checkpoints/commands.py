"""The shell's commands on checkpoints: what one holds, another layout of it, and a copy on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from internvlu_jax.utils.buckets import path_of
from internvlu_jax.utils.progress import status

Adapters = Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH[:SCALE] ...")]
Layout = Literal["orbax", "released", "peft"]


@dataclass(frozen=True)
class Info:
    """Parts, parameters and dtypes of a checkpoint, and what is missing.

    Example: internvlu-jax info runs/mine
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A directory, or a Hub id such as InternVL-U/InternVL-U."""

    def run(self) -> None:
        from internvlu_jax.checkpoints.info import print_info
        from internvlu_jax.utils.failures import check_accelerator

        check_accelerator()
        print_info(self.checkpoint)


@dataclass(frozen=True)
class Convert:
    """Rewrite a checkpoint in another layout. The way there and back is bit-exact.

    Example: internvlu-jax convert runs/mine mine --to released
    """

    source: Annotated[Path, tyro.conf.Positional]
    target: Annotated[Path, tyro.conf.Positional]
    to: Layout
    """peft: the adapters of a run alone, as PEFT has them."""
    adapter: Adapters = ()
    """LoRA to fold in, each with the scale it works with."""

    def run(self) -> None:
        from internvlu_jax.checkpoints.adapters import convert
        from internvlu_jax.utils.failures import check_accelerator

        check_accelerator()
        source = path_of(self.source)
        with status(f"converting {source}"):
            convert(source, self.target, self.to, self.adapter)
        print(self.target)


@dataclass(frozen=True)
class Push:
    """Upload a checkpoint, or what a run made, to the Hub, with a card of what it is.

    Example: internvlu-jax push runs/mine ORG/NAME --to peft
    """

    source: Annotated[Path, tyro.conf.Positional]
    repo_id: Annotated[str, tyro.conf.Positional]
    """ORG/NAME; made where there is none."""
    to: Layout
    """The layout that is uploaded; peft: the adapters of a run alone."""
    public: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Of a repository that is made for it: all may see it."""
    message: str | None = None
    """Of the commit."""

    def run(self) -> None:
        from internvlu_jax.checkpoints.sharing import push_to_hub
        from internvlu_jax.utils.failures import check_accelerator

        check_accelerator()
        with status(f"uploading {self.source}"):
            address = push_to_hub(
                self.source, self.repo_id, to=self.to, private=not self.public, commit_message=self.message
            )
        print(address)
