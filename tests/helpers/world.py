"""Examples of the small world for its tests, thousands of them, drawn once by another process (see `unchecked`)."""

import functools

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.loader import Loader
from internvlu_jax.data.sources import open_source
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.small_world import WorldSource
from internvlu_jax.small_world.tasks.example import Example
from tests.helpers.unchecked import unchecked

SEED = 11
COUNTS = {"general/picture": 800, "general/edit": 600, "general/question": 800, "science/question": 1500}
"""Of each split but the one of seen combinations; of other tasks `COUNT`, of that split `SEEN`."""

COUNT, SEEN = 500, 120


def source(task: str, split: str) -> WorldSource:
    return WorldSource(weights={task: 1.0}, split=split, seed=SEED)


def make(task: str, split: str) -> list[Example]:
    drawn, count = source(task, split), SEEN if split == "seen" else COUNTS.get(task, COUNT)
    return [drawn.example(n) for n in range(count)]


@functools.cache
def _made(task: str, split: str) -> list[Example]:
    return unchecked(make, task, split)


def named_examples(name: str, count: int) -> list[Example]:
    """The first so many examples of a source by name."""
    drawn = open_source(name)
    return [drawn.example(n) for n in range(count)]


def batches_drawn(cfg: InternVLUConfig, tokenizer: Tokenizer, data: DataConfig, steps: int) -> tuple[int, list[bool]]:
    """How many records were broken in so many steps, and of each batch whether pictures are drawn in it."""
    with Loader(cfg, tokenizer, data, seed=0) as loader:
        batches = [batch for _, step in zip(range(steps), loader, strict=False) for batch in step]
        return len(loader.state()["broken"]), [batch.picture is not None for batch in batches]


def examples(task: str, split: str = "train", count: int | None = None) -> list[Example]:
    """The first so many examples of a task, or all that there are."""
    return _made(task, split)[:count]
