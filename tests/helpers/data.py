"""Records in memory, and the loader and the plan over them, for the tests of the data."""

import dataclasses
from io import BytesIO

import jax
import numpy as np

from internvlu_jax.config_files import read_config
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import ExampleBuilder
from internvlu_jax.data.loader import Loader
from internvlu_jax.data.plan import Plan
from internvlu_jax.data.records import PictureFile, Record, drawn_picture
from internvlu_jax.processing.tokenizer import Tokenizer
from tests.conftest import GOLDENS

CHECKPOINT = GOLDENS / "base/checkpoint"
CFG = read_config(CHECKPOINT)
TOKENIZER = Tokenizer.from_directory(CHECKPOINT / "processor")
NO_DROPS = {"drop_all_t2i": 0.0, "drop_all_edit": 0.0, "drop_text_edit": 0.0}
DATA = DataConfig(
    batch_size=2, sides=(32, 64), max_aspect=2.0, text_lengths=(64, 160), pack_length=160, pack_tiles=3, threads=2,
    max_broken=0.5, **NO_DROPS,
)  # fmt: skip


def pixels(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def picture_of(name: str, image: np.ndarray) -> PictureFile:
    """A picture that is in memory."""
    return drawn_picture(name, lambda: image, image.shape[:2])


def t2i(n: int, height: int = 64, width: int = 64, **more) -> Record:
    image = picture_of(f"{n}.png", pixels(n, height, width))
    return Record("t2i", f"t2i:{n}", prompt=f"picture {n}", image=image, **more)


def edit(n: int, *sizes: tuple[int, int], **more) -> Record:
    found = [pixels(100 * n + k, *size) for k, size in enumerate(sizes or [(64, 64)])]
    sources = tuple(picture_of(f"{n}-{k}.png", picture) for k, picture in enumerate(found))
    image = picture_of(f"{n}-edited.png", pixels(n))
    return Record("edit", f"edit:{n}", prompt=f"change {n}", image=image, sources=sources, **more)


def ask(n: int, pictures: int = 1, turns: int = 1) -> Record:
    seen = tuple(picture_of(f"{n}-{k}.png", pixels(1000 * n + k, 56, 56)) for k in range(pictures))
    said = tuple((f"question {n}.{k}?", f"answer {n}.{k}" + " more" * (n % 4)) for k in range(turns))
    return Record("understanding", f"ask:{n}", sources=seen, turns=said)


MIXED = ([t2i(n) for n in range(5)], [edit(n) for n in range(3)], [ask(n, n % 2, 1 + n % 3) for n in range(7)])


def loader(records=MIXED, data: DataConfig = DATA, weights=None, seed: int = 0, config=CFG, **options) -> Loader:
    named = tuple((f"source {n}", weight) for n, weight in enumerate(weights or [1.0] * len(records)))
    data = dataclasses.replace(data, sources=named)
    return Loader(config, TOKENIZER, data, seed=seed, sources=records, **options)


def steps(made: Loader, count: int) -> list:
    with made:
        return [next(made) for _ in range(count)]


def one(records, data: DataConfig = DATA, **options):
    """The first batch of one source, in order."""
    return steps(loader([records], dataclasses.replace(data, shuffle=False), **options), 1)[0][0]


def assert_same(first, second) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def plan(
    records, data: DataConfig = DATA, weights=None, seed: int = 0, share: tuple[int, int] = (0, 1), **options
) -> Plan:
    named = tuple((f"source {n}", weight) for n, weight in enumerate(weights or [1.0] * len(records)))
    data = dataclasses.replace(data, sources=named, **options)
    return Plan(ExampleBuilder(CFG, TOKENIZER, data), records, data, seed, share)


def drafts(made: Plan, count: int) -> list:
    return [draft for _ in range(count) for row in next(made).rows for draft in row]


def truncated(name: str) -> PictureFile:
    data = picture_of("p", pixels(0)).read()
    return PictureFile(name, lambda: BytesIO(data[: len(data) // 2]))


def samples(text) -> list[tuple]:
    """(ids, positions, targets, weights, tiles that its visual tokens show) of each packed sample, row by row."""
    found = []
    per_tile = CFG.vlm.tokens_per_tile
    for r, row in enumerate(text.segments):
        for number in range(1, np.max(row) + 1):
            own = row == number
            arrays = [getattr(text, name)[r][own] for name in ("ids", "positions", "targets", "weights")]
            shown = np.zeros(0, int) if text.visual_index is None else text.visual_index[r][own]
            tiles = [text.tiles[r][index // per_tile] for index in shown[shown >= 0]]
            found.append((*arrays, np.array(tiles)))
    return found
