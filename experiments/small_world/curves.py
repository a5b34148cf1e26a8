"""Learning curves of a small-world run, as numbers and as a figure.

    python -m experiments.small_world.curves WORKDIR --out DIR

DIR/curves.json has, for each part of the run, means over equal spans of steps: the last step of the span, the losses,
the norm of the gradient. DIR/curves.png draws the losses on a logarithmic scale, the parts one after the other.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

from experiments.command import command
from experiments.small_world.recipe import PARTS
from internvlu_jax.utils.files import write_text
from internvlu_jax.utils.sheets import save_sheet

Curve = list[dict[str, float]]
_SPANS = 60  # of each part
_KEYS = ("flow_loss", "text_loss", "context_error", "grad_norm")
_COLOURS = {"flow_loss": (35, 80, 220), "text_loss": (215, 25, 40), "context_error": (25, 150, 60)}
_WIDTH, _HEIGHT, _MARGIN = 900, 360, 48


@dataclass(frozen=True)
class Arguments:
    workdir: Annotated[Path, tyro.conf.Positional]
    out: Path = Path("experiments/results/small_world")


def curve(path: Path) -> Curve:
    """Means over spans of a run's metrics; a loss that is 0 throughout a span is one that the part does not have."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    spans = np.array_split(np.arange(len(rows)), min(_SPANS, len(rows)))
    points: Curve = []
    for span in spans:
        point: dict[str, float] = {"step": rows[span[-1]]["step"]}
        for key in _KEYS:
            # A step of one kind of batch has no loss of the other kind.
            values = [rows[n][key] for n in span if rows[n].get(key)]
            if values:
                point[key] = float(f"{np.mean(values):.5g}")
        points.append(point)
    return points


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten."""
    every = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high)) for digit in (1, 2, 5)]
    return [value for value in every if low <= math.log10(value) <= high]


def figure(curves: dict[str, Curve]) -> Image.Image:
    """The losses over the steps of all parts."""
    values = [point[key] for points in curves.values() for point in points for key in _COLOURS if key in point]
    low, high = math.log10(min(values) * 0.9), math.log10(max(values) * 1.1)
    total = sum(points[-1]["step"] for points in curves.values())
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)

    def place(step: float, value: float) -> tuple[float, float]:
        x = _MARGIN + step / total * (_WIDTH - 2 * _MARGIN)
        return x, _HEIGHT - _MARGIN - (math.log10(value) - low) / (high - low) * (_HEIGHT - 2 * _MARGIN)

    for value in ticks(low, high):
        left, y = place(0, value)
        draw.line((left, y, _WIDTH - _MARGIN, y), (225, 225, 225))
        draw.text((4, y - 7), f"{value:g}", (90, 90, 90), font)
    before = 0.0
    for n, (name, points) in enumerate(curves.items()):
        x = place(before, 10.0**low)[0]
        draw.line((x, _MARGIN, x, _HEIGHT - _MARGIN), (180, 180, 180))
        below = _HEIGHT - _MARGIN + 4 + n % 3 * 14  # short parts have their names one below the other
        draw.text((x + 3, below), f"{name}: {points[-1]['step']:,.0f}", (60, 60, 60), font)
        for key, colour in _COLOURS.items():
            line = [place(before + point["step"], point[key]) for point in points if key in point]
            if len(line) > 1:
                draw.line(line, colour, 2)
        before += points[-1]["step"]
    for n, (key, colour) in enumerate(_COLOURS.items()):
        draw.text((_MARGIN + 120 * n, 16), key.replace("_", " "), colour, font)
    return canvas


def main(arguments: Arguments) -> int:
    names = [part.name for part in PARTS]
    paths = {name: arguments.workdir / name / "metrics.jsonl" for name in names}
    curves = {name: curve(path) for name, path in paths.items() if path.is_file() and path.stat().st_size}
    if not curves:
        raise SystemExit(
            f"{arguments.workdir}: no metrics.jsonl in any of {', '.join(names)}; is it a run's directory?"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = [
        f'  "{name}": [\n    ' + ",\n    ".join(map(json.dumps, points)) + "\n  ]" for name, points in curves.items()
    ]
    write_text(arguments.out / "curves.json", "{\n" + ",\n".join(lines) + "\n}\n")
    save_sheet(figure(curves), arguments.out / "curves.png")
    print(arguments.out / "curves.png")
    return 0


if __name__ == "__main__":
    command(main, Arguments, "experiments.small_world.curves", __doc__)
