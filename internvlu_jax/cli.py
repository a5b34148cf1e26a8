"""The shell command `internvlu-jax`: one subcommand a mode, `demo`, and those on checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from internvlu_jax.checkpoints.commands import Adapters, Convert, Info, Push
from internvlu_jax.config import Attention, Noise, Quantization
from internvlu_jax.serving.limits import Limits
from internvlu_jax.utils.failures import check_accelerator, failed, nobody_reads, one_line, out_of_memory, say
from internvlu_jax.utils.progress import status
from internvlu_jax.utils.signals import interrupts_unwrapped

if TYPE_CHECKING:
    from PIL.Image import Image

    from internvlu_jax.inference.pipeline import InternVLUPipeline, PipelineOutput

Prompt = Annotated[str, tyro.conf.Positional]
Images = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE ...")]


@dataclass(frozen=True)
class Model:
    """Which weights, and how they run."""

    checkpoint: str | None = None
    """A directory (released layout, written by `convert`, or of a training run), or a Hub id such as
    InternVL-U/InternVL-U. Default, and `built-in`: the small model in the box, which knows coloured shapes and short
    words."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Default: float32 on a CPU, bfloat16 on an accelerator."""
    time: Literal["float32", "bfloat16"] | None = None
    """What the head's time is rounded to; the released weights were trained with bfloat16. Default: what a run trained
    with, else the dtype."""
    attention: Attention = "auto"
    devices: str | None = None
    """That share the work: all, pmap, or sizes of a mesh such as data=4,tensor=2. Default: one device."""
    quantize: Quantization | None = None
    """8-bit weights: int8, or int8xint8 and fp8 with 8-bit activations. Default: as they are."""
    adapter: Adapters = ()
    """LoRA in PEFT's layout (a directory or a Hub id), or a run that trained one, each with the scale it works with."""

    def load(self) -> InternVLUPipeline:
        from internvlu_jax.checkpoints.adapters import with_scale
        from internvlu_jax.inference.pipeline import InternVLUPipeline

        check_accelerator()
        with status(f"loading {self.checkpoint or 'the model in the box'}"):
            pipe = InternVLUPipeline.from_pretrained(
                self.checkpoint,
                dtype=self.dtype,
                time=self.time,
                attention=self.attention,
                devices=self.devices,
                quantize=self.quantize,
            )
            # Steps of several runs may end alike, so the names have numbers.
            for number, (path, scale) in enumerate(map(with_scale, self.adapter), 1):
                pipe.load_lora_weights(path, f"{number}: {path}", scale=scale)
        return pipe


@dataclass(frozen=True)
class Writing:
    """How text is written."""

    max_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = 50
    repetition_penalty: float = 1.0
    num_beams: int = 1
    stop_strings: tuple[str, ...] = ()
    """End a text, too."""


@dataclass(frozen=True)
class Drawing:
    """How a picture is drawn."""

    height: int | None = None
    """Pixels. Default: the checkpoint's; for `edit`, the source picture's where the checkpoint allows it."""
    width: int | None = None
    steps: int = 20
    guidance: float | None = None
    """Weight of the whole condition (all_cfg_scale)."""
    image_guidance: float | None = None
    """Weight of the source pictures alone (part_cfg_scale)."""
    num_images: int = 1
    """With the seeds that follow each other from `seed` on."""
    seed: int | None = None
    """Of the starting noise, and of sampled text. Default: a new one, which is shown, and kept in a PNG."""
    noise: Noise = "torch-cpu"
    """Whose numbers the seed stands for: PyTorch's on a CPU or on CUDA, or those of JAX's keys."""
    out: Path | None = None
    """Where the picture goes, overwriting. Default: the first free name of out.png, out-1.png, ..."""
    like: Path | None = None
    """A PNG that was drawn here: its prompt, sources, model, seed and settings hold where nothing else is said."""


@dataclass(frozen=True)
class Text:
    """Answer a question, about pictures or not.

    Example: internvlu-jax text "How many circles are there?" --image a.png
    """

    prompt: Prompt
    image: Images = ()
    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    writing: tyro.conf.OmitArgPrefixes[Writing] = Writing()
    max_tiles: int = 1
    """Cut large pictures into up to this many tiles."""
    seed: int | None = None
    """Of sampled text. Default: a new one, which is shown."""

    def run(self) -> None:
        images = _load_images(self.image)
        pipe = self.model.load()
        out = _written(
            pipe, self.prompt, image=_one_entry(images), generation_mode="text", seed=self.seed,
            max_tiles=self.max_tiles, **vars(self.writing),
        )  # fmt: skip
        if self.writing.do_sample:
            print(f"seed {out.seed}", file=sys.stderr)


@dataclass(frozen=True)
class Draw:
    """Draw a picture from a description.

    Example: internvlu-jax image "two red circles left of a blue square" --seed 3 --out a.png
    """

    prompt: Prompt
    image: Images = ()
    """Source pictures; with any, this is `edit`."""
    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    drawing: tyro.conf.OmitArgPrefixes[Drawing] = Drawing()

    def run(self) -> None:
        _draw(self.model, self.drawing, self.prompt, self.image, "image")


@dataclass(frozen=True)
class Edit:
    """Change one picture, or draw from several.

    Example: internvlu-jax edit "make the blue square green" --image a.png --out b.png
    """

    prompt: Prompt
    image: Images
    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    drawing: tyro.conf.OmitArgPrefixes[Drawing] = Drawing()

    def run(self) -> None:
        if not self.image:
            raise ValueError("edit needs a picture; expected --image FILE")
        _draw(self.model, self.drawing, self.prompt, self.image, "image")


@dataclass(frozen=True)
class TextImage:
    """Reason in words first, then draw or edit.

    Example: internvlu-jax text-image "as many triangles as a square has corners" --out c.png
    """

    prompt: Prompt
    image: Images = ()
    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    drawing: tyro.conf.OmitArgPrefixes[Drawing] = Drawing()
    writing: tyro.conf.OmitArgPrefixes[Writing] = Writing()

    def run(self) -> None:
        _draw(self.model, self.drawing, self.prompt, self.image, "text_image", **vars(self.writing))


@dataclass(frozen=True)
class Demo:
    """All four modes with the model in the box: pictures, texts and one sheet of them.

    Example: internvlu-jax demo --seed 3
    """

    out: Path = Path("demo")
    """A directory; files of the same names are overwritten."""
    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    seed: int = 0

    def run(self) -> None:
        from internvlu_jax.demo import run_demo
        from internvlu_jax.utils.out_names import check_directory

        check_directory(self.out)
        run_demo(self.model.load(), self.out, self.seed)


@dataclass(frozen=True)
class Serve:
    """A page, and endpoints as OpenAI has them, on this machine or for others; see internvlu_jax/serving/README.md.

    Example: internvlu-jax serve --port 8000
    """

    model: tyro.conf.OmitArgPrefixes[Model] = Model()
    host: str = "127.0.0.1"
    """An address to listen at. One that others reach needs a token in INTERNVLU_API_KEY."""
    port: int = 8000
    limits: tyro.conf.OmitArgPrefixes[Limits] = Limits()

    def run(self) -> None:
        from internvlu_jax.serving.server import check_address, serve

        self.limits.check()
        key, local = check_address(self.host, self.port)
        serve(self.model.load(), self.host, self.port, self.limits, key, local)


_NAME = "internvlu-jax"
_DESCRIPTION = "InternVL-U on JAX. --version prints which; --tyro-print-completion bash|zsh a script for completion."
COMMANDS: dict[str, Callable] = {
    "text": Text,
    "image": Draw,
    "edit": Edit,
    "text-image": TextImage,
    "demo": Demo,
    "serve": Serve,
    "info": Info,
    "convert": Convert,
    "push": Push,
}
# The mode of each command that draws, what of its model changes pictures, and what of its drawing does not.
_DRAWN = {"image": "image", "edit": "image", "text-image": "text_image"}
_KEPT_OF_MODEL = ("checkpoint", "dtype", "time", "quantize", "adapter")
_NOT_KEPT = ("out", "like")


def main(args: list[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    What a user can foresee is one line on standard error: a mistake with status 2, a lack of memory with 1, and Ctrl-C
    with 130.
    """
    args = sys.argv[1:] if args is None else args
    if args == ["--version"]:
        print(f"{_NAME} {version(_NAME)}")
        return 0
    try:
        with interrupts_unwrapped():
            _command(args).run()
    except BrokenPipeError:
        return nobody_reads()
    except (ValueError, OSError) as error:
        return failed(_NAME, one_line(error), 2)
    except (RuntimeError, MemoryError) as error:
        return failed(_NAME, out_of_memory(error), 1)
    except KeyboardInterrupt:
        return failed(_NAME, "interrupted", 130)
    return 0


def _command(args: list[str]) -> Any:
    """What was asked for; with `--like` the settings of that picture are the defaults."""
    given = [following for flag, following in itertools.pairwise(args) if flag == "--like"]
    given += [flag.removeprefix("--like=") for flag in args if flag.startswith("--like=")]
    if given and args[0] in _DRAWN:
        prog = f"{_NAME} {args[0]}"
        others = any(flag.partition("=")[0] == "--image" for flag in args)
        default = _repeated(Path(given[-1]), args[0], others)
        return tyro.cli(COMMANDS[args[0]], prog=prog, args=args[1:], default=default)
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog=_NAME, description=_DESCRIPTION, args=args)


def _repeated(path: Path, name: str, other_sources: bool) -> Any:
    """The command `name` with the settings of a picture, checked as those of a command line.

    other_sources: whether the command line gives pictures in place of its sources.
    """
    from internvlu_jax.utils.picture_settings import found_sources, read_settings

    settings = read_settings(path)
    named, sums = settings.pop("image", []), settings.pop("image_crc32", None)
    settings["image"] = [] if other_sources else found_sources(path, named, sums)
    mode, prompt = settings.pop("mode", None), settings.pop("prompt", None)
    if mode != _DRAWN[name]:
        right = next((command for command, drawn in _DRAWN.items() if drawn == mode), None)
        raise ValueError(f"{path} was not drawn by {name}" + (f"; use {right}" if right else ""))
    parts: tuple[Any, ...] = (Drawing, Writing) if mode == "text_image" else (Drawing,)
    known = {f.name: f.default for part in parts for f in dataclasses.fields(part) if f.name not in _NOT_KEPT}
    known |= {"image": [], **dict.fromkeys(_KEPT_OF_MODEL)}
    arguments = []
    for setting, value in settings.items():
        flag = setting.replace("_", "-")
        if setting not in known:
            raise ValueError(f"{path}: unknown setting {setting!r}; was it drawn by another version?")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif value not in (known[setting], []):
            arguments += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    try:
        # As `image` where the mode is that: `edit` would need sources before the command line may give them.
        drawn = tyro.cli(TextImage if mode == "text_image" else Draw, args=["-", *arguments], console_outputs=False)
    except SystemExit as error:
        raise ValueError(f"{path}: its settings cannot be used: {settings}") from error
    if not isinstance(prompt, str):
        raise ValueError(f"{path}: its prompt is {prompt!r}; expected a string")
    return COMMANDS[name](**{**vars(drawn), "prompt": prompt})


def _draw(model: Model, drawing: Drawing, prompt: str, files: tuple[Path, ...], mode: str, **writing: Any) -> None:
    from internvlu_jax.utils.files import written_whole
    from internvlu_jax.utils.out_names import check_pictures, names
    from internvlu_jax.utils.picture_settings import with_settings
    from internvlu_jax.utils.seeds import LARGEST_SEED, any_seed, check_seed

    images = _load_images(files)
    check_pictures(drawing.out, drawing.num_images)
    seed = any_seed() if drawing.seed is None else drawing.seed
    check_seed(seed)
    seeds = [(seed + n) % (LARGEST_SEED + 1) for n in range(drawing.num_images)]
    pipe = model.load()
    out = _written(
        pipe, prompt, image=_one_entry(images), generation_mode=mode, height=drawing.height, width=drawing.width,
        num_inference_steps=drawing.steps, all_cfg_scale=drawing.guidance, part_cfg_scale=drawing.image_guidance,
        num_images_per_prompt=drawing.num_images, seed=seeds, noise=drawing.noise, progress=True, **writing,
    )  # fmt: skip
    kept = {
        "mode": mode, "prompt": prompt, "image": [str(file) for file in files],
        "image_crc32": [zlib.crc32(file.read_bytes()) for file in files],
        **{name: getattr(model, name) for name in _KEPT_OF_MODEL}, **writing,
        **{name: value for name, value in vars(drawing).items() if name not in _NOT_KEPT},
    }  # fmt: skip
    saved = list(zip(seeds, out.images or [], itertools.islice(names(drawing.out), drawing.num_images), strict=True))
    for own, picture, path in saved:
        # A picture is repeated alone, but where it needs the text that was written with the first seed.
        repeat = (seed, drawing.num_images) if writing.get("do_sample") else (own, 1)
        settings = {**kept, "seed": repeat[0], "num_images": repeat[1]}
        extra: dict[str, Any] = {"pnginfo": with_settings(settings)} if path.suffix.lower() == ".png" else {}
        with written_whole(path) as partial:
            picture.save(partial, **extra)
    for own, _, path in saved:  # once all are there, for nobody may be left to read it
        say(str(path))
        print(f"{path}: seed {own}", file=sys.stderr)


def _load_images(files: tuple[Path, ...]) -> list[Image]:
    from internvlu_jax.processing.images import load_image

    return [load_image(path) for path in files]


def _one_entry(images: list[Image]) -> list[list[Image]] | None:
    return [images] if images else None


def _written(pipe: InternVLUPipeline, prompt: str, **options: Any) -> PipelineOutput:
    """A call whose text, if any, is printed: on a terminal as it is written, but not with beams."""
    if not sys.stdout.isatty() or options.get("num_beams") != 1:
        with nullcontext() if "progress" in options else status("answering"):
            out = pipe(prompt, **options)
        if out.text is not None:
            say(out.text[0])
        return out
    stream = pipe.stream(prompt, **options)
    with status("answering"):
        first = next(stream, "")
    for piece in itertools.chain([first], stream):
        say(piece, end="")
    print()
    return stream.result()


if __name__ == "__main__":
    sys.exit(main())
