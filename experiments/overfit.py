"""Can the code learn at all? A model of the debug size learns the toy data by heart, by the three stages in a row.

    python -m experiments.overfit --workdir DIR [--scale 1.0]

The VAE comes first (there is no released one at this size), then stage 1 (the head on the frozen backbone), stage 2
(the same with the latents of source pictures) and stage 3 (everything but the VAE, with questions and reasoning). From
the one checkpoint that results the pipeline then draws the 8 pictures, makes the 8 edits and answers the 8 questions;
the figures go to DIR/result.json and the pictures, beside those they should be, to DIR/pictures.png. Run again it goes
on.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.command import command
from experiments.configs.debug import DATA, TOY
from experiments.configs.stage1 import HEAD_ONLY
from experiments.configs.stage3 import ALL_BUT_VAE
from internvlu_jax.checkpoints.model_directory import is_model, save_model
from internvlu_jax.data.sources import open_source
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.models.internvlu import init_params
from internvlu_jax.presets import debug_config
from internvlu_jax.processing import chat
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.training.autoencoder import (
    AutoencoderConfig,
    latent_statistics,
    train_autoencoder,
    with_statistics,
)
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig, TrainConfig
from internvlu_jax.training.loop import train
from internvlu_jax.training.resuming import NotFiniteError, Stopped
from internvlu_jax.utils.compilation import enable_cache
from internvlu_jax.utils.failures import failed, interrupted, one_line
from internvlu_jax.utils.files import check_writable, write_json
from internvlu_jax.utils.sheets import save_sheet, sheet


@dataclass(frozen=True)
class Arguments:
    workdir: Path
    scale: float = 1.0
    """Factor of all numbers of steps."""
    seed: int = 0


def records(name: str) -> list[Any]:
    """The records of one of the toy files."""
    source = open_source(TOY / f"{name}.jsonl")
    return [source[n] for n in range(len(source))]


def start_model(arguments: Arguments, workdir: Path) -> Path:
    """A model directory with a trained VAE and everything else at random."""
    target = workdir / "start"
    if is_model(target):
        return target
    pictures = np.stack([p.pixels() for r in [*records("t2i"), *records("edit")] for p in (r.image, *r.sources)])
    config = debug_config()
    # So much divergence that the decoder forgives the errors of the head, some tenths of a latent's deviation.
    how = AutoencoderConfig(steps=max(round(1500 * arguments.scale), 1), kl_weight=1e-3, seed=arguments.seed)
    vae = train_autoencoder(config.vae, how, lambda step: pictures, workdir / "vae")
    config = with_statistics(config, *latent_statistics(config.vae, vae, [pictures]))
    params = {**init_params(config, jax.random.key(arguments.seed)), "vae": vae}
    files = workdir / "files"
    Tokenizer.byte_level(chat.FIXED_TEXTS).save(files / "processor")
    save_model(target, config, params, {}, files)
    return target


def stages(arguments: Arguments, start: Path) -> list[TrainConfig]:
    """The three stages; each starts from the one before it."""
    optimizer = OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup=50, clip=1.0, b2=0.99)
    head = dataclasses.replace(optimizer, rates=HEAD_ONLY)
    everything = dataclasses.replace(optimizer, rates=ALL_BUT_VAE, ema=0.99)
    drawing = dataclasses.replace(DATA, sources=DATA.sources[:2], text_targets=False)
    mixed = dataclasses.replace(
        DATA, sources=tuple((p, w) for (p, _), w in zip(DATA.sources, (2.0, 2.0, 1.0), strict=True))
    )
    common: dict[str, Any] = {"model": "debug", "seed": arguments.seed, "save_every": 500}
    # All noise levels alike: pictures of 64 pixels are known by their details, which the shifted levels seldom show.
    pictures = ObjectiveConfig((("flow", 1.0),))
    both = ObjectiveConfig((("text", 1.0), ("flow", 20.0)), time="uniform", shift=1.0)
    work = arguments.workdir

    def steps(number: int) -> int:
        return max(round(number * arguments.scale), 1)

    return [
        TrainConfig(
            "stage1", steps(1000), start=str(start), optimizer=head, objective=pictures,
            data=drawing, head_sources="context", **common,
        ),
        TrainConfig(
            "stage2", steps(1000), start=str(work / "stage1"), optimizer=head, objective=pictures, data=drawing,
            head_sources="both", **common,
        ),
        TrainConfig(
            "stage3", steps(6000), start=str(work / "stage2"), optimizer=everything, objective=both, data=mixed,
            accumulate=2, head_sources="both", **common,
        ),
    ]  # fmt: skip


def psnr(got: Image.Image, want: Image.Image) -> float:
    """Peak signal to noise ratio of 8-bit pictures, dB."""
    error = np.mean(np.square(np.asarray(got, np.float64) - np.asarray(want, np.float64)))
    return float(10 * np.log10(255**2 / np.maximum(error, 1e-12)))


def examine(directory: Path) -> tuple[dict[str, Any], Image.Image]:
    """What the model in `directory` draws, edits and answers beside what it has learned."""
    pipe = InternVLUPipeline.from_pretrained(directory)
    drawn, edited, asked = records("t2i"), records("edit"), records("questions")
    true_pictures = [Image.fromarray(r.image.pixels()) for r in [*drawn, *edited]]
    sources = [[Image.fromarray(p.pixels()) for p in r.sources] for r in edited]
    # Without guidance: it pushes away from the average of all pictures, and here one picture is to be met exactly.
    options: dict[str, Any] = {"height": 64, "width": 64, "seed": 0, "all_cfg_scale": 1.0, "part_cfg_scale": 1.0}
    got = pipe([r.prompt for r in drawn if not r.reasoning], generation_mode="image", **options).images or []
    reasoned = [r for r in drawn if r.reasoning]
    thought = pipe([r.prompt for r in reasoned], generation_mode="text_image", max_new_tokens=120, **options)
    plain, thoughtful = iter(got), iter(thought.images or [])
    pictures = [next(thoughtful) if r.reasoning else next(plain) for r in drawn]
    pictures += pipe([r.prompt for r in edited], image=sources, generation_mode="image", **options).images or []
    answers = [
        (pipe(human, image=[[Image.fromarray(p.pixels()) for p in r.sources]], max_new_tokens=60).text or [""])[0]
        for r in asked
        for human, _ in r.turns
    ]
    ratios = [psnr(a, b) for a, b in zip(pictures, true_pictures, strict=True)]
    right = [answer == said for answer, (_, said) in zip(answers, [t for r in asked for t in r.turns], strict=True)]
    words = [text.strip() == r.reasoning for text, r in zip(thought.text or [], reasoned, strict=True)]
    figures = {
        "psnr_drawn": ratios[:8], "psnr_edited": ratios[8:], "answers_right": sum(right), "answers": answers,
        "reasoning_right": sum(words), "reasoning": thought.text,
    }  # fmt: skip
    return figures, sheet([picture for pair in zip(true_pictures, pictures, strict=True) for picture in pair])


def main(arguments: Arguments) -> int:
    """The command: status 0 where it passed or a signal stopped it, 2 for what a user can put right, 1 for the rest."""
    enable_cache()
    started = time.time()
    losses = {}
    try:
        check_writable(arguments.workdir / "start")
        configs = stages(arguments, start_model(arguments, arguments.workdir))
        for cfg in configs:
            workdir = arguments.workdir / cfg.name
            outcome = train(cfg, workdir, quiet=False)
            if outcome.stopped:
                raise Stopped(workdir, outcome.steps)
            losses[cfg.name] = outcome.metrics
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print(interrupted(arguments.workdir), file=sys.stderr)
        return 130
    except (ValueError, FileExistsError) as error:
        return failed("error", one_line(error), 2)
    except (NotFiniteError, OSError) as error:
        return failed("error", one_line(error), 1)
    figures, pictures = examine(arguments.workdir / configs[-1].name)
    ratios = [*figures["psnr_drawn"], *figures["psnr_edited"]]
    figures |= {
        "passed": min(ratios) > 25 and figures["answers_right"] == 8,
        "last_losses": losses, "command": " ".join(["python -m experiments.overfit", *sys.argv[1:]]),
        "seconds": round(time.time() - started), "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    save_sheet(pictures, arguments.workdir / "pictures.png")
    write_json(arguments.workdir / "result.json", figures)
    print(json.dumps(figures, indent=2))
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    command(main, Arguments, "experiments.overfit", __doc__)
