"""All four modes of the model in the box, one after the other: what it draws, reads, changes and thinks."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.utils.files import write_text
from internvlu_jax.utils.sheets import captioned, save_sheet

DRAWN = (
    "two red circles left of a blue square",
    "a large green star",
    "three yellow triangles",
    "a purple square above an orange circle on a light blue background",
)
EDITS = ("make the blue square green", "make the star smaller", "remove a triangle", "change the background to white")
"""One for each picture of `DRAWN`."""
QUESTIONS = ("How many circles are there?", "What colour is the star?", "How many objects are there?",
             "Is the square above the circle?")  # fmt: skip
"""One for each picture of `DRAWN`."""
REASONED = ("as many triangles as a square has corners", "a star in the colour of grass")


def run_demo(pipe: InternVLUPipeline, out: Path, seed: int) -> None:
    """Writes a picture for every prompt, the texts, and one sheet of them all to the directory `out`.

    Prompts of a mode go through the model together, so each mode compiles once.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("drawing", total=4)
        drawn = pipe(list(DRAWN), generation_mode="image", seed=seed).images or []
        progress.update(task, advance=1, description="answering")
        answers = pipe(list(QUESTIONS), image=drawn, max_new_tokens=24).text or []
        progress.update(task, advance=1, description="editing")
        edited = pipe(list(EDITS), image=drawn, generation_mode="image", seed=seed).images or []
        progress.update(task, advance=1, description="reasoning")
        reasoned = pipe(list(REASONED), generation_mode="text_image", max_new_tokens=96, seed=seed)
        progress.update(task, advance=1, description="done")
    thoughts = [text.strip() for text in reasoned.text or []]
    pictures = [*drawn, *edited, *(reasoned.images or [])]
    asked = [f"{q} {a}" for q, a in zip(QUESTIONS, answers, strict=True)]
    texts = [f"{prompt}. {line}" for prompt, line in zip(DRAWN, asked, strict=True)]
    texts += list(EDITS)
    texts += [f"{prompt}: {thought}" for prompt, thought in zip(REASONED, thoughts, strict=True)]
    _write(out, pictures, texts)


def _write(out: Path, pictures: list[Image.Image], texts: list[str]) -> None:
    for n, picture in enumerate(pictures):
        save_sheet(picture, out / f"{n:02d}.png")
    save_sheet(captioned(pictures, texts, columns=len(DRAWN)), out / "sheet.png")
    write_text(out / "texts.txt", "".join(f"{n:02d}.png  {t}\n" for n, t in enumerate(texts)))
    print(out / "sheet.png")
    for text in texts:
        print(f"  {text}")
