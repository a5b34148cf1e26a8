"""What a training run reads, and how it becomes batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from internvlu_jax.config import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """The data of a run.

    Attributes:
        sources: (path, weight): what `sources.open_source` takes: JSON lines, shards, small worlds ("world:small", see
            `small_world.names`) and others, mixed example by example in proportion to the weights. Each is repeated for
            as long as the run lasts, shuffled anew each time.
        batch_size: rows of a micro-batch, over all devices and hosts; with `TrainConfig.accumulate` micro-batches a
            step.
        packed_rows: rows of a micro-batch of packed understanding samples; None is `batch_size`.
        sides: each picture to be drawn goes to the largest of these sizes whose square has no more pixels than what is
            left of it within max_aspect (else the smallest). A size is the side of a square with the area of all its
            buckets; one of a ratio nearby may enlarge the picture by up to 8%.
        max_aspect: buckets have aspect ratios from 1 / max_aspect to max_aspect; 1 is squares only.
        text_lengths: lengths to which the part of a prompt that conditions the head is padded; a record whose prompt is
            longer than the last is broken.
        pack_length: tokens of one row of packed understanding samples.
        pack_tiles: tiles of one row of packed understanding samples.
        max_tiles: most tiles that a picture is cut into for the vision encoder, the thumbnail not counted.
        drop_all_t2i: share of the pictures from words whose prompt is dropped for guidance.
        drop_all_edit: share of the edits whose prompt and sources are dropped for guidance.
        drop_text_edit: share of the edits whose words alone are dropped for guidance.
        text_targets: whether answers and reasoning are targets of the language model.
        shuffle: whether the examples of a source come in another order each time it is repeated; else in that of its
            records.
        max_broken: the run stops when clearly more than this share of the records read so far could not be used, and
            more than one, which is borne unless this is 0; however often they are read, each counts once.
        allow_outside: whether records may name pictures elsewhere than in the folder of their file and those in it.
        workers: processes that make batches side by side, each one those of every so-manieth step; 0 makes them in the
            run's own process. Another number is another order of the examples.
        threads: threads of each process, that read pictures.
        prefetch: steps that each process makes ahead.
    """

    sources: tuple[tuple[str, float], ...] = ()
    batch_size: int = 8
    packed_rows: int | None = None
    sides: tuple[int, ...] = (512,)
    max_aspect: float = 1.0
    text_lengths: tuple[int, ...] = (64, 128, 256, 512)
    pack_length: int = 2048
    pack_tiles: int = 6
    max_tiles: int = 1
    drop_all_t2i: float = 0.1
    drop_all_edit: float = 0.05
    drop_text_edit: float = 0.05
    text_targets: bool = True
    shuffle: bool = True
    max_broken: float = 0.01
    allow_outside: bool = False
    workers: int = 0
    threads: int = 8
    prefetch: int = 2

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in ("drop_all_t2i", "drop_all_edit", "drop_text_edit")}
        for name, share in {**shares, "max_broken": self.max_broken}.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"data.{name} is {share}; expected a share from 0 to 1")
        if self.drop_all_edit + self.drop_text_edit > 1:
            raise ConfigError(
                f"data.drop_all_edit is {self.drop_all_edit} and data.drop_text_edit {self.drop_text_edit}; expected "
                "shares that are at most 1 together"
            )
        for name in ("batch_size", "packed_rows", "pack_length", "pack_tiles", "max_tiles", "threads", "prefetch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"data.{name} is {value}; expected at least 1")
        if self.workers < 0:
            raise ConfigError(f"data.workers is {self.workers}; expected 0, or a number of processes")
        for name in ("sides", "text_lengths"):
            values = getattr(self, name)
            if not values or min(values) < 1 or list(values) != sorted(set(values)):
                raise ConfigError(f"data.{name} is {values}; expected positive numbers in increasing order")
        if not 1 <= self.max_aspect < math.inf:
            raise ConfigError(f"data.max_aspect is {self.max_aspect}; expected a number of at least 1")
        if not all(0 < weight < math.inf for _, weight in self.sources):
            raise ConfigError("data.sources: every weight must be a number over 0; leave a source out instead")
