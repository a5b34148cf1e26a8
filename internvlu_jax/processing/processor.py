"""Prompts and pictures to the arrays that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from internvlu_jax.config import ProcessorConfig
from internvlu_jax.processing import chat
from internvlu_jax.processing.images import as_picture, generation_pixels, to_rgb, vision_tiles
from internvlu_jax.processing.tokenizer import Tokenizer

TokenIds = Int32[np.ndarray, "_"]


@dataclass(frozen=True)
class ProcessedPrompt:
    """What one prompt and its pictures become. Rows are not padded.

    cond: token ids of the whole prompt.
    text_dropped, uncond: ids of the two dropped prompts for guidance; None in text mode, and `text_dropped` is None for
        a prompt without pictures, too.
    tiles: 8-bit pixels for the vision encoder, all tiles of all pictures in the order of their visual tokens. Both
        `cond` and `text_dropped` hold these visual tokens; `uncond` has none.
    sources: 8-bit pixels for the VAE, one array per picture, each of its own size; empty in text mode.
    size: (height, width) of the first picture, upright, as it was given; None without one.
    """

    cond: TokenIds
    text_dropped: TokenIds | None
    uncond: TokenIds | None
    tiles: UInt8[np.ndarray, "n y x 3"]
    sources: tuple[UInt8[np.ndarray, "_ _ 3"], ...]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Processor:
    """Tokenises prompts and cuts pictures."""

    cfg: ProcessorConfig
    tokenizer: Tokenizer

    @classmethod
    def from_pretrained(cls, directory: str | Path, cfg: ProcessorConfig) -> Processor:
        """Reads the tokenizer from `processor/` of a checkpoint in the released layout.

        Raises:
            ValueError: see `Tokenizer.from_directory`.
        """
        return cls(cfg, Tokenizer.from_directory(Path(directory) / "processor"))

    def process(
        self,
        prompts: Any,
        images: Any = None,
        mode: str = "text",
        *,
        system_prompt: str | None = None,
        max_tiles: int = 1,
        negative_prompt: Any = None,
    ) -> list[ProcessedPrompt]:
        """One `ProcessedPrompt` for each prompt.

        Args:
            prompts: a string or a list of strings.
            images: None, a picture (for a single prompt), or a list with one entry per prompt: a picture, a list of
                pictures, or None. A picture is a PIL one, the name of a file, or an array (`images.as_picture`).
            mode: "text", "image", or "text_image"; in the last no row ends in `<img>` yet, for text comes first.
            system_prompt: replaces the system text of every prompt and of its dropped rows.
            max_tiles: most tiles a picture is cut into for the vision encoder, the added thumbnail not counted.
            negative_prompt: a string for all prompts or a list with one each; stands in the dropped rows in place of
                what they say. None and "" leave it.

        Raises:
            ValueError: anything in these arguments that cannot be used; names the prompt where there are several.
        """
        if mode not in chat.MODES:
            raise ValueError(f"unknown generation mode {mode!r}; expected one of {', '.join(chat.MODES)}")
        if not isinstance(max_tiles, int) or max_tiles < 1:
            raise ValueError(f"max_tiles is {max_tiles!r}; expected an integer of at least 1")
        if system_prompt is not None:
            chat.check_system_text(system_prompt)
        texts = _list_prompts(prompts)
        pictures = _list_images(images, len(texts))
        negatives = _list_negatives(negative_prompt, len(texts))
        processed = []
        for i, (text, own, negative) in enumerate(zip(texts, pictures, negatives, strict=True)):
            try:
                processed.append(self._one(text, own, mode, system_prompt, max_tiles, negative))
            except ValueError as error:
                if len(texts) == 1:
                    raise
                raise ValueError(f"prompt {i}: {error}") from error
        return processed

    def _one(
        self, text: str, images: Sequence[Any], mode: str, system_prompt: str | None, max_tiles: int, negative: str
    ) -> ProcessedPrompt:
        message = chat.user_message(text, len(images))
        system = chat.system_text(mode, bool(images)) if system_prompt is None else system_prompt
        pictures = [to_rgb(as_picture(image)) for image in images]
        tiles = [vision_tiles(picture, self.cfg.image_processor_kwargs, max_tiles) for picture in pictures]
        tokens = [len(t) * self.cfg.image_seq_length for t in tiles]

        def row(content: str, visual: Sequence[int]) -> np.ndarray:
            rendered = chat.render(system, chat.expand_images(content, visual), final_img=mode == "image")
            return np.array(self.tokenizer.encode(rendered), np.int32)

        text_dropped = uncond = None
        sources: tuple[np.ndarray, ...] = ()
        if mode != "text":
            uncond = row(chat.user_message(negative, 0) or chat.UNCOND, ())
            text_dropped = row(chat.text_dropped_message(len(images), negative), tokens) if images else None
            sources = tuple(generation_pixels(picture, self.cfg.image_gen_processor_kwargs) for picture in pictures)
        size = self.cfg.image_processor_kwargs.size
        no_tiles = np.zeros((0, size.height, size.width, 3), np.uint8)
        return ProcessedPrompt(
            cond=row(message, tokens),
            text_dropped=text_dropped,
            uncond=uncond,
            tiles=np.concatenate([no_tiles, *tiles]),
            sources=sources,
            size=pictures[0].shape[:2] if pictures else None,
        )


def _list_prompts(prompts: Any) -> list[str]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise ValueError(f"the prompt is a {type(prompts).__name__}; expected a string or a list of strings")
    if not prompts:
        raise ValueError("the list of prompts is empty; give at least one")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {i} is a {type(prompt).__name__}; expected a string")
    return list(prompts)


def _list_negatives(negative: Any, prompts: int) -> list[str]:
    if negative is None or isinstance(negative, str):
        return [negative or ""] * prompts
    if not (isinstance(negative, list | tuple) and all(isinstance(text, str) for text in negative)):
        raise ValueError(f"negative_prompt is {negative!r}; expected a string, a list of strings, or None")
    if len(negative) != prompts:
        raise ValueError(f"negative_prompt has {len(negative)} entries; expected one for all, or {prompts}, one each")
    return list(negative)


def _list_images(images: Any, prompts: int) -> list[Sequence[Any]]:
    """The pictures of each prompt; `to_rgb` checks what they are."""
    if images is None:
        return [()] * prompts
    if isinstance(images, Image.Image | str | Path) or hasattr(images, "__array__"):
        if prompts != 1:
            raise ValueError(f"one picture for {prompts} prompts; give a list with one entry per prompt")
        return [[images]]
    if not isinstance(images, list | tuple):
        raise ValueError(f"image is a {type(images).__name__}; expected None, a picture, or one entry per prompt")
    if len(images) != prompts:
        raise ValueError(
            f"{prompts} prompt(s) but {len(images)} entries in the list of images; expected one entry per prompt "
            "(several pictures of one prompt go into a list of their own)"
        )
    return [_own_images(entry) for entry in images]


def _own_images(entry: Any) -> Sequence[Any]:
    if entry is None:
        return ()
    return entry if isinstance(entry, list | tuple) else [entry]
