"""How questions are put, and into how many tiles pictures are cut: what InternVL uses in VLMEvalKit, set by set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from internvlu_jax.processing.chat import IMAGE_MARK

SINGLE_WORD = "Answer the question using a single word or phrase."
MAX_TILES = 64
"""Of all pictures of a prompt together."""
_TILES = {"OCRBench": 24, "InfoVQA": 24, "DocVQA": 18, "MMMU": 12, "ChartQA": 12}
_BARE = ("MathVista", "MMVet")
_CHINESE = ("\u4e00", "\u9fff")


def tiles(data_set: str | None, pictures: int) -> int:
    """Most tiles of each picture of a prompt. data_set: its name, whatever stands around it ("MMMU_DEV_VAL")."""
    named = [most for name, most in _TILES.items() if name.lower() in (data_set or "").lower()]
    return max(1, min(named[0] if named else 6, MAX_TILES // max(pictures, 1)))


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture at twice its sides, bilinear, as the first of each question of MMMU is seen."""
    return picture.convert("RGB").resize((2 * picture.width, 2 * picture.height), Image.Resampling.BILINEAR)


def question(data_set: str | None, text: str) -> str:
    """A question without options: MathVista and MMVet as they are, others with the wish for a single word."""
    if any(name.lower() in (data_set or "").lower() for name in _BARE):
        return text
    return f"{text}\n{SINGLE_WORD}"


def yes_or_no(text: str) -> str:
    """A question of MME, which says itself what may be answered."""
    return f"{text} {SINGLE_WORD}"


def multiple_choice(text: str, options: Mapping[str, str], hint: str | None = None) -> str:
    """The hint, the question, the options as "A. ..." lines, and how to answer, in Chinese where any of it is Chinese.

    Args:
        options: by letter; none for a question that is to be answered freely.
    """
    lines = [*([hint] if hint else []), text, *(f"{letter}. {option}" for letter, option in options.items())]
    whole = "\n".join(lines)
    chinese = any(_CHINESE[0] <= letter <= _CHINESE[1] for letter in whole)
    if options:
        wish = "请直接回答选项字母。" if chinese else "Answer with the option's letter from the given choices directly."
    else:
        wish = "请直接回答问题。" if chinese else "Answer the question directly."
    return f"{whole}\n{wish}"


def with_pictures(text: str, pictures: int) -> str:
    """The prompt with its pictures in front: one as a mark on a line of its own, several as "Image-1: " and so on."""
    if pictures == 1:
        return f"{IMAGE_MARK}\n{text}"
    return "".join(f"Image-{number}: {IMAGE_MARK}\n" for number in range(1, pictures + 1)) + text


def interleaved(parts: Sequence[str | None]) -> str:
    """The prompt of texts among pictures (None): pictures are put in front, and where there are several among texts,
    `<Image-1>` and so on stands where each was. Nothing stands where they all were in one place."""
    pictures = sum(part is None for part in parts)
    texts = [part for part in parts if part is not None]
    if pictures == 1:
        return with_pictures("\n".join(texts), 1)
    places = [f"<Image-{number}>" for number in range(1, pictures + 1)]
    numbered = iter(places)
    whole = "".join(next(numbered) if part is None else part for part in parts)
    return with_pictures(whole.replace("".join(places), "") if places else whole, pictures)
