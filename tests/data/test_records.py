"""Records: the three forms, JSON lines, and what is said about those that cannot be used."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from internvlu_jax.data.records import BrokenRecord, PictureFile, drawn_picture, parse
from internvlu_jax.data.sources import open_source
from internvlu_jax.processing.images import load_image

T2I = {"task": "t2i", "prompt": "a red ball", "image": "b.png"}
EDIT = {"task": "edit", "prompt": "make it blue", "source": ["b.png", "c.jpg"], "image": "a.webp", "reasoning": "hm"}
HUMAN, GPT = {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "一个球"}
ASK = {"image": "c.jpg", "conversations": [HUMAN, GPT]}
TALK = {"conversations": [{"from": ("human", "gpt")[n % 2], "value": str(n)} for n in range(4)]}


def picture_bytes(seed: int, kind: str, height: int = 5, width: int = 8, orientation: int = 1) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def write_lines(directory: Path, *records) -> Path:
    """Strings and bytes are lines as they are."""
    directory.mkdir(exist_ok=True)
    lines = [r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode() for r in records]
    (directory / "all.jsonl").write_bytes(b"\n".join(lines))
    for seed, (name, kind) in enumerate({"a.webp": "WEBP", "b.png": "PNG", "c.jpg": "JPEG"}.items()):
        (directory / name).write_bytes(picture_bytes(seed, kind, orientation=6))
    return directory / "all.jsonl"


def no_files(name: str):
    return lambda: io.BytesIO()


# The forms


def test_the_three_forms():
    t2i, edit, ask, talk = (parse(data, "x:1", no_files) for data in (T2I, EDIT, ASK, TALK))
    assert (t2i.task, t2i.prompt, t2i.image.name, t2i.sources) == ("t2i", "a red ball", "b.png", ())
    assert t2i.reasoning is None
    assert (edit.task, edit.image.name, edit.reasoning) == ("edit", "a.webp", "hm")
    assert [source.name for source in edit.sources] == ["b.png", "c.jpg"]
    assert (ask.task, ask.image, ask.turns) == ("understanding", None, (("<image>\nwhat?", "一个球"),))
    assert [source.name for source in ask.sources] == ["c.jpg"]
    assert talk.sources == () and talk.turns == (("0", "1"), ("2", "3"))
    assert t2i.data == T2I and t2i.where == "x:1"


@pytest.mark.parametrize("changes", [{"image": ["c.jpg"]}, {"image": None, "images": "c.jpg"}, {"id": 7, "width": 3}])
def test_other_ways_to_write_a_conversation(changes):
    record = parse({**ASK, **changes, "task": "understanding"}, "x:1", no_files)
    assert [source.name for source in record.sources] == ["c.jpg"]


SYSTEM = {"from": "system", "value": "Be brief."}
OF_MESSAGES = {"human": "user", "gpt": "assistant", "system": "system"}


def as_messages(turns: list[dict]) -> list[dict]:
    return [{"role": OF_MESSAGES[turn["from"]], "content": turn["value"]} for turn in turns]


def test_messages_are_conversations_in_other_words():
    for data in (ASK, TALK, {**ASK, "conversations": [SYSTEM, HUMAN, GPT]}):
        same = {name: value for name, value in data.items() if name != "conversations"}
        messages = parse({**same, "messages": as_messages(data["conversations"])}, "x:1", no_files)
        expected = parse(data, "x:1", no_files)
        assert (messages.turns, messages.system) == (expected.turns, expected.system)
        assert [picture.name for picture in messages.sources] == (["c.jpg"] if "image" in data else [])


@pytest.mark.parametrize("names", [{"image": "c.jpg"}, {}])
def test_messages_in_parts(names):
    parts = [{"type": "image", **names}, {"type": "text", "text": "what "}, {"type": "text", "text": "is it?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a ball"}]}
    data = {"messages": [{"role": "user", "content": parts}, answer], **({} if names else {"images": ["c.jpg"]})}
    record = parse(data, "x:1", no_files)
    assert record.turns == (("<image>\nwhat is it?", "a ball"),)
    assert [picture.name for picture in record.sources] == ["c.jpg"]
    if names:
        with pytest.raises(BrokenRecord, match="either image or images, or names among the words"):
            parse({**data, "image": "d.jpg"}, "x:1", no_files)


def test_a_system_turn_is_kept():
    assert parse({"conversations": [SYSTEM, *TALK["conversations"]]}, "x:1", no_files).system == "Be brief."
    for nothing in ("", " "):
        record = parse({"conversations": [{**SYSTEM, "value": nothing}, *TALK["conversations"]]}, "x:1", no_files)
        assert record.system is None and len(record.turns) == 2


@pytest.mark.parametrize("nothing", ["", None, [], [""]])
def test_a_conversation_without_a_picture(nothing):
    assert parse({**TALK, "image": nothing, "video": ""}, "x:1", no_files).sources == ()


@pytest.mark.parametrize("task", [None, ""])
def test_a_conversation_of_a_table_that_has_a_task_for_other_rows(task):
    record = parse({"prompt": None, "source": None, **ASK, "task": task}, "x:1", no_files)
    assert (record.task, record.turns) == ("understanding", (("<image>\nwhat?", "一个球"),))
    with pytest.raises(BrokenRecord, match=f'task is {task!r}; expected "t2i", "edit" or "understanding"'):
        parse({**T2I, "task": task}, "x:1", no_files)


@pytest.mark.parametrize("reasoning", [None, ""])
def test_no_reasoning(reasoning):
    assert parse({**T2I, "reasoning": reasoning}, "x:1", no_files).reasoning is None


BROKEN = {
    "no object": ([1], "holds [1]; expected a JSON object"),
    "no task": ({"promt": "a"}, "task is missing (there are ['promt'])"),
    "other task": ({**T2I, "task": "video"}, 'task is \'video\'; expected "t2i", "edit" or "understanding"'),
    "odd task": ({**T2I, "task": ["t2i"]}, "task is ['t2i']; expected"),
    "no prompt": ({**T2I, "prompt": " "}, "prompt is ' '; expected text"),
    "half a surrogate pair": ({**T2I, "prompt": "a\ud800"}, "prompt is 'a\\ud800'; expected text, in valid Unicode"),
    "no image": ({"task": "t2i", "prompt": "a"}, "image is missing"),
    "several images": ({**T2I, "image": ["a", "b"]}, "image is ['a', 'b']; expected the name of a picture file"),
    "odd reasoning": ({**T2I, "reasoning": 3}, "reasoning is 3; expected text"),
    "no source": ({**EDIT, "source": []}, "source is []; expected the name of a picture file or a list"),
    "odd source": ({**EDIT, "source": ["a", 1]}, "source is ['a', 1]; expected"),
    "empty conversation": ({"conversations": []}, "conversations is []; expected a list"),
    "no answer": ({"conversations": [HUMAN, GPT, HUMAN], "image": ["a", "b"]}, "has 3 turn(s); expected an answer"),
    "second system turn": (
        {"conversations": [HUMAN, GPT, {"from": "system", "value": "s"}, GPT]},
        "[2] is {'from': 'system', 'value': 's'}; expected",
    ),
    "two system turns": ({"conversations": [{"from": "system", "value": "s"}] * 2}, "after one system turn at most"),
    "a system turn alone": ({"conversations": [{"from": "system", "value": "s"}]}, "has 0 turn(s); expected an answer"),
    "mark in an answer": (
        {**ASK, "conversations": [HUMAN, {"from": "gpt", "value": "here: <image>"}]},
        "conversations[1] is an answer with <image> in it",
    ),
    "mark in reasoning": ({**T2I, "reasoning": "so <image>"}, "expected words without <image>"),
    "messages and conversations": ({**TALK, "messages": [{"role": "user"}]}, "it has conversations and messages"),
    "messages of other keys": (
        {"messages": [HUMAN, GPT]},
        """[0] is {'from': 'human', 'value': '<image>\\nwhat?'}; ex""",
    ),
    "odd part": (
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        """expected {"role": "user", "content": text}, user and assistant in turn""",
    ),
    "URL": (
        {**T2I, "image": "https://a.b/c.png"},
        "'https://a.b/c.png' is a URL; expected the name of a file: download",
    ),
    "data URL": ({**ASK, "image": "data:image/png;base64,iVBORw0KGgo="}, "is a URL; expected"),
    "wrong order": (
        {"conversations": [GPT, HUMAN]},
        """'value': '一个球'}; expected {"from": "human",""",
    ),
    "other speaker": ({"conversations": [HUMAN, {"from": "bot", "value": "a"}]}, "[1] is {'from': 'bot'"),
    "empty answer": ({"conversations": [HUMAN, {"from": "gpt", "value": ""}]}, "[1] is {'from': 'gpt', 'value': ''}"),
    "turn of no object": ({"conversations": ["hi", GPT]}, "[0] is 'hi'; expected"),
    "too many marks": ({**ASK, "image": None}, "its questions have 1 <image> marks for 0 picture(s)"),
    "image and images": ({**ASK, "images": ["a"]}, "expected either image or images"),
    "odd image": ({**ASK, "image": 0}, "image is 0; expected"),
    "video": ({**TALK, "video": "a.mp4"}, "video is 'a.mp4'; expected pictures only"),
    "size missing": ({**T2I, "sizes": {}}, "sizes is {}; expected [height, width] for b.png"),
    "odd size": ({**T2I, "sizes": {"b.png": [0, True]}}, "expected [height, width] for b.png"),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_objects(data, reason):
    with pytest.raises(BrokenRecord) as caught:
        parse(json.loads(json.dumps(data)), "all.jsonl:7", no_files)
    assert caught.value.where == "all.jsonl:7" and reason in caught.value.reason
    assert str(caught.value) == f"all.jsonl:7: {caught.value.reason}" and len(str(caught.value)) < 300


# Pictures


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_size_is_upright(kind, orientation):
    data = picture_bytes(0, kind, 5, 8, orientation)
    picture = PictureFile("p", lambda: io.BytesIO(data))
    assert picture.size() == picture.pixels().shape[:2] == ((5, 8) if orientation < 5 else (8, 5))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_size_needs_no_pixels(kind):
    data = picture_bytes(0, kind, 300, 400)
    picture = PictureFile("p.x", lambda: io.BytesIO(data[: len(data) // 2]))
    assert picture.size() == (300, 400)
    with pytest.raises(ValueError, match=r"^p\.x: the picture is truncated"):
        picture.pixels()


def test_known_size_needs_no_file(tmp_path):
    assert PictureFile("p", (tmp_path / "none").open, (3, 4)).size() == (3, 4)


def test_pixels_in_memory():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    picture = drawn_picture("drawn", lambda: pixels, (4, 6))
    assert picture.size() == (4, 6)
    np.testing.assert_array_equal(picture.pixels(), pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture.read()))), pixels)


@pytest.mark.parametrize("use", [PictureFile.size, PictureFile.pixels, PictureFile.read])
@pytest.mark.parametrize(
    ("name", "reason"), [("none.png", "no such picture"), (".", "Is a directory"), ("a\0b", "null byte")]
)
def test_unusable_names(tmp_path, use, name, reason):
    source = open_source(write_lines(tmp_path, {**T2I, "image": name}))
    with pytest.raises(ValueError, match=rf"^{name}: .*{reason}"):
        use(source[0].image)


@pytest.mark.parametrize("data", [b"", b"not a picture", picture_bytes(0, "PNG", 1, 201)])
def test_unusable_files(data):
    for use in (PictureFile.size, PictureFile.pixels):
        with pytest.raises(ValueError, match=r"^p\.png: "):
            use(PictureFile("p.png", lambda: io.BytesIO(data)))


# JSON lines


def test_json_lines(tmp_path):
    source = open_source(write_lines(tmp_path, b"\xef\xbb\xbf" + json.dumps(T2I).encode(), "", "  \r", EDIT, ASK, ""))
    assert len(source) == 3
    assert [record.where.rsplit("/", 1)[1] for record in source] == ["all.jsonl:1", "all.jsonl:4", "all.jsonl:5"]
    assert [record.task for record in source] == ["t2i", "edit", "understanding"]
    np.testing.assert_array_equal(source[0].image.pixels(), np.asarray(load_image(tmp_path / "b.png")))


@pytest.mark.parametrize(
    ("line", "reason"), [("{", "not valid JSON"), (b'"\xff"', "not UTF-8"), ("[" * 100_000, "not valid JSON")]
)
def test_broken_lines(tmp_path, line, reason):
    source = open_source(write_lines(tmp_path, T2I, line, EDIT))
    with pytest.raises(BrokenRecord, match=rf"all\.jsonl:2: {reason}"):
        source[1]
    assert source[2].task == "edit"


def test_a_file_that_shrinks(tmp_path):
    path = write_lines(tmp_path, T2I, T2I)
    source = open_source(path)
    path.write_bytes(b"")
    with pytest.raises(BrokenRecord, match=r"all\.jsonl:2: not valid JSON"):
        source[1]


def test_sources_that_are_none(tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.array_record").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/0.array_record").write_bytes(b"x" * 100_000)
    for name, reason in {
        "none.jsonl": "there is no such file; expected JSON lines",
        "blank.jsonl": "no records; expected one JSON object a line",
        "empty": r"no \*\.array_record files",
        "one.array_record": "is one shard; name its directory",
        "damaged": "0.array_record is not an ArrayRecord file, or it is damaged",
    }.items():
        with pytest.raises(ValueError, match=reason) as caught:
            open_source(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
