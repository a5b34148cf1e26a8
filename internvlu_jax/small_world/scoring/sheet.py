"""Successes and failures of a set of cases as one picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from internvlu_jax.small_world.scoring.suite import Outcome
from internvlu_jax.utils.sheets import captioned

_COLUMNS = 8
_HEADING = 22  # pixels


def outcome_sheet(outcomes: Sequence[Outcome], most: int = 24) -> Image.Image:
    """At most so many cases that went right, and as many that went wrong, categories in turn."""
    blocks = []
    for right in (True, False):
        chosen = [outcome for outcome in outcomes if outcome.verdict.right == right]
        shown = _in_turn(chosen)[:most]
        heading = f"{'right' if right else 'wrong'}: {len(shown)} of {len(chosen)}"
        blocks.append(_headed(heading, [panel for outcome in shown for panel in outcome.panels]))
    width, height = max(block.width for block in blocks), sum(block.height for block in blocks)
    canvas = Image.new("RGB", (width, height), "white")
    for block, top in zip(blocks, (0, blocks[0].height), strict=True):
        canvas.paste(block, (0, top))
    return canvas


def _in_turn(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The first of each category, then the second of each, and so on."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.categories[0], []).append(outcome)
    return [outcome for turn in itertools.zip_longest(*groups.values()) for outcome in turn if outcome is not None]


def _headed(heading: str, panels: Sequence) -> Image.Image:
    if panels:
        pictures = [Image.fromarray(picture) for picture, _ in panels]
        body = captioned(pictures, [text for _, text in panels], _COLUMNS)
    else:
        body = Image.new("RGB", (200, 1), "white")
    canvas = Image.new("RGB", (body.width, body.height + _HEADING), "white")
    ImageDraw.Draw(canvas).text((4, 4), heading, (0, 0, 0), ImageFont.load_default(13))
    canvas.paste(body, (0, _HEADING))
    return canvas
