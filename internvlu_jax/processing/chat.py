"""Prompts as the model was trained to see them.

A conversation of one turn is rendered as a system text, the user's message and the start of the answer. Pictures stand
in the message as `<image>` marks until `expand_images` puts their visual tokens there. Guidance compares three
renderings: the whole prompt, the one whose text is dropped, and the one with nothing left of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from internvlu_jax.processing.tokenizer import (
    IM_END,
    IM_START,
    IMG_CONTEXT,
    IMG_END,
    IMG_START,
    IMG_UNCOND,
    Tokenizer,
)

MODES = ("text", "image", "text_image")
IMAGE_MARK = "<image>"

UNDERSTANDING_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
GENERATION_SYSTEM = (
    UNDERSTANDING_SYSTEM
    + "请通过详细描述图像中物体和背景的颜色、形状、大小、纹理、数量、文字内容以及空间位置关系等来对图像进行全面描述："
)
EDITING_SYSTEM = (
    UNDERSTANDING_SYSTEM
    + "请描述输入图像的关键特征（颜色、形状、大小、纹理、物体、背景等），然后解释用户的文本指令应该如何改变或修改图像，"
    + "从而生成一个满足用户要求的新图像，并适当保持与原始输入的一致性。："
)

UNCOND = f"Here is a random image {IMG_UNCOND}:"
TEXT_DROPPED = "Generate an image based on reference images."

# What a tokenizer made for a small model should hold as one token each.
FIXED_TEXTS = (UNDERSTANDING_SYSTEM, GENERATION_SYSTEM, EDITING_SYSTEM, "Here is a random image ", TEXT_DROPPED)

_SENTENCE_ENDS = (".", "!", "?", ",", ":", ";")
# Tokens that only pictures may bring. Typed by a user they would be taken for visual tokens that no picture fills, or
# for the bounds of a picture. The other special tokens (<ref>, <box>, ...) are part of the language users may write.
_PICTURE_TOKENS = (IMG_CONTEXT, IMG_START, IMG_END)


def system_text(mode: str, has_images: bool) -> str:
    """The system text for one prompt.

    Deliberate difference: the released code decides for a whole call (a list in which any prompt has a picture is
    editing throughout, and it cannot mix). Here each prompt decides for itself, so that a batch equals its rows.
    """
    if mode == "text":
        return UNDERSTANDING_SYSTEM
    return EDITING_SYSTEM if has_images else GENERATION_SYSTEM


def check_system_text(text: str) -> str:
    """Returns `text` if it can stand in the system turn.

    Raises:
        ValueError: it holds a picture mark or a token that bounds turns or pictures. The head's context starts at the
            second `<|im_start|>`, so one more in front of it would shift what the picture is drawn from.
    """
    _refuse_tokens(text, (*_PICTURE_TOKENS, IMAGE_MARK, IM_START, IM_END), "system_prompt")
    return text


def check_written_text(text: str, what: str) -> str:
    """Returns `text` if the model may be taught to write it.

    Raises:
        ValueError: it holds a token that bounds turns or pictures; `what` says what the text is.
    """
    _refuse_tokens(text, (*_PICTURE_TOKENS, IM_START, IM_END), what)
    return text


def place_images(text: str, count: int) -> str:
    """Puts the marks that `text` lacks for `count` pictures in front of it, one line each.

    Raises:
        ValueError: `text` has more marks than there are pictures.
    """
    marks = text.count(IMAGE_MARK)
    if marks > count:
        raise ValueError(f"the prompt has {marks} {IMAGE_MARK} marks but {count} image(s); give an image for each mark")
    return f"{IMAGE_MARK}\n" * (count - marks) + text


def normalise_user_text(text: str) -> str:
    """Strips blanks, makes the first character upper case, ends the sentence. Empty text stays empty."""
    text = text.strip()
    if not text:
        return text
    text = text[0].upper() + text[1:]
    return text if text.endswith(_SENTENCE_ENDS) else text + "."


def user_message(text: str, images: int) -> str:
    """The message of a prompt with `images` pictures. Marks come first, so a text behind one keeps its case.

    Raises:
        ValueError: more marks than pictures, or a literal token that only pictures may bring.
    """
    _refuse_tokens(text, _PICTURE_TOKENS, "prompt")
    return normalise_user_text(place_images(text, images))


def text_dropped_message(images: int, negative: str = "") -> str:
    """The message without its text: the pictures alone, or nothing at all where there are none; or with another text,
    from which guidance leads away."""
    if negative.strip():
        return user_message(negative, images)
    return f"{IMAGE_MARK}\n" * images + TEXT_DROPPED if images else UNCOND


def expand_images(message: str, tokens: Sequence[int]) -> str:
    """Replaces the marks of `message`, from left to right, by pictures of so many visual tokens each."""
    first, *rest = message.split(IMAGE_MARK)
    pictures = (f"{IMG_START}{IMG_CONTEXT * n}{IMG_END}" for n in tokens)
    return first + "".join(picture + text for picture, text in zip(pictures, rest, strict=True))


def render(system: str, message: str, final_img: bool) -> str:
    """The text the model continues; with `final_img` a picture follows.

    Quirk kept for parity: an empty message leaves its turn open, without `<|im_end|>`.
    """
    user = f"{IM_START}user\n{message}{IM_END}\n" if message else f"{IM_START}user\n"
    answer = f"{IM_START}assistant\n" + (IMG_START if final_img else "")
    return f"{IM_START}system\n{system}{IM_END}\n{user}{answer}"


def render_further(message: str) -> str:
    """What follows an answer and its `<|im_end|>` when the conversation goes on: the next turn, up to its answer."""
    return f"\n{IM_START}user\n{message}{IM_END}\n{IM_START}assistant\n"


def encode_turns(
    tokenizer: Tokenizer, system: str, messages: Sequence[str], answers: Sequence[str]
) -> list[tuple[list[int], bool]]:
    """A conversation as stretches of token ids, and whether the model is the one to write each.

    Stretches are tokenised alone, as they are where the model writes its own: nothing joins the end of a prompt to the
    start of an answer.

    Args:
        messages: of the user, with their pictures expanded. answers: to the first messages, one each, or to all but the
            last, which is then to be answered.

    Raises:
        ValueError: an answer holds a token that bounds turns or pictures.
    """
    stretches = []
    for n, message in enumerate(messages):
        asked = render(system, message, False) if n == 0 else render_further(message)
        stretches.append((tokenizer.encode(asked), False))
        if n < len(answers):
            said = check_written_text(answers[n], "answer") + IM_END
            stretches.append((tokenizer.encode(said), True))
    return stretches


def _refuse_tokens(text: str, tokens: Sequence[str], what: str) -> None:
    reserved = [token for token in tokens if token in text]
    if reserved:
        raise ValueError(
            f"the {what} holds {', '.join(reserved)}, which the model keeps for itself; write {IMAGE_MARK} in a prompt "
            "where a picture belongs and leave the rest out"
        )
