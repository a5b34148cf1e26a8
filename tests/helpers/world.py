"""Examples of the small world for its tests, thousands of them, drawn once by another process.

That process runs without the checks of every call that the tests run under, which take most of the time there.

    python -m tests.helpers.world > EXAMPLES
"""

import functools
import pickle
import subprocess
import sys
from pathlib import Path

from internvlu_jax.small_world import WorldSource
from internvlu_jax.small_world.tasks.domains import TASKS
from internvlu_jax.small_world.tasks.example import Example

SEED = 11
COUNTS = {"general/picture": 1200, "general/edit": 900, "general/question": 1200, "science/question": 1500}
"""Of each split but the one of seen combinations; of other tasks `COUNT`, of that split `SEEN`."""

COUNT, SEEN = 500, 150


def source(task: str, split: str) -> WorldSource:
    return WorldSource(weights={task: 1.0}, split=split, seed=SEED)


def make() -> dict[tuple[str, str], list[Example]]:
    made = {}
    for task in TASKS:
        for split in ("train", "seen", "heldout"):
            drawn, count = source(task, split), SEEN if split == "seen" else COUNTS.get(task, COUNT)
            made[task, split] = [drawn.example(n) for n in range(count)]
    return made


@functools.cache
def _made() -> dict[tuple[str, str], list[Example]]:
    command, root = [sys.executable, "-m", "tests.helpers.world"], Path(__file__).parents[2]
    return pickle.loads(subprocess.run(command, capture_output=True, check=True, cwd=root).stdout)


def examples(task: str, split: str = "train", count: int | None = None) -> list[Example]:
    """The first so many examples of a task, or all that there are."""
    return _made()[task, split][:count]


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(make()))
