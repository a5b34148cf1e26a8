"""The report's pictures: paired differences in units of their margins, and losses against operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.ablations.results import Curve
from experiments.small_world.curves import ticks
from internvlu_jax.evaluation.scores import Score

_COLOURS = (
    (35, 80, 220), (215, 25, 40), (25, 150, 60), (225, 140, 0), (130, 60, 190), (0, 150, 170), (120, 120, 120),
    (200, 60, 150), (110, 90, 20), (20, 20, 20), (90, 170, 240),
)  # fmt: skip
_INK, _PALE, _GREY = (40, 40, 40), (228, 228, 228), (110, 110, 110)
_FONT = 15
_ROW, _LABEL, _AXIS, _SIDE = 30, 470, 520, 20  # pixels of the forest plot
_MOST_MARGINS = 6.0  # shown at most; an interval that goes on ends in an arrow
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1060, 400, 80, 300, 40, 50  # of one panel of curves


@dataclass(frozen=True)
class ForestRow:
    """One line of the forest plot.

    difference: in units of the margin, to the right where it is better than the reference.
    colour: number of a colour; rows of one arm share theirs.
    """

    label: str
    difference: Score
    colour: int


def forest(rows: Sequence[ForestRow], reference: str) -> Image.Image:
    """Differences with their intervals, the zone of equivalence shaded.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there are no differences to draw; expected at least one")
    reach = _reach([row.difference for row in rows])
    height = 60 + _ROW * len(rows) + 40
    canvas = Image.new("RGB", (_SIDE + _LABEL + _AXIS + _SIDE, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    bottom = height - 40

    def place(value: float) -> float:
        return _SIDE + _LABEL + (value + reach) / (2 * reach) * _AXIS

    draw.rectangle((place(-1), 50, place(1), bottom), (238, 243, 250))
    draw.line((place(0), 50, place(0), bottom), _GREY, 2)
    draw.text((place(0), 14), f"worse than {reference}  <  0  >  better", _INK, font, anchor="mt")
    for tick in range(-int(reach), int(reach) + 1):
        draw.line((place(tick), bottom, place(tick), bottom + 5), _GREY)
        draw.text((place(tick), bottom + 8), str(tick), _GREY, font, anchor="mt")
    draw.text((_SIDE, bottom + 8), "difference in margins, 95% t interval over seeds", _GREY, font)
    for n, row in enumerate(rows):
        y = 60 + _ROW * n + _ROW // 2
        draw.text((_SIDE, y), row.label, _INK, font, anchor="lm")
        _interval(draw, row, y, reach, [place(v) for v in _clipped(row.difference, reach)])
    return canvas


def _reach(scores: Sequence[Score]) -> float:
    """How far the axis goes, in whole margins: as far as the intervals, from two up to a limit."""
    ends = [abs(end) for score in scores for end in (score.value, score.low, score.high) if math.isfinite(end)]
    return min(max(math.ceil(max(ends, default=0.0)), 2.0), _MOST_MARGINS)


def _clipped(score: Score, reach: float) -> tuple[float, float, float]:
    low, value, high = (min(max(v, -reach), reach) for v in (score.low, score.value, score.high))
    return low, value, high


def _interval(draw: ImageDraw.ImageDraw, row: ForestRow, y: int, reach: float, ends: Sequence[float]) -> None:
    """The interval as a bar with a dot; an end or a dot that lies beyond the axis is an arrow at its edge."""
    low, value, high = ends
    colour, score = _colour(row.colour), row.difference
    draw.line((low, y, high, y), colour, 3)
    for x, end in ((low, score.low), (high, score.high)):
        if abs(end) > reach:
            way = math.copysign(1, end)
            draw.polygon(((x, y - 6), (x + 9 * way, y), (x, y + 6)), colour)
        else:
            draw.line((x, y - 5, x, y + 5), colour, 2)
    if abs(score.value) <= reach:
        draw.ellipse((value - 5, y - 5, value + 5, y + 5), colour)


def curves_figure(panels: Mapping[str, Mapping[str, Sequence[Curve]]]) -> Image.Image:
    """Losses against operations, both logarithmic: a panel for each loss, thin lines for seeds, a thick one for means.

    Args:
        panels: by loss, by arm, the curve of each seed; values and operations are above 0.

    Raises:
        ValueError: there is nothing to draw.
    """
    drawn = {name: arms for name, arms in panels.items() if any(map(len, arms.values()))}
    if not drawn:
        raise ValueError("there are no curves to draw; expected at least one")
    arms = list(dict.fromkeys(arm for panel in drawn.values() for arm in panel))
    colours = {arm: n for n, arm in enumerate(arms)}
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT * len(drawn)), "white")
    for n, (name, panel) in enumerate(drawn.items()):
        canvas.paste(_panel(name, panel, colours), (0, n * _HEIGHT))
    return canvas


def _panel(name: str, arms: Mapping[str, Sequence[Curve]], colours: Mapping[str, int]) -> Image.Image:
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    points = np.log10([point for seeds in arms.values() for curve in seeds for point in curve])
    (left, low), (right, high) = points.min(axis=0) - 0.02, points.max(axis=0) + 0.02
    bottom, end = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT

    def place(point: Sequence[float]) -> tuple[float, float]:
        x, y = np.log10(point)
        return _LEFT + (x - left) / (right - left) * (end - _LEFT), bottom - (y - low) / (high - low) * (bottom - _TOP)

    for value in ticks(low, high):
        _, y = place((1, value))
        draw.line((_LEFT, y, end, y), _PALE)
        draw.text((_LEFT - 8, y), f"{value:g}", _GREY, font, anchor="rm")
    for value in ticks(left, right):
        x, _ = place((value, 1))
        draw.line((x, _TOP, x, bottom), _PALE)
        draw.text((x, bottom + 6), f"{value:.0e}".replace("e+", "e"), _GREY, font, anchor="mt")
    draw.text((_LEFT, 14), name.replace("_", " "), _INK, font)
    draw.text((end, _HEIGHT - 20), "operations of training", _GREY, font, anchor="rm")
    for n, (arm, seeds) in enumerate((arm, seeds) for arm, seeds in arms.items() if seeds):
        colour = _colour(colours[arm])
        for curve in seeds:
            draw.line([place(point) for point in curve], tuple((c + 2 * 255) // 3 for c in colour), 1)
        draw.line([place(point) for point in _mean(seeds)], colour, 3)
        draw.text((end + 14, _TOP + 20 * n), f"{arm} ({len(seeds)})", colour, font)
    return canvas


def _mean(seeds: Sequence[Curve]) -> Curve:
    """The mean of the seeds as far as the shortest goes, at the operations of the first."""
    length = min(map(len, seeds))
    values = np.mean([[value for _, value in curve[:length]] for curve in seeds], axis=0)
    return tuple((seeds[0][n][0], float(values[n])) for n in range(length))


def _colour(number: int) -> tuple[int, int, int]:
    return _COLOURS[number % len(_COLOURS)]
