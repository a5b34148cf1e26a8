"""The model in the box, from nothing: tokenizer, autoencoder, backbone, head, all on the small world (see `recipe`).

    python -m experiments.small_world.train --workdir DIR [--scale 1.0] [--until NAME] [--export DST]

Each part goes on where it was stopped, so the same command is given again until it is done. A part that is there, made
here or a model directory by the part's name in DIR, is taken as it is, and nothing runs that only such parts need.
`--export` writes the result as a directory in the released layout, in bfloat16.

On a GPU, where drawing the world is what takes the time, give its other cores and its own number format:

    python -m experiments.small_world.train --workdir DIR --workers 14 --dtype bfloat16
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from converters.checkpoint import export_released
from converters.engine import on_host
from experiments.command import command
from experiments.small_world.parts import Settings, remaining
from experiments.small_world.recipe import PARTS
from internvlu_jax.checkpoints import loading
from internvlu_jax.training.resuming import NotFiniteError, Stopped
from internvlu_jax.utils.compilation import enable_cache
from internvlu_jax.utils.failures import interrupted


@dataclass(frozen=True)
class Arguments(Settings):
    until: str = PARTS[-1].name
    """The last part to train."""
    export: Path | None = None
    """A new directory for the result."""


def main(arguments: Arguments) -> int:
    """Runs what is not there; status 0 where a signal stopped it, 2 for what a user can put right, 1 for the rest."""
    enable_cache()
    try:
        for part in remaining(PARTS, arguments.until, arguments):
            print(f"part {part.name}", file=sys.stderr)
            part.run(arguments)
        if arguments.export is not None:
            model = loading.load(arguments.model(arguments.until), max_dtype="bfloat16", place=on_host)
            export_released(arguments.export, model.config, model.params, model.extras, model.assets)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print(interrupted(arguments.workdir), file=sys.stderr)
        return 130
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (NotFiniteError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command(main, Arguments, "experiments.small_world.train", __doc__)
