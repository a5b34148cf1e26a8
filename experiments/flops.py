"""Operations of what the pipeline runs beside the least it could run, part by part, at the released sizes.

    python -m experiments.flops --task t2i|edit|text --height H --width W [--json]

For one picture of 20 steps, or one answer of 256 tokens about one tile (whatever the size). Nothing is allocated: the
pipeline's own functions are traced on shapes (`experiments.traced`) and their jaxprs counted (`utils.flops`);
the minimum is worked out from the sizes (`experiments.costs`).
"""

from __future__ import annotations

import dataclasses
import sys
from json import dumps
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from experiments import costs, traced
from experiments.costs import Case
from internvlu_jax.config import InternVLUConfig

# Token counts of the Qwen3 tokenizer for the system texts of each mode and for the prompts of the released README: the
# fireworks (t2i), the Spring Festival portrait (edit), the amino acid (text). A user turn is the message, 8 tokens of
# chat marks and in pictures the final <img>; a tile is 256 + 2 marks. Dropped prompts are fixed texts.
CASES = {
    "t2i": Case("t2i", 0, 0, system=69, turns=(127, 17)),
    "edit": Case("edit", 0, 0, system=87, turns=(429, 276, 17), shared=262, tiles=1),
    "text": Case("text", 0, 0, system=37, turns=(277,), tiles=1, new_tokens=256),
}


def case_for(task: str, height: int, width: int) -> Case:
    """The case of a task at a size in pixels, which is cut to what the head can draw."""
    multiple = InternVLUConfig().generation_decoder.pixel_multiple
    if min(height, width) < multiple:
        raise ValueError(f"height {height} x width {width}; expected at least {multiple} pixels a side")
    return dataclasses.replace(CASES[task], height=height // multiple * multiple, width=width // multiple * multiple)


def report(task: str, height: int, width: int) -> dict[str, Any]:
    """`ran`, `minimum` and `ratio` of the whole, and the same of each part, in operations."""
    cfg, case = InternVLUConfig(), case_for(task, height, width)
    ran, least = traced.ran(cfg, case), costs.minimum(cfg, case)
    parts = {name: _compare(ran[name], least[name]) for name in least}
    return _compare(sum(ran.values()), sum(least.values())) | {"parts": parts}


def _compare(ran: int, minimum: int) -> dict[str, Any]:
    return {"ran": ran, "minimum": minimum, "ratio": ran / minimum}


def show(result: dict[str, Any], console: Console) -> None:
    """The report as a table, in TFLOP."""
    table = Table("part", "ran, TFLOP", "minimum, TFLOP", "ratio")
    for name, row in [*result["parts"].items(), ("all", result)]:
        table.add_row(name, f"{row['ran'] / 1e12:.3f}", f"{row['minimum'] / 1e12:.3f}", f"{row['ratio']:.3f}")
    console.print(table)


def main(
    task: Literal["t2i", "edit", "text"],
    height: int = 1024,
    width: int = 1024,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Counts one case.

    Args:
        task: text to image, editing of one source picture, or an answer about a picture.
        height: of the picture in pixels; an answer sees one tile whatever it is.
        width: of the picture in pixels.
        json: print one JSON object, in operations, in place of a table.
    """
    try:
        result = report(task, height, width)
    except ValueError as error:
        raise SystemExit(_complain(error)) from None
    if json:
        print(dumps(result))
    else:
        show(result, Console())


def _complain(error: ValueError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    tyro.cli(main)
