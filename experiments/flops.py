"""Operations of what the pipeline runs beside the least it could run, part by part.

    python -m experiments.flops --task t2i|edit|text --height H --width W [--preset internvl-u-4b] [--json]

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
from internvlu_jax.presets import PRESETS

RELEASED = InternVLUConfig()

# Token counts of the Qwen3 tokenizer for the system texts of each mode and for the prompts of the released README: the
# fireworks (t2i), the Spring Festival portrait (edit), the amino acid (text). A user turn is the message, 8 tokens of
# chat marks, 2 marks for each tile and in pictures the final <img>; the visual tokens of a tile depend on the model and
# are added by `case_for`. Dropped prompts are fixed texts.
CASES = {
    "t2i": Case("t2i", 0, 0, system=69, turns=(127, 17)),
    "edit": Case("edit", 0, 0, system=87, turns=(173, 20, 17), shared=6, tiles=1),
    "text": Case("text", 0, 0, system=37, turns=(21,), tiles=1, new_tokens=256),
}


def case_for(task: str, height: int, width: int, cfg: InternVLUConfig = RELEASED) -> Case:
    """The case of a task for a model at a size in pixels, which is cut to what the head can draw.

    Raises ValueError if a side is shorter than one token of the head.
    """
    multiple = cfg.generation_decoder.pixel_multiple
    if min(height, width) < multiple:
        raise ValueError(f"height {height} x width {width}; expected at least {multiple} pixels a side")
    case = CASES[task]
    visual = case.tiles * cfg.vlm.tokens_per_tile
    shown = len(case.turns) if task == "text" else len(case.turns) - 1  # the fully dropped prompt shows no picture
    return dataclasses.replace(
        case,
        height=height // multiple * multiple,
        width=width // multiple * multiple,
        turns=tuple(length + visual for length in case.turns[:shown]) + case.turns[shown:],
        shared=case.shared + visual,
    )


def report(task: str, height: int, width: int, cfg: InternVLUConfig = RELEASED) -> dict[str, Any]:
    """`ran`, `minimum` and `ratio` of the whole, and the same of each part, in operations."""
    case = case_for(task, height, width, cfg)
    ran, least = traced.ran(cfg, case), costs.minimum(cfg, case)
    parts = {name: _compare(ran[name], least[name]) for name in least}
    return _compare(sum(ran.values()), sum(least.values())) | {"parts": parts}


def _compare(ran: int, minimum: int) -> dict[str, Any]:
    return {"ran": ran, "minimum": minimum, "ratio": ran / minimum}


def show(result: dict[str, Any], console: Console) -> None:
    """The report as a table, in TFLOP, or in MFLOP for small models."""
    unit, size = ("TFLOP", 1e12) if result["minimum"] > 1e12 else ("MFLOP", 1e6)
    table = Table("part", f"ran, {unit}", f"minimum, {unit}", "ratio")
    for name, row in [*result["parts"].items(), ("all", result)]:
        table.add_row(name, f"{row['ran'] / size:.3f}", f"{row['minimum'] / size:.3f}", f"{row['ratio']:.3f}")
    console.print(table)


def main(
    task: Literal["t2i", "edit", "text"],
    height: int = 1024,
    width: int = 1024,
    preset: Literal["internvl-u-4b", "debug", "small"] = "internvl-u-4b",
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Counts one case.

    Args:
        task: text to image, editing of one source picture, or an answer about a picture.
        height: of the picture in pixels; an answer sees one tile whatever it is.
        width: of the picture in pixels.
        preset: whose sizes; the prompts have the same number of tokens in all.
        json: print one JSON object, in operations, in place of a table.
    """
    try:
        result = report(task, height, width, PRESETS[preset]())
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
    tyro.cli(main, prog="python -m experiments.flops")
