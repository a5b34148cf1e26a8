"""The Qwen tokenizer of a checkpoint, and the special tokens that the model knows by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from internvlu_jax.utils.files import foreign_kind, read_object, write_json, written_whole

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
PAD = "<|endoftext|>"
IMG_START = "<img>"
IMG_END = "</img>"
IMG_CONTEXT = "<IMG_CONTEXT>"
IMG_UNCOND = "<img_uncond>"

# The rows of the checkpoint's special-token table, in its order.
SPECIAL_TABLE = (
    "</box>", "<box>", IMG_CONTEXT, IMG_END, IMG_START, "</quad>", "<quad>", "</ref>", "<ref>", IMG_UNCOND,
)  # fmt: skip

# What transformers reads a tokenizer made here as. Of its own accord that class passes token_type_ids too, which the
# released code does not take, so the inputs are named.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
MODEL_INPUTS = ("input_ids", "attention_mask")

# How Qwen2 and Qwen3 cut text into pieces before byte-pair encoding: English contractions, words with at most one
# leading mark, single digits, runs of marks, line breaks, other blanks.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The characters by which byte-level vocabularies write bytes: those that can be seen as they are, the rest in order
# from 256 on (Radford et al. 2019).
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _SEEN}
_BYTES |= {chr(256 + n): byte for n, byte in enumerate(sorted({*range(256)} - {*_SEEN}))}


class Tokenizer:
    """Text to token ids and back.

    Raises:
        ValueError: `backend` lacks special tokens that the model needs; all of them are named.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # Rows are padded by the processor, and nothing is ever cut.
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        needed = (IM_START, IM_END, PAD, *SPECIAL_TABLE)
        missing = [token for token in needed if backend.token_to_id(token) is None]
        if missing:
            raise ValueError(
                f"the tokenizer lacks the special tokens {', '.join(missing)}; is it that of an InternVL-U checkpoint?"
            )
        self.im_start = self.id_of(IM_START)
        self.im_end = self.id_of(IM_END)
        self.pad = self.id_of(PAD)
        self.img_start = self.id_of(IMG_START)
        self.img_end = self.id_of(IMG_END)
        self.img_context = self.id_of(IMG_CONTEXT)
        self.img_uncond = self.id_of(IMG_UNCOND)

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """Reads `tokenizer.json`, or else `vocab.json` and `merges.txt`, and the added tokens listed beside them.

        Raises:
            ValueError: files are missing or unreadable, added tokens contradict the vocabulary, special tokens lack, or
                text is cut or ended in a way that is not implemented.
        """
        directory = Path(directory)
        _check_settings(directory / "tokenizer_config.json")
        backend = _read_backend(directory)
        _add_tokens(backend, directory)
        return cls(backend)

    @classmethod
    def byte_level(cls, phrases: Sequence[str] = ()) -> Tokenizer:
        """256 bytes, the special tokens and a token for each of `phrases`: for models that are made up from scratch."""
        return cls.trained((), 0, phrases)

    @classmethod
    def trained(cls, texts: Iterable[str], merges: int, phrases: Sequence[str] = ()) -> Tokenizer:
        """A byte-level tokenizer with the `merges` most frequent pieces of words in `texts`, else as `byte_level`."""
        backend = _split_to_bytes(tokenizers.Tokenizer(models.BPE()))
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=len(alphabet) + merges, initial_alphabet=sorted(alphabet), show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        backend.add_special_tokens([AddedToken(t, normalized=False) for t in (PAD, IM_START, IM_END, *SPECIAL_TABLE)])
        backend.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
        return cls(backend)

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json and a tokenizer_config.json, as `from_directory` and transformers read them."""
        directory = Path(directory)
        with written_whole(directory / "tokenizer.json") as partial:
            self._backend.save(str(partial))
        config = {
            "tokenizer_class": TOKENIZER_CLASS,
            "pad_token": PAD,
            "eos_token": IM_END,
            "model_input_names": MODEL_INPUTS,
        }
        write_json(directory / "tokenizer_config.json", config)

    @property
    def special_table_ids(self) -> tuple[int, ...]:
        """Ids of the ten tokens whose embeddings come from the special-token table, in the order of its rows."""
        return tuple(self.id_of(token) for token in SPECIAL_TABLE)

    @property
    def stop_ids(self) -> tuple[int, int]:
        """Written text ends with either of these: the end of the turn, or the start of a picture."""
        return self.im_end, self.img_start

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; the model's embedding may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def id_of(self, token: str) -> int:
        """The id of one token, given as it is written in the vocabulary.

        Raises:
            ValueError: there is no such token.
        """
        index = self._backend.token_to_id(token)
        if index is None:
            raise ValueError(f"the tokenizer has no token {token!r}")
        return index

    def beyond(self, rows: int) -> list[str]:
        """Tokens that text can have and for which a table of `rows` embeddings has none, in the order of ids.

        Those of the special-token table have theirs there. Left out are entries of the vocabulary to which no text of
        their own leads: fillings, and parts of characters.
        """
        names = self._backend.get_vocab(with_added_tokens=True)
        high = sorted((index, name) for name, index in names.items() if index >= rows and name not in SPECIAL_TABLE)
        added = self._backend.get_added_tokens_decoder()
        texts = {name: name if index in added else self.decode([index]) for index, name in high}
        return [name for index, name in high if index in self.encode(texts[name])]

    def pieces(self) -> list[bytes]:
        """The bytes that each id adds to a decoded text: none for special tokens and ids that stand for nothing."""
        added = self._backend.get_added_tokens_decoder()
        written = {index: b"" if token.special else token.content.encode() for index, token in added.items()}
        names = self._backend.get_vocab(with_added_tokens=True)
        named = {index: bytes(map(_BYTES.__getitem__, name)) for name, index in names.items() if index not in written}
        known = named | written
        return [known.get(index, b"") for index in range(max(known) + 1)]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens written in it are recognised.

        Raises:
            ValueError: `text` is not valid Unicode (lone surrogates, as from undecodable bytes on a command line).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"text is not valid Unicode at character {error.start}: {text[error.start]!r}") from error
        return self._backend.encode(text).ids

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Text of `ids`, not stripped; bytes that are no complete character become U+FFFD, unknown ids nothing."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)


def _read_backend(directory: Path) -> tokenizers.Tokenizer:
    whole, vocab, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole.is_file():
            return tokenizers.Tokenizer.from_file(str(whole))
        if vocab.is_file() and merges.is_file():
            return _byte_level_bpe(vocab, merges)
    except BaseException as error:  # the library raises bare Exception for what it cannot parse, and panics beside it
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        kinds = [
            f"{path.name} is {kind}"
            for path in (whole, vocab, merges)
            if path.is_file() and (kind := foreign_kind(path))
        ]
        raise ValueError(f"{directory}: unreadable tokenizer: {'; '.join(kinds) or error}") from error
    raise ValueError(f"{directory}: found neither tokenizer.json nor vocab.json with merges.txt")


def _byte_level_bpe(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    """The tokenizer that tokenizer.json would describe, from the two files of the older format."""
    return _split_to_bytes(tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges))))


def _split_to_bytes(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Sets the parts around the merges: NFC, words cut as Qwen cuts them, bytes."""
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _check_settings(path: Path) -> None:
    """Refuses what changes ids or where written text ends."""
    config = _settings_in(path)
    end = config.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    if end not in (None, IM_END):
        raise ValueError(f"{path}: eos_token is {end!r}; only {IM_END!r} is implemented")
    if config.get("split_special_tokens"):
        raise ValueError(
            f"{path}: split_special_tokens is {config['split_special_tokens']!r}; only False is implemented"
        )


def _add_tokens(backend: tokenizers.Tokenizer, directory: Path) -> None:
    """Adds what `added_tokens.json` and `tokenizer_config.json` list and the tokenizer lacks, in the order of ids."""
    for index, token in sorted(_listed_tokens(directory).items()):
        if backend.token_to_id(token.content) is None:
            add = backend.add_special_tokens if token.special else backend.add_tokens
            add([token])
        known = backend.token_to_id(token.content)
        if known != index:
            raise ValueError(f"{directory}: {token.content} should have id {index} but the vocabulary gives it {known}")


def _listed_tokens(directory: Path) -> dict[int, AddedToken]:
    config, specials, added = (
        _settings_in(directory / name)
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    special = {*SPECIAL_TABLE, IM_START, IM_END, PAD}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    try:
        for source in (config, specials):
            entries = source.get("additional_special_tokens") or ()
            special.update(entry["content"] if isinstance(entry, dict) else entry for entry in entries)
        listed = {
            int(index): AddedToken(token, special=token in special, normalized=False) for token, index in added.items()
        }
        for index, entry in (config.get("added_tokens_decoder") or {}).items():
            listed[int(index)] = AddedToken(entry["content"], **{flag: bool(entry.get(flag, False)) for flag in flags})
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{directory}: the added tokens in tokenizer_config.json, special_tokens_map.json or added_tokens.json are "
            f"not as transformers writes them: {error!r}"
        ) from error
    return listed


def _settings_in(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty when there is no such file."""
    return read_object(path) if path.is_file() else {}
