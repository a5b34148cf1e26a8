"""The world's own letters: five columns and seven rows of cells, each letter reaching all four edges."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Bool

COLUMNS, ROWS = 5, 7

_DRAWN = """
A .###. #...# #...# ##### #...# #...# #...#
B ####. #...# #...# ####. #...# #...# ####.
C .#### #.... #.... #.... #.... #.... .####
D ###.. #..#. #...# #...# #...# #..#. ###..
E ##### #.... #.... ####. #.... #.... #####
F ##### #.... #.... ####. #.... #.... #....
G .#### #.... #.... #..## #...# #...# .####
H #...# #...# #...# ##### #...# #...# #...#
I ##### ..#.. ..#.. ..#.. ..#.. ..#.. #####
J ..### ...#. ...#. ...#. ...#. #..#. .##..
K #...# #..#. #.#.. ##... #.#.. #..#. #...#
L #.... #.... #.... #.... #.... #.... #####
M #...# ##.## #.#.# #.#.# #...# #...# #...#
N #...# ##..# ##..# #.#.# #..## #..## #...#
O .###. #...# #...# #...# #...# #...# .###.
P ####. #...# #...# ####. #.... #.... #....
Q .###. #...# #...# #...# #.#.# #..#. .##.#
R ####. #...# #...# ####. #.#.. #..#. #...#
S .#### #.... #.... .###. ....# ....# ####.
T ##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..
U #...# #...# #...# #...# #...# #...# .###.
V #...# #...# #...# #...# .#.#. .#.#. ..#..
W #...# #...# #...# #.#.# #.#.# ##.## #...#
X #...# #...# .#.#. ..#.. .#.#. #...# #...#
Y #...# #...# .#.#. ..#.. ..#.. ..#.. ..#..
Z ##### ....# ...#. ..#.. .#... #.... #####
0 ##### #...# #..## #.#.# ##..# #...# #####
1 ..#.. .##.. #.#.. ..#.. ..#.. ..#.. #####
2 .###. #...# ....# ..##. .#... #.... #####
3 ##### ....# ...#. ..##. ....# #...# .###.
4 ...#. ..##. .#.#. #..#. ##### ...#. ...#.
5 ##### #.... ####. ....# ....# #...# .###.
6 ..##. .#... #.... ####. #...# #...# .###.
7 ##### ....# ....# ...#. ..#.. ..#.. ..#..
8 .###. #...# .#.#. ..#.. .#.#. #...# .###.
9 .###. #...# #...# .#### ....# ...#. .##..
"""


_MARKS = """
! ..#.. ..#.. ..#.. ..#.. ..#.. ..... ..#..
? .###. #...# ....# ..##. ..#.. ..... ..#..
"""


def _glyphs(drawn: str) -> dict[str, Bool[np.ndarray, "7 5"]]:
    glyphs = {}
    for line in drawn.strip().split("\n"):
        name, *rows = line.split()
        glyphs[name] = np.array([[cell == "#" for cell in row] for row in rows])
    return glyphs


GLYPHS = _glyphs(_DRAWN)
"""Letters as cells, by name."""

LETTERS = "".join(GLYPHS)

_IN_LINES = {**GLYPHS, **_glyphs(_MARKS), " ": np.zeros((ROWS, COLUMNS), bool)}


def word_columns(letters: int) -> int:
    """Columns of cells that a word takes: one is left free between letters."""
    return (COLUMNS + 1) * letters - 1


@lru_cache(4096)
def word_cells(text: str) -> Bool[np.ndarray, "7 n"]:
    """The cells of a word.

    Raises:
        ValueError: a letter that is not A-Z or 0-9, or none.
    """
    if not text or any(letter not in GLYPHS for letter in text):
        raise ValueError(f"the word is {text!r}; expected letters out of {LETTERS}")
    return _row(text, GLYPHS)


@lru_cache(4096)
def line_cells(text: str) -> Bool[np.ndarray, "7 n"]:
    """The cells of a line of words and marks; a space is as wide as a letter.

    Raises:
        ValueError: something that is not A-Z, 0-9, !, ? or a space, or nothing.
    """
    if not text or any(letter not in _IN_LINES for letter in text):
        raise ValueError(f"the line is {text!r}; expected characters out of {''.join(_IN_LINES)!r}")
    return _row(text, _IN_LINES)


def _row(text: str, glyphs: Mapping[str, Bool[np.ndarray, "7 5"]]) -> Bool[np.ndarray, "7 n"]:
    gap = np.zeros((ROWS, 1), bool)
    parts = [part for letter in text for part in (glyphs[letter], gap)]
    return np.concatenate(parts[:-1], axis=1)
