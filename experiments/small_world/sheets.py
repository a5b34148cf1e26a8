"""Contact sheets of the small world: pictures with their texts, one sheet for each domain.

   python -m experiments.small_world.sheets --out DIR [--world small] [--seed 0] [--side 128]

Writes world_<name>.png for each of `SHEETS`, of kinds of examples in turn. Texts that the font cannot show, those in
Chinese, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from experiments.command import command
from internvlu_jax.small_world import WorldSource
from internvlu_jax.small_world.scenes.scene import Drawable
from internvlu_jax.small_world.tasks.example import Example
from internvlu_jax.utils.failures import failed, one_line
from internvlu_jax.utils.files import check_writable, written_whole

SHEETS: Mapping[str, tuple[str, ...]] = {
    "general": ("general/picture", "general/question", "general/description"),
    "edits": ("general/edit", "text/edit"),
    "text": ("text/picture", "text/question"),
    "science": ("science/picture", "science/question"),
    "spatial": ("spatial/picture", "spatial/question", "spatial/edit"),
    "humour": ("humour/picture", "humour/question"),
    "reasoning": ("reasoning/picture", "reasoning/steps", "science/reasoning", "spatial/reasoning", "humour/reasoning"),
}
"""Tasks of each sheet."""

_EXAMPLES = 16  # of a sheet
_COLUMNS = 4
_GAP, _LINE, _FONT, _NARROWEST = 10, 14, 11, 186  # pixels


@dataclass(frozen=True)
class Arguments:
    out: Path
    """Directory of the sheets; made if it is not there."""
    world: str = "small"
    seed: int = 0
    side: int = 128
    """Pixels of each picture's side."""


def examples(world: str, tasks: tuple[str, ...], seed: int) -> list[Example]:
    """Examples for a sheet: the tasks in turn, of each one as many topics as there are."""
    streams = [_topics(world, task, seed + n) for n, task in enumerate(tasks)]
    return [next(streams[n % len(streams)]) for n in range(_EXAMPLES)]


def _topics(world: str, task: str, seed: int) -> Iterator[Example]:
    """Examples of a task, none of whose topics comes again before all others that are met soon have come."""
    source = WorldSource(world, {task: 1.0}, seed=seed)
    index, seen = 0, set[str]()
    while True:
        for _ in range(100):
            example = source.example(index)
            index += 1
            if example.topic not in seen and _texts(example).isascii():
                seen.add(example.topic)
                yield example
        seen.clear()


def _texts(example: Example) -> str:
    """All that is said, one paragraph each."""
    if example.task == "understanding":
        return f"Q: {example.prompt}\nA: {example.answer}"
    return "\n".join([example.prompt, *([example.reasoning] if example.reasoning else [])])


def sheet(shown: list[Example], side: int) -> Image.Image:
    """The examples in rows, each above its texts; an edit has both pictures side by side."""
    font = ImageFont.load_default(_FONT)
    width = max(_NARROWEST, *(len(_pictures(example)) * (side + _GAP) - _GAP for example in shown))
    rows = [shown[n : n + _COLUMNS] for n in range(0, len(shown), _COLUMNS)]
    texts = [[_wrapped(_texts(example), font, width) for example in row] for row in rows]
    heights = [side + 4 + _LINE * max(len(text) for text in row) + _GAP for row in texts]
    page = Image.new("RGB", (_COLUMNS * (width + _GAP) + _GAP, sum(heights) + _GAP), "white")
    draw, top = ImageDraw.Draw(page), _GAP
    for row, said, height in zip(rows, texts, heights, strict=True):
        for n, (example, lines) in enumerate(zip(row, said, strict=True)):
            left = _GAP + n * (width + _GAP)
            for m, drawable in enumerate(_pictures(example)):
                x = left + m * (side + _GAP)
                draw.rectangle((x - 1, top - 1, x + side, top + side), outline="#b0b0b0")
                page.paste(Image.fromarray(drawable.draw(side)), (x, top))
            for m, (line, colour) in enumerate(lines):
                draw.text((left, top + side + 4 + m * _LINE), line, colour, font)
        top += height
    return page


def _pictures(example: Example) -> list[Drawable]:
    return [drawable for drawable in (example.source, example.image) if drawable is not None]


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[tuple[str, str]]:
    """Lines that are no wider than so many pixels, with their colours: black for the first paragraph, blue after it."""
    lines = []
    for colour, paragraph in zip(("black", "#2050a0"), text.split("\n"), strict=False):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append((line, colour))
                longer = word
            line = longer
        lines.append((line, colour))
    return lines


def main(arguments: Arguments) -> int:
    """The command; returns its exit status."""
    try:
        _save(arguments)
    except (ValueError, OSError) as error:
        return failed("error", one_line(error), 2)
    return 0


def _save(arguments: Arguments) -> None:
    check_writable(arguments.out / "sheet.png")
    without = WorldSource(arguments.world).world.without
    for name, every in SHEETS.items():
        tasks = tuple(task for task in every if set(task.split("/")).isdisjoint(without))
        if not tasks:
            continue
        path = arguments.out / f"world_{name}.png"
        picture = sheet(examples(arguments.world, tasks, arguments.seed), arguments.side)
        with written_whole(path) as partial:
            picture.save(partial, optimize=True)
        print(f"{path}: {picture.width} x {picture.height} pixels, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    command(main, Arguments, "experiments.small_world.sheets", __doc__)
