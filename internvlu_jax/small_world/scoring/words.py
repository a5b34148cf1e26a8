"""The verdict on the word in a picture, whatever else the picture shows."""

from __future__ import annotations

from internvlu_jax.small_world.scoring.geneval import RIGHT, Verdict
from internvlu_jax.small_world.scoring.reading import Reading
from internvlu_jax.small_world.tasks.specs import SceneSpec


def judge(spec: SceneSpec, reading: Reading) -> Verdict:
    """Whether the word is there, letter by letter and in its colour, no other is, and nothing is malformed.

    Objects beside the word, and the background, are `geneval.judge`'s.
    """
    texts = [word.text for word in reading.words]
    if reading.malformed:
        return Verdict(False, "malformed")
    if texts != [spec.word]:
        return Verdict(False, "text")
    if spec.word_colour not in (None, reading.words[0].colour):
        return Verdict(False, "colour")
    return RIGHT
