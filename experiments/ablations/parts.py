"""What the runs of all arms start from, made once for all seeds.

    python -m experiments.ablations.parts --workdir DIR [--of representations|later|transfer] [--smoke]

    vae0, vae1                  two VAEs; the second is for the twin, which reads its latents and draws none
    vision, vision-random       a vision encoder trained on questions (`understanding`), and a random one
    semantic, semantic-random   a decoder of the features of each; its statistics are measured before it is trained
    vae-quantized               a VAE with quantized latents, the codec of shared-discrete, trained as vae0

Those of the studies at XS are in kept_parts/, and are not made again. In DIR/parts/NAME, or DIR/parts-WHAT/NAME where
the size is not XS or they learn from something else (`Lessons`), small enough to be copied to another machine:

    config.json     all that the part depends on; where that differs, the part is refused
    part.npz        its parameters, and what normalises its latents
    ceiling.json    of an autoencoder: what its renders still show (`ceilings`)
    loop/           of its training, to go on with where that was stopped; may be removed once part.npz is there
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.ablations.arms import TINY, XS, Arm, Size, arms_of, check_frozen_parts, with_frozen_parts
from experiments.ablations.ceilings import RENDERS, Ceiling, ceiling, drawn_at_best
from experiments.ablations.codes import draws_codes
from experiments.ablations.understanding import UnderstandingConfig, initial, train_vision, understanding_settings
from experiments.ablations.world import MEASURED, autoencoder, semantic_autoencoder
from experiments.command import command
from internvlu_jax.checkpoints.run_directory import config_differences
from internvlu_jax.config import Compute, InternVLUConfig, QuantizedCodec, SemanticCodec, VAEConfig
from internvlu_jax.evaluation.scores import Score
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.models.slots import module
from internvlu_jax.models.vlm import NUM_SPECIAL_TOKENS
from internvlu_jax.small_world import WORLDS
from internvlu_jax.training.autoencoder import AutoencoderConfig
from internvlu_jax.training.resuming import check_settings, has_settings
from internvlu_jax.utils.compilation import enable_cache
from internvlu_jax.utils.files import read_json, write_json, written_whole
from internvlu_jax.utils.tree import from_paths, paths

NAMES = ("vae0", "vae1", "vision", "vision-random", "semantic", "semantic-random", "vae-quantized")
"""Of all parts; each needs at most those before it."""

_VISION = {"semantic": "vision", "semantic-random": "vision-random"}
KEPT = Path(__file__).parent / "kept_parts"
"""Those that counted runs start from, whoever makes them: taken where the settings are these."""

_STATISTICS = ("latents_mean", "latents_std")
_QUANTIZED = "vae-quantized"
_RANDOM = 0  # key of the random vision encoder
CASES = 500
"""Of each set that a codec draws at best, as many as counted scores have."""


@dataclass(frozen=True)
class PartSizes:
    """How much goes into the parts. measured: pictures that statistics are taken from, or 0 for
    latents as they are. renders: of a ceiling.
    """

    autoencoder_steps: int = 2000
    understanding: UnderstandingConfig = UnderstandingConfig()
    measured: int = MEASURED
    renders: int = RENDERS


SMOKE = PartSizes(2, UnderstandingConfig(steps=2, rows=1, examples=60), measured=0, renders=20)
"""As little as runs, with one scale of latents for all, so that arms share what is compiled."""


@dataclass(frozen=True)
class Lessons:
    """What parts learn from. pictures: autoencoders, of `world.PICTURES`. questions: the vision encoder, of a world.

    times: as many steps as `PartSizes` has, of autoencoders.
    """

    pictures: str = "xs"
    questions: str = "xs"
    times: int = 1


USUAL_LESSONS = Lessons()
"""Of the study `representations` and those that are tuned in it."""

ALL_PICTURES = Lessons("xs-all", times=3)
"""Of studies that begin later. After 2,000 such steps decoupled's VAE has 92.4% of seen combinations read right, after
6,000 all."""

TRANSFER = Lessons("xs-all", "xs-transfer", times=3)
"""Of the study `transfer`: the encoder that shared-semantic freezes has not read about what is to be drawn alone."""


@dataclass(frozen=True)
class Part:
    """A part that is done.

    config: of a member of the slot `vae`, with the statistics of its latents, or of a vision encoder.
    ceiling: of an autoencoder; a vision encoder has none.
    """

    config: Any
    params: Params
    ceiling: Ceiling | None = None


def needed(arms: Iterable[Arm]) -> tuple[str, ...]:
    """The parts that arms start from, in the order in which they are made."""
    names = set[str]()
    for arm in arms:
        names |= {codec_name(arm), *(("vae1",) if arm.twin else ())}
        names |= {_VISION[name] for name in names & _VISION.keys()}
    return tuple(name for name in NAMES if name in names)


def make_parts(
    workdir: Path,
    sizes: PartSizes = PartSizes(),
    size: Size = XS,
    names: Sequence[str] = NAMES,
    lessons: Lessons = USUAL_LESSONS,
) -> dict[str, Part]:
    """Parts of models of a size by name, those taken that are there.

    Args:
        names: as `needed` gives them; by default all.

    Raises:
        ConfigError: one in `workdir` was made, or begun, under other settings.
        Stopped: a signal ended a training; the same call goes on.
    """
    parts: dict[str, Part] = {}
    special = (size.name, XS.name), (lessons.pictures, "xs"), (lessons.questions, "xs")
    folder = Path(workdir) / "-".join(["parts", *(one for one, usual in special if one != usual)])
    for name in names:
        parts[name] = _taken_or_made(name, folder / name, sizes, size, lessons, parts)
    return parts


def _taken_or_made(
    name: str, directory: Path, sizes: PartSizes, size: Size, lessons: Lessons, parts: Mapping[str, Part]
) -> Part:
    told = settings(name, sizes, size, lessons)
    if has_settings(directory):
        check_settings(directory, told)
    else:
        write_json(directory / "config.json", told)
    if not (directory / "part.npz").is_file():
        if kept := _kept(name, told):
            shutil.copytree(kept, directory, dirs_exist_ok=True)
        else:
            save(directory, _made(name, sizes, size, lessons, directory / "loop", parts))
    part = load(name, directory, size)
    if (part.ceiling is not None and part.ceiling.drawn) or "renders" not in told:
        return part
    scores = _ceiling(part, sizes.renders, size)
    write_json(directory / "ceiling.json", dataclasses.asdict(scores))
    return dataclasses.replace(part, ceiling=scores)


def _kept(name: str, told: dict[str, Any]) -> Path | None:
    """The directory of the part that is kept with these settings, if one is."""
    every = (directory for directory in KEPT.rglob(name) if has_settings(directory))
    return next((directory for directory in every if not config_differences(directory, told)), None)


def settings(name: str, sizes: PartSizes, size: Size = XS, lessons: Lessons = USUAL_LESSONS) -> dict[str, Any]:
    """Everything that a part depends on, as JSON."""
    if name == "vision":
        return understanding_settings(sizes.understanding, size, lessons.questions)
    config = dataclasses.asdict(_base(name, size))
    if name == "vision-random":
        return {"config": config, "key": _RANDOM}
    encoder = {"encoder": settings(_VISION[name], sizes, size, lessons)} if name in _VISION else {}
    pictures = {} if lessons.pictures == "xs" else {"pictures": lessons.pictures}
    measured = {} if name == _QUANTIZED else {"measured": sizes.measured}
    how = {"autoencoder": dataclasses.asdict(_how(name, sizes, lessons)), **measured, "renders": sizes.renders}
    return {"config": config, **how, **pictures, **encoder}


def _base(name: str, size: Size = XS) -> Any:
    """The config of a part before anything is measured."""
    if name == _QUANTIZED:
        return arms_of(size)["shared-discrete"].config.vae
    codec = arms_of(size)["decoupled" if name.startswith("vae") else "shared-semantic"].config.vae
    return codec.encoder if name.startswith("vision") else codec


def _how(name: str, sizes: PartSizes, lessons: Lessons) -> AutoencoderConfig:
    """Of two VAEs trained alike the one that is read better is drawn with: that of seed 1, 99.4%; seed 0 has 83.9%.

    The quantized one has its seed.
    """
    return AutoencoderConfig(sizes.autoencoder_steps * lessons.times, seed=int(name in ("vae0", _QUANTIZED)))


def _made(name: str, sizes: PartSizes, size: Size, lessons: Lessons, loop: Path, parts: Mapping[str, Part]) -> Part:
    """Makes a part out of those before it."""
    config, how, pictures = _base(name, size), _how(name, sizes, lessons), lessons.pictures
    if name == "vision":
        return Part(config, train_vision(sizes.understanding, loop, size, lessons.questions))
    if name == "vision-random":
        return Part(config, _random(config))
    if name in _VISION:
        encoder = parts[_VISION[name]].params
        return Part(*semantic_autoencoder(config, how, encoder, loop, sizes.measured, pictures))
    return Part(*autoencoder(config, how, loop, 0 if name == _QUANTIZED else sizes.measured, pictures))


def _random(config: Any) -> Params:
    pixels = np.zeros((1, config.image_size, config.image_size, 3), np.float32)
    return jax.jit(module(config, Compute()).init)(jax.random.key(_RANDOM), pixels)["params"]


def _ceiling(part: Part, renders: int, size: Size) -> Ceiling:
    drawn_by = {QuantizedCodec: "shared-discrete", VAEConfig: "decoupled", SemanticCodec: "shared-semantic"}
    arm = arms_of(size)[drawn_by[type(part.config)]]
    model = InternVLU(dataclasses.replace(arm.config, vae=part.config), tuple(range(NUM_SPECIAL_TOKENS)))
    measured = part.ceiling or ceiling(model, {"vae": part.params}, WORLDS["xs"], renders)
    return dataclasses.replace(measured, drawn=drawn_at_best(model, {"vae": part.params}, "xs", min(renders, CASES)))


def save(directory: Path, part: Part) -> None:
    """Writes part.npz, whole or not at all; a ceiling is not in it."""
    arrays: dict[str, Any] = {f"params/{path}": np.asarray(leaf) for path, leaf in paths(part.params).items()}
    arrays |= {name: np.asarray(getattr(part.config, name)) for name in _STATISTICS if hasattr(part.config, name)}
    with written_whole(directory / "part.npz") as path:
        np.savez(path, **arrays)


def load(name: str, directory: Path, size: Size = XS) -> Part:
    """The part that `save` wrote, with its ceiling if that was measured."""
    with np.load(directory / "part.npz") as file:
        arrays = dict(file)
    statistics = {key: tuple(arrays.pop(key).tolist()) for key in _STATISTICS if key in arrays}
    params = from_paths({path.removeprefix("params/"): leaf for path, leaf in arrays.items()})
    measured, scores = directory / "ceiling.json", None
    if measured.is_file():
        said = read_json(measured)
        scores = Ceiling(Score(**said["psnr"]), Score(**said["right"]), said.get("drawn", {}))
    return Part(dataclasses.replace(_base(name, size), **statistics), params, scores)


# What an arm makes of them


def codec_name(arm: Arm) -> str:
    """Of the part in whose space the arm generates."""
    if draws_codes(arm.config):
        return _QUANTIZED
    return {"trained": "vae0", "beforehand": "semantic", "random": "semantic-random"}[arm.vision]


def arm_start(arm: Arm, parts: Mapping[str, Part], seed: int) -> tuple[InternVLUConfig, Params]:
    """The arm's model before its run; seeds differ in all but what is frozen.

    Raises:
        ValueError: a part does not fit the arm.
    """
    codec = parts[codec_name(arm)]
    config = dataclasses.replace(arm.config, vae=codec.config)
    params = {**initial(arm.config, seed), "vae": codec.params}
    if arm.vision != "trained":
        params["vlm"] = {**params["vlm"], "vit": codec.params["encoder"]}
    twin = (parts["vae1"].config, parts["vae1"].params) if arm.twin else None
    config, params = with_frozen_parts(arm, config, params, twin)
    check_frozen_parts(arm, config, params)
    return config, params


@dataclass(frozen=True)
class Arguments:
    workdir: Path
    of: Literal["representations", "later", "transfer"] = "representations"
    """The studies that start from them: `USUAL_LESSONS`, `ALL_PICTURES`, `TRANSFER`."""
    smoke: bool = False
    """As little as runs every line, at size TINY, in place of what studies use."""


def main(arguments: Arguments) -> int:
    """Makes the parts, and prints the ceilings."""
    enable_cache()
    how = (SMOKE, TINY) if arguments.smoke else (PartSizes(), XS)
    lessons = {"representations": USUAL_LESSONS, "later": ALL_PICTURES, "transfer": TRANSFER}[arguments.of]
    for name, part in make_parts(arguments.workdir, *how, lessons=lessons).items():
        if part.ceiling is not None:
            best = ", ".join(f"{key} {value:.1%}" for key, value in part.ceiling.drawn.items())
            print(f"{name}: {part.ceiling.psnr.value:.2f} dB, {part.ceiling.right.value:.1%} right; at best {best}")
    return 0


if __name__ == "__main__":
    command(main, Arguments, "experiments.ablations.parts", __doc__)
