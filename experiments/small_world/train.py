"""The model in the box, from nothing: tokenizer, autoencoder, backbone, and the three stages, all on the small world.

    python -m experiments.small_world.train --workdir DIR [--scale 1.0] [--until NAME] [--export DST]

The order is that of the 4B model, with a backbone of our own in the place of the pretrained one: the autoencoder; the
vision encoder and language model on questions about pictures and on reasoning in words; stage 1, the head alone on
prompts; stage 2, the head alone with edits; stage 3, everything but the autoencoder on all tasks. Then what takes many
small steps in place of few large ones: the reader, a second backbone, on questions alone; its joining with the head of
stage 3 (`training.joining`); and all of it together, in small steps. What all tasks together never teach is learned
alone, letters first and then places, at the cost of the rest; the weights halfway there keep most of both, and all
tasks bring back what is missing (together2 and 3; together4 in larger steps, with more pictures). Each part goes on
where it was stopped, so the same command is given again until it is done; one that another machine made, a model
directory by the part's name in DIR, is taken as it is. `--export` writes the result as a directory in the released
layout, in bfloat16.

On a GPU, where drawing the world is what takes the time, give its other cores and its own number format:

    python -m experiments.small_world.train --workdir DIR --workers 14 --dtype bfloat16
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import UInt8

from converters.checkpoint import export_released
from experiments.configs.stage1 import HEAD_ONLY
from experiments.configs.stage3 import ALL_BUT_VAE
from internvlu_jax.checkpoints import arrays as checkpoint
from internvlu_jax.checkpoints import loading
from internvlu_jax.config import Compute
from internvlu_jax.data.config import DataConfig
from internvlu_jax.models.internvlu import init_params
from internvlu_jax.presets import small_config
from internvlu_jax.processing import chat
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.small_world import WorldSource
from internvlu_jax.small_world.scenes.scene import Scene
from internvlu_jax.training.autoencoder import (
    AutoencoderConfig,
    latent_statistics,
    train_autoencoder,
    with_statistics,
)
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig, TrainConfig
from internvlu_jax.training.context_distillation import DistillationConfig, distill_context
from internvlu_jax.training.loop import train
from internvlu_jax.utils.compilation import enable_cache

SIDE = 64
_CROP = 32  # pixels; crops around objects teach the autoencoder in minutes what whole pictures take hours for
_CROPS = 32  # of one step
_MERGES = 1200
_RAMP = 3.0  # about as large as the patches' values
_TEXTS = 20_000  # examples whose texts the tokenizer is made from
_DRAWN = {"general/picture": 3.0, "text/picture": 1.0}
_CROPPED = {"general/picture": 1.0, "text/picture": 1.0}  # letters are the hardest to keep
BACKBONE_ONLY = (("vlm/.*", 1.0), (".*", 0.0))
_HALFWAY = {"together2": ("together", "letters"), "together3": ("together2", "places")}
"""Parts that start between two others: the start's name is their `TrainConfig.start`."""

PROMPTS = (
    "a red circle", "a large blue star", "two green squares", "three yellow triangles", "four red stars",
    "a black circle and a pink star", "a purple square left of an orange circle", "a small orange star",
    "a green triangle above a blue circle", "the word STOP", "a pink square on a light blue background",
    "two blue circles and a red star",
)  # fmt: skip

Part = Literal[
    "start", "backbone", "stage1", "stage2", "stage3", "reader", "joined", "together", "letters", "together2", "places",
    "together3", "together4",
]  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    workdir: Path
    scale: float = 1.0
    """Factor of all numbers of steps."""
    rows: int = 256
    """Of a step. On a CPU fewer, 32, give more for the time."""
    draws: int = 2
    """Noises of each picture in one step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of computation."""
    workers: int = 0
    """Processes that draw the world; on a GPU as many as there are other cores."""
    seed: int = 0
    until: Part = "together4"
    """The last part to train."""
    sample_every: int | None = None
    """Steps between sheets of sample pictures."""
    export: Path | None = None
    """A new directory for the result."""


def texts() -> Iterator[str]:
    """What the tokenizer is made from: all texts of the world, but for the words in pictures.

    Those stay single letters: the head has to draw them one by one.
    """
    source = WorldSource(seed=1)
    for n in range(_TEXTS):
        example = source.example(n)
        for text in (example.prompt, example.answer, example.reasoning or ""):
            plain = re.sub(r"[A-Z0-9]{2,}", " ", text)
            yield from (plain, chat.normalise_user_text(plain))


def crops(seed: int, step: int) -> UInt8[np.ndarray, "b y x 3"]:
    """Parts of pictures with something in them, for one step of the autoencoder."""
    source = WorldSource(weights=_CROPPED, seed=seed)
    rng = np.random.default_rng([seed, step])
    return np.stack([_crop(source.example(step * _CROPS + n).image, rng) for n in range(_CROPS)])


def _crop(scene: Any, rng: np.random.Generator) -> UInt8[np.ndarray, "y x 3"]:
    assert isinstance(scene, Scene)
    boxes = [item.box for item in scene.items] + ([scene.word.box] if scene.word else [])
    left, top, right, bottom = (SIDE * edge for edge in boxes[rng.integers(len(boxes))])
    x, y = (int(rng.uniform(*ends) - _CROP / 2 + rng.integers(-8, 9)) for ends in ((left, right), (top, bottom)))
    x, y = (min(max(v // 8 * 8, 0), SIDE - _CROP) for v in (x, y))  # latents are drawn on this grid, too
    return scene.draw(SIDE)[y : y + _CROP, x : x + _CROP]


def start_model(arguments: Arguments) -> Path:
    """A model directory with a tokenizer, a trained autoencoder, and everything else at random."""
    target = arguments.workdir / "start"
    if _brought(target):
        return target
    config, seed = small_config(), arguments.seed
    how = AutoencoderConfig(steps=max(round(10_000 * arguments.scale), 1), kl_weight=4e-3, seed=seed)
    vae = train_autoencoder(config.vae, how, lambda step: crops(seed + 2, step), arguments.workdir / "vae")
    source = WorldSource(weights=_DRAWN, seed=seed + 3)
    pictures = [np.stack([source[n + 64 * k].image.pixels() for n in range(64)]) for k in range(16)]  # type: ignore
    mean, std = latent_statistics(config.vae, vae, pictures)
    # One scale for all channels: those that say little would be blown up, and cost the head as much as others.
    config = with_statistics(config, mean, np.full_like(std, np.sqrt(np.mean(np.square(std)))))
    params = {**init_params(config, jax.random.key(seed)), "vae": vae}
    table = params["vlm"]["vit"]["position_embedding"]
    params["vlm"]["vit"]["position_embedding"] = with_ramps(table, np.random.default_rng(seed))
    files = arguments.workdir / "files"
    Tokenizer.trained(texts(), _MERGES, chat.FIXED_TEXTS).save(files / "processor")
    checkpoint.save_model(target, config, params, {}, files)
    return target


def with_ramps(table: Any, rng: np.random.Generator) -> np.ndarray:
    """A vision encoder's new position table, with the coordinates of the patches in two directions of it.

    New tables are of 0.02, and patches of 2: questions where something is stayed at chance for thousands of steps.

    Args:
        table: [1 + n * n, d], the class token first.
    """
    side = round((len(table) - 1) ** 0.5)
    at = np.linspace(-1.0, 1.0, side)
    coordinates = np.stack(np.meshgrid(at, at, indexing="ij"), -1).reshape(-1, 2)
    ramped = np.array(table)
    ramped[1:] += _RAMP * coordinates @ rng.standard_normal((2, table.shape[1]))
    return ramped


def _sources(**weights: float) -> tuple[tuple[str, float], ...]:
    """Of tasks "general_edit", and of one kind of a task, "general_picture_position"."""
    return tuple((f"world:small/{name.replace('_', '/')}", float(weight)) for name, weight in weights.items())


# Words, and which of two objects is where, are learned last: prompts of these kinds come more often than the others.
_PICTURES = _sources(
    general_picture=10, general_picture_position=9, general_picture_attribution=5, general_picture_two=5,
    general_picture_counting=4, text_picture=12,
)  # fmt: skip
_EDITS = _sources(general_edit=16, text_edit=4)
_RIDDLES = _sources(reasoning_picture=4, reasoning_steps=6)
_QUESTIONS = _sources(
    general_question=10, general_question_place=4, general_question_relation=8, general_description=1, text_question=4
)
# Of the parts that train all tasks together.
_SHARED = _sources(
    general_picture=6, general_edit=14, general_edit_move=6, general_edit_replace=4, reasoning_picture=5,
    reasoning_steps=6, general_description=0.5,
)  # fmt: skip
# What was still weak after the joining: sizes, and edits that move or exchange.
_WEAK = _SHARED + _sources(
    general_picture_single=8, general_picture_position=3, general_picture_attribution=4, general_picture_two=4,
    general_picture_counting=5, text_picture=8, text_edit=3, general_conversation=10, general_question_place=2,
    general_question_relation=6, text_question=2,
)  # fmt: skip
_LETTERS = _sources(text_picture_1=5, text_picture_2=4, text_picture_3=2, text_picture_4=2, text_picture=2)
_PLACES = _sources(general_question_place=3, general_question_relation=2)
# After them, with many words and conversations, so that neither is lost again.
_ALL = _SHARED + _sources(
    general_picture_single=8, general_picture_position=4, general_picture_attribution=4, general_picture_two=4,
    general_picture_counting=6, text_picture=28, text_picture_2=4, text_picture_3=4, text_picture_4=4, text_edit=4,
    general_conversation=16, general_question_place=4, general_question_relation=8, text_question=3,
)  # fmt: skip
# What letters and places had cost: a size that is asked for, two objects and no third, and right numbers.
_LAST = _SHARED + _sources(
    general_picture_single=18, general_picture_position=5, general_picture_attribution=7, general_picture_two=7,
    general_picture_counting=11, text_picture=17, text_picture_1=3, text_picture_2=2, text_picture_3=2,
    text_picture_4=2, text_edit=4, general_conversation=14, general_question_place=5, general_question_relation=9,
    text_question=2,
)  # fmt: skip


def parts(arguments: Arguments, start: Path) -> list[TrainConfig]:
    """All parts but the joining; backbone and stages start from the one before them."""
    work, rows = arguments.workdir, arguments.rows
    optimizer = OptimizerConfig(learning_rate=1.5e-3, warmup=200, clip=1.0, b2=0.99, ema=0.999)
    head = dataclasses.replace(optimizer, rates=HEAD_ONLY)
    # The language model is what the head reads: at the full rate it forgets its words, and the head cannot follow.
    gently = (("vlm/llm/.*", 0.4), *ALL_BUT_VAE)
    falling = dataclasses.replace(optimizer, schedule="cosine")
    everything = dataclasses.replace(falling, rates=gently)
    data = DataConfig(
        batch_size=rows, packed_rows=max(rows // 4, 1), sides=(SIDE,), text_lengths=(60,), pack_length=256,
        pack_tiles=5, threads=1, workers=arguments.workers, text_targets=False,
    )  # fmt: skip
    both = dataclasses.replace(data, text_targets=True)
    words = ObjectiveConfig(1.0, 0.0)
    # Over noise levels of 0.8 a picture shows too little of itself, and the prompt decides: a third of the samples are
    # there, where logit-normal ones without shift have 8%.
    flow = ObjectiveConfig(0.0, 1.0, time="uniform", shift=2.0, draws=arguments.draws)
    joint = dataclasses.replace(flow, text_weight=0.5)
    once = dataclasses.replace(joint, draws=1)
    slow = dataclasses.replace(falling, learning_rate=5e-4, ema=0.998, rates=ALL_BUT_VAE)
    few = dataclasses.replace(both, batch_size=16, packed_rows=4)

    def part(name: str, steps: int, before: Path, **settings: Any) -> TrainConfig:
        return TrainConfig(
            name, max(round(steps * arguments.scale), 1), start=str(before), save_every=1000,
            compute=Compute(arguments.dtype, "xla", time="float32"), keep_last=1, sample_every=arguments.sample_every,
            sample_prompts=PROMPTS, **settings,
        )  # fmt: skip

    made = [
        part(
            "backbone", 1150, start, objective=words,
            optimizer=dataclasses.replace(optimizer, learning_rate=1e-3, rates=BACKBONE_ONLY),
            data=dataclasses.replace(both, sources=_QUESTIONS + _sources(reasoning_words=6)),
        ),
        part(
            "stage1", 2250, work / "backbone", objective=flow, optimizer=head,
            data=dataclasses.replace(data, sources=_PICTURES + _sources(reasoning_direct=1)),
        ),
        part(
            "stage2", 900, work / "stage1", objective=flow, optimizer=head,
            data=dataclasses.replace(data, sources=_PICTURES + _EDITS),
        ),
        part(
            "stage3", 7650, work / "stage2", objective=joint, optimizer=everything,
            data=dataclasses.replace(both, sources=_PICTURES + _EDITS + _RIDDLES + _QUESTIONS),
        ),
        part(
            "reader", 15_000, start, objective=words,
            optimizer=dataclasses.replace(falling, learning_rate=1e-3, rates=BACKBONE_ONLY),
            data=dataclasses.replace(
                both, batch_size=12, packed_rows=12,
                sources=_sources(
                    general_conversation=8, general_question_place=4, general_question_relation=4, text_question=5,
                    general_description=1, reasoning_words=2,
                ),
            ),
        ),
        part(
            "together", 4000, work / "joined" / "model", objective=once,
            optimizer=slow, data=dataclasses.replace(few, sources=_WEAK),
        ),
        part(
            "letters", 3800, work / "together", objective=dataclasses.replace(flow, shift=2.5, draws=1),
            optimizer=dataclasses.replace(optimizer, learning_rate=6e-4, warmup=30, ema=0.98, rates=ALL_BUT_VAE),
            data=dataclasses.replace(few, text_targets=False, sources=_LETTERS),
        ),
        part(
            "together2", 1200, work / "halfway2", objective=once,
            optimizer=dataclasses.replace(slow, schedule="constant", ema=0.995),
            data=dataclasses.replace(few, sources=_ALL),
        ),
        part(
            "places", 2000, work / "together2", objective=words,
            optimizer=dataclasses.replace(optimizer, learning_rate=1.2e-3, warmup=30, ema=0.98, rates=BACKBONE_ONLY),
            data=dataclasses.replace(few, batch_size=8, packed_rows=8, sources=_PLACES),
        ),
        part(
            "together3", 3900, work / "halfway3", objective=once,
            optimizer=slow, data=dataclasses.replace(few, sources=_ALL),
        ),
        part(
            "together4", 4500, work / "together3", objective=once,
            optimizer=dataclasses.replace(slow, learning_rate=4e-4, ema=0.997),
            data=dataclasses.replace(few, batch_size=32, packed_rows=8, sources=_LAST),
        ),
    ]  # fmt: skip
    # With one seed for all, the parts would read the same examples.
    return [dataclasses.replace(cfg, seed=arguments.seed + 100 * n) for n, cfg in enumerate(made)]


def joining(arguments: Arguments) -> DistillationConfig:
    """The reader learns to give the contexts that the head of stage 3 knows, and goes on reading."""
    asked = _sources(
        general_conversation=10, general_question_place=5, general_question_relation=5, general_description=0.5,
        text_question=2,
    )  # fmt: skip
    questions = DataConfig(
        asked, batch_size=12, packed_rows=8, sides=(SIDE,), text_lengths=(60,), pack_length=256, pack_tiles=5, threads=1
    )
    prompts = dataclasses.replace(
        questions, batch_size=20, packed_rows=None,
        sources=_PICTURES + _sources(general_edit=24, text_edit=4, reasoning_picture=10, reasoning_steps=12),
    )  # fmt: skip
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup=50, b2=0.99, clip=1.0, ema=0.995)
    steps = max(round(6000 * arguments.scale), 1)
    return DistillationConfig(steps, questions, prompts, optimizer, seed=arguments.seed)


def _brought(part: Path) -> bool:
    """Whether a part is a model in place of a run: the result of another machine, in either layout."""
    return checkpoint.is_model(part) or (part / "model_index.json").is_file()


def halfway(before: Path, after: Path, target: Path) -> None:
    """A model with the means of two models' weights, of which the second was trained from the first."""
    if _brought(target):
        return
    first, second = (loading.load(path, place=np.asarray) for path in (before, after))

    def mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.mean([a.astype(np.float32), b.astype(np.float32)], axis=0).astype(a.dtype)

    params = jax.tree.map(mean, first.params, second.params)
    checkpoint.save_model(target, first.config, params, first.extras, first.assets)


def main(arguments: Arguments) -> int:
    enable_cache()
    start = start_model(arguments)
    if arguments.until == "start":
        return 0
    work = arguments.workdir
    for cfg in parts(arguments, start):
        if cfg.name == "together":
            last = distill_context(joining(arguments), work / "reader", work / "stage3", work / "joined")
            if arguments.until == "joined":
                break
        if cfg.name in _HALFWAY:
            before, after = _HALFWAY[cfg.name]
            halfway(work / before, work / after, Path(str(cfg.start)))
        last = work / cfg.name
        if not _brought(last) and train(cfg, last).stopped:
            return 0
        if cfg.name == arguments.until:
            break
    if arguments.export is not None:
        model = loading.load(last, max_dtype="bfloat16", place=np.asarray)
        export_released(arguments.export, model.config, model.params, model.extras, model.assets)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
