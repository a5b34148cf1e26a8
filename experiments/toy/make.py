"""The toy data: 8 pictures with captions, 8 edits of them, 8 questions. Small enough to be learned by heart in minutes.

python -m experiments.toy.make [DIRECTORY]      # rewrites the files beside this one, the same every time
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tyro
from PIL import Image, ImageDraw

SIDE, _FINE = 64, 4
COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 72),
    "blue": (38, 84, 214),
    "yellow": (244, 196, 48),
    "purple": (140, 60, 180),
    "orange": (244, 124, 32),
    "white": (250, 250, 250),
    "black": (24, 24, 24),
    "grey": (200, 204, 210),
    "pink": (250, 190, 210),
}
# (shape, its colour, background), then what an edit makes of it
SCENES = (
    (("circle", "red", "white"), ("circle", "blue", "white")),
    (("square", "blue", "white"), ("square", "green", "white")),
    (("triangle", "green", "grey"), ("triangle", "green", "yellow")),
    (("star", "yellow", "black"), ("star", "white", "black")),
    (("circle", "purple", "yellow"), ("square", "purple", "yellow")),
    (("square", "orange", "grey"), ("star", "orange", "grey")),
    (("triangle", "black", "pink"), ("triangle", "red", "pink")),
    (("star", "red", "blue"), ("star", "red", "green")),
)
EDITS = (
    "Make the circle blue.",
    "Make the square green.",
    "Make the background yellow.",
    "Make the star white.",
    "Turn the circle into a square.",
    "Turn the square into a star.",
    "Make the triangle red.",
    "Make the background green.",
)
# (number of the picture or None, question, answer)
QUESTIONS = (
    (0, "What shape is this?", "A circle."),
    (1, "What colour is the square?", "Blue."),
    (2, "Is there a triangle?", "Yes."),
    (3, "What colour is the background?", "Black."),
    (4, "Is there a star?", "No."),
    (5, "How many squares are there?", "One."),
    (6, "Describe the picture.", "A black triangle on pink."),
    (None, "What is two plus three?", "Five."),
)
REASONING = {5: "A square has four equal sides; orange lies between red and yellow.", 7: "A star has five points."}


def draw(scene: tuple[str, str, str]) -> Image.Image:
    """One shape in the middle, anti-aliased by drawing it four times as large."""
    shape, colour, ground = scene
    side = SIDE * _FINE
    canvas = Image.new("RGB", (side, side), COLOURS[ground])
    pen, fill = ImageDraw.Draw(canvas), COLOURS[colour]
    low, high, middle = side // 4, side - side // 4, side // 2
    if shape == "circle":
        pen.ellipse((low, low, high, high), fill)
    elif shape == "square":
        pen.rectangle((low, low, high, high), fill)
    elif shape == "triangle":
        pen.polygon([(middle, low), (high, high), (low, high)], fill)
    else:
        pen.polygon(_star(middle, middle - low + 2 * _FINE), fill)
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX)


def _star(centre: int, radius: float) -> list[tuple[float, float]]:
    """Ten corners: five on the circle, five at 0.4 of its radius. Sines and cosines as constants, so that the files are
    the same on every machine."""
    cosines = (1.0, 0.8090169943749475, 0.3090169943749474, -0.30901699437494745, -0.8090169943749473)
    sines = (0.0, 0.5877852522924731, 0.9510565162951535, 0.9510565162951536, 0.5877852522924732)
    turns = [(s, -c) for s, c in zip(sines, cosines, strict=True)]
    turns += [(-x, -y) for x, y in turns]
    return [
        (centre + x * radius * (1.0, 0.4)[n % 2], centre + y * radius * (1.0, 0.4)[n % 2])
        for n, (x, y) in enumerate(turns)
    ]


def caption(scene: tuple[str, str, str]) -> str:
    shape, colour, ground = scene
    return f"{'An' if colour[0] in 'aeiou' else 'A'} {colour} {shape} on {ground}."


def records() -> dict[str, list[dict[str, Any]]]:
    """The JSON objects of each file."""
    drawn = [
        {"task": "t2i", "prompt": caption(before), "image": f"pictures/{n}.png"} for n, (before, _) in enumerate(SCENES)
    ]
    for n, words in REASONING.items():
        drawn[n]["reasoning"] = words
    edited = [
        {"task": "edit", "prompt": text, "source": [f"pictures/{n}.png"], "image": f"pictures/{n}-edited.png"}
        for n, text in enumerate(EDITS)
    ]
    asked = [
        ({} if number is None else {"image": f"pictures/{number}.png"})
        | {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
        for number, question, answer in QUESTIONS
    ]
    return {"t2i": drawn, "edit": edited, "questions": asked}


def make(directory: tyro.conf.Positional[Path] = Path(__file__).parent) -> None:
    """Writes the three files and the pictures into a folder, by default beside this file."""
    (directory / "pictures").mkdir(parents=True, exist_ok=True)
    for n, (before, after) in enumerate(SCENES):
        draw(before).save(directory / f"pictures/{n}.png", optimize=True)
        draw(after).save(directory / f"pictures/{n}-edited.png", optimize=True)
    for name, own in records().items():
        lines = "".join(json.dumps(record) + "\n" for record in own)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(make)
