"""The tokenizer: read from the released files, made anew, and refused where files do not fit."""

import json
import shutil

import numpy as np
import pytest
import tokenizers

from internvlu_jax.processing import chat
from internvlu_jax.processing.tokenizer import SPECIAL_TABLE, Tokenizer
from tests.conftest import GOLDENS


@pytest.fixture(scope="module")
def base():
    return Tokenizer.from_directory(GOLDENS / "base/checkpoint/processor")


TEXTS = (
    "",
    " ",
    "Hello, world! It's 12345.67 o'clock; THEY'LL see.",
    "  leading and trailing  \n\n\tblanks\r\n next  line ",
    "cafe\u0301 café Å \u212b naïve \u1e9b\u0323",
    "在深蓝色的夜空中，一只红色的鸟。「日本語」한국어 العربية ไทย हिन्दी",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈 and \u0000 control \u200b\ufeff",
    "code: for (int i=0;i<10;++i) { a[i] += 1.5e-3; } // ok\n\n\n",
    "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\n<ref>x</ref><|im_end|>",
    "<img_uncond>:<|endoftext|> <think>no</think> <image> < img>",
)


def random_texts(count=300):
    rng = np.random.default_rng(0)
    pools = ["abc XYZ'.,!?", "0123 45\n\t ", "的图像一个人é\u0301ß", "😀<>|im_start img/", "\u00a0\u3000'sdm'll"]
    for _ in range(count):
        pool = "".join(rng.choice(pools, 2))
        yield "".join(rng.choice(list(pool), rng.integers(1, 40)))


@pytest.mark.parametrize("listing", [("tokenizer_config.json",), ("added_tokens.json", "special_tokens_map.json")])
def test_tokenizer_from_the_older_files_is_the_same(base, tmp_path, listing):
    for name in ("vocab.json", "merges.txt", *listing):
        shutil.copy(GOLDENS / "base/checkpoint/processor" / name, tmp_path)
    rebuilt = Tokenizer.from_directory(tmp_path)
    assert rebuilt.vocab_size == base.vocab_size
    for text in (*TEXTS, *random_texts()):
        ids = base.encode(text)
        assert rebuilt.encode(text) == ids, text
        assert rebuilt.decode(ids) == base.decode(ids), text


def test_tokenizer_round_trip_and_special_tokens(base):
    tokenizer = base
    assert tokenizer.decode(tokenizer.encode("Hello <ref>你好</ref><|im_end|>")) == "Hello 你好"
    assert tokenizer.special_table_ids == (903, 902, 897, 896, 895, 899, 898, 901, 900, 904)
    assert len(SPECIAL_TABLE) == 10
    assert tokenizer.stop_ids == (tokenizer.im_end, tokenizer.img_start) == (890, 895)
    assert (tokenizer.im_start, tokenizer.img_end, tokenizer.img_context) == (889, 896, 897)
    assert (tokenizer.img_uncond, tokenizer.pad) == (904, 888)
    with pytest.raises(ValueError, match="<nothing>"):
        tokenizer.id_of("<nothing>")


def test_tokens_beyond_a_table(base, tmp_path):
    """888 to 890 are those of turns, 891 to 894 of added words, and then come the ten of the special-token table."""
    assert base.beyond(905) == base.beyond(895) == []
    words = ["<|vision_start|>", "<|vision_end|>", "<think>", "</think>"]
    assert base.beyond(889) == ["<|im_start|>", "<|im_end|>", *words]
    source = GOLDENS / "base/checkpoint/processor"
    whole = json.loads((source / "tokenizer.json").read_text())
    whole["model"]["vocab"] |= {"[PAD905]": 905, "[PAD906]": 906}  # no merges lead to them
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert Tokenizer.from_directory(tmp_path).beyond(900) == []
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_tokens(["añadido", tokenizers.AddedToken("<new>", special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    added = Tokenizer.from_directory(tmp_path)
    assert [added.beyond(rows) for rows in (907, 908, 909)] == [["añadido", "<new>"], ["<new>"], []]


def test_tokenizer_ignores_padding_and_truncation_of_the_file(base, tmp_path):
    backend = tokenizers.Tokenizer.from_file(str(GOLDENS / "base/checkpoint/processor/tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "a much longer text than that"
    assert Tokenizer.from_directory(tmp_path).encode(text) == base.encode(text)


def test_tokenizer_without_special_tokens_names_them_all(tmp_path):
    source = GOLDENS / "base/checkpoint/processor"
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(source / name, tmp_path)
    with pytest.raises(ValueError, match=r"<\|im_start\|>.*<IMG_CONTEXT>.*<img_uncond>"):
        Tokenizer.from_directory(tmp_path)
    listed = json.loads((source / "added_tokens.json").read_text())
    listed["<img_uncond>"] += 5
    (tmp_path / "added_tokens.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="<img_uncond> should have id 909"):
        Tokenizer.from_directory(tmp_path)


def test_tokenizer_files_missing_or_damaged(tmp_path):
    with pytest.raises(ValueError, match=r"neither tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ValueError, match="unreadable tokenizer"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"unreadable tokenizer: tokenizer.json is a git-LFS pointer"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": 5}}),
        ("tokenizer_config.json", {"added_tokens_decoder": ["a"]}),
        ("special_tokens_map.json", {"additional_special_tokens": 5}),
        ("added_tokens.json", {"a": []}),
        ("added_tokens.json", {"a": "b"}),
    ],
)
def test_added_tokens_of_other_kinds_name_the_folder(tmp_path, file, change):
    shutil.copytree(GOLDENS / "base/checkpoint/processor", tmp_path / "p")
    (tmp_path / "p" / file).write_text(json.dumps(change))
    with pytest.raises(ValueError, match=r"/p: the added tokens in .* are not as transformers writes them"):
        Tokenizer.from_directory(tmp_path / "p")


@pytest.mark.parametrize(
    "setting", [{"eos_token": "<|endoftext|>"}, {"eos_token": {"content": "</s>"}}, {"split_special_tokens": True}]
)
def test_settings_that_change_what_is_written_are_refused(tmp_path, setting):
    shutil.copytree(GOLDENS / "base/checkpoint/processor", tmp_path / "p")
    path = tmp_path / "p/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(ValueError, match=rf"tokenizer_config.json: {next(iter(setting))} is .* only .* is implemented"):
        Tokenizer.from_directory(tmp_path / "p")


def test_a_panic_of_the_library_names_the_folder(tmp_path, monkeypatch):
    """What its code in Rust throws is no Exception; an interrupt is none either, and passes."""
    shutil.copy(GOLDENS / "base/checkpoint/processor/tokenizer.json", tmp_path)
    panic = type("PanicException", (BaseException,), {})
    for error, expected in ((panic("range end index"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(path, error=error):
            raise error

        monkeypatch.setattr(tokenizers, "Tokenizer", type("T", (), {"from_file": staticmethod(fail)}))
        with pytest.raises(expected):
            Tokenizer.from_directory(tmp_path)


def test_null_lists_of_added_tokens_are_empty(tmp_path, base):
    shutil.copytree(GOLDENS / "base/checkpoint/processor", tmp_path / "p")
    path = tmp_path / "p/tokenizer_config.json"
    nothing = {"additional_special_tokens": None, "added_tokens_decoder": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | nothing))
    assert Tokenizer.from_directory(tmp_path / "p").encode("a cat<img>") == base.encode("a cat<img>")


def test_invalid_unicode_is_refused(base):
    with pytest.raises(ValueError, match="not valid Unicode at character 2"):
        base.encode("ok\udc80")


# Tokenizers of our own


def test_byte_level_tokenizer(tmp_path):
    tokenizer = Tokenizer.byte_level(chat.FIXED_TEXTS)
    text = "Zwei rote Kreise, 两个红色的圆\n<|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert len(ids) == len(text.removesuffix("<|im_end|>").encode()) + 1
    assert max(ids) < tokenizer.vocab_size <= 512
    prompt = chat.render(chat.EDITING_SYSTEM, chat.TEXT_DROPPED, True)
    assert len(tokenizer.encode(prompt)) < 40, "each fixed text is one token"
    tokenizer.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert again.encode(text + prompt) == tokenizer.encode(text + prompt)
    assert again.special_table_ids == tokenizer.special_table_ids


def test_trained_tokenizer():
    """Frequent words become one token each, and everything else still goes through."""
    texts = ["two red circles left of a blue square", "a red star", "两个红色的圆"] * 20
    tokenizer = Tokenizer.trained(texts, 60, chat.FIXED_TEXTS)
    assert len(tokenizer.encode("two red circles")) == 3
    text = "a red zebra in 上海"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size <= 256 + 60 + 13 + len(chat.FIXED_TEXTS)
    again = Tokenizer.trained(texts, 60, chat.FIXED_TEXTS)
    assert again.encode(text) == tokenizer.encode(text)
