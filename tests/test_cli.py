"""The shell command, on a recorded checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from internvlu_jax.cli import main
from tests.conftest import GOLDENS

CHECKPOINT = str(GOLDENS / "base/checkpoint")
PHOTO = str(GOLDENS / "base/pipeline/edit_0_0.png")
MODEL = ["--checkpoint", CHECKPOINT]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_text(capsys):
    assert main(["text", "What is in the picture?", "--image", PHOTO, "--max-new-tokens", "6", *MODEL]) == 0
    assert capsys.readouterr().out.strip()


def test_image_takes_the_first_free_name(elsewhere, capsys):
    draw = ["image", "a cat", "--height", "48", "--width", "80", "--steps", "2", "--seed", "3", *MODEL]
    assert main(draw) == 0 and main(draw) == 0
    assert capsys.readouterr().out.split() == ["out.png", "out-1.png"]
    first, second = (Image.open(elsewhere / name) for name in ("out.png", "out-1.png"))
    assert first.size == (80, 48)
    assert first.tobytes() == second.tobytes()


def test_several_pictures(elsewhere):
    assert main(["image", "a cat", "--steps", "1", "--num-images", "2", "--out", "cat.png", *MODEL]) == 0
    assert sorted(p.name for p in elsewhere.iterdir()) == ["cat-1.png", "cat.png"]


def test_edit_keeps_the_size_of_the_source(elsewhere):
    """64 x 96 is a size that the checkpoint draws."""
    assert main(["edit", "make it blue", "--image", PHOTO, "--steps", "1", "--out", "b.png", *MODEL]) == 0
    assert Image.open(elsewhere / "b.png").size == (96, 64)


def test_edit_from_two_pictures(elsewhere):
    edit = ["edit", "join them", "--image", PHOTO, PHOTO, "--steps", "1", "--height", "48", "--width", "48"]
    assert main([*edit, "--out", "b.png", *MODEL]) == 0
    assert Image.open(elsewhere / "b.png").size == (48, 48)


def test_text_image(elsewhere, capsys):
    args = ["text-image", "a cat", "--steps", "1", "--max-new-tokens", "5", "--num-beams", "2", "--out", "c.png"]
    assert main([*args, *MODEL]) == 0
    *text, path = capsys.readouterr().out.splitlines()
    assert path == "c.png" and text


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_convert_there_and_back(elsewhere):
    assert main(["convert", CHECKPOINT, "ours", "--to", "orbax"]) == 0
    assert main(["convert", "ours", "back", "--to", "released"]) == 0
    assert contents(elsewhere / "back") == contents(GOLDENS / "base/checkpoint")
    assert not [p for p in elsewhere.iterdir() if p.name.startswith(".")]


def test_converted_checkpoint_draws_the_same(elsewhere):
    assert main(["convert", CHECKPOINT, "ours", "--to", "orbax"]) == 0
    draw = ["image", "a cat", "--height", "48", "--width", "80", "--steps", "2", "--seed", "3"]
    assert main([*draw, "--out", "a.png", *MODEL]) == 0
    assert main([*draw, "--out", "b.png", "--checkpoint", "ours"]) == 0
    assert (elsewhere / "a.png").read_bytes() == (elsewhere / "b.png").read_bytes()


def test_info(capsys, elsewhere):
    assert main(["info", CHECKPOINT]) == 0
    out = capsys.readouterr().out
    assert "286,992" in out and "F32" in out
    assert main(["convert", CHECKPOINT, "ours", "--to", "orbax"]) == 0
    assert main(["info", "ours"]) == 0
    assert "286,992" in capsys.readouterr().out


def test_info_takes_a_hub_id(capsys, monkeypatch):
    asked = []

    def snapshot(repository, **options):
        asked.append(repository)
        return CHECKPOINT

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert main(["info", "InternVL-U/InternVL-U"]) == 0
    assert asked == ["InternVL-U/InternVL-U"] and "286,992" in capsys.readouterr().out


def test_info_says_what_is_missing(capsys, elsewhere):
    (elsewhere / "empty").mkdir()
    assert main(["info", "empty"]) == 2
    message = capsys.readouterr().err
    assert "vlm" in message and "vae" in message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["image", "a cat", "--checkpoint", "/nowhere"], "/nowhere"),
        (["image", "a cat", "--height", "100000", *MODEL], "100000"),
        (["image", "a cat", "--steps", "0", *MODEL], "num_inference_steps is 0"),
        (["image", "a cat", "--out", "missing/a.png", *MODEL], "missing"),
        (["image", "a cat", "--out", "a.xyz", *MODEL], "xyz"),
        (["edit", "make it blue", "--image", "missing.png", *MODEL], "missing.png"),
        (["edit", "make it blue", "--image", "broken.png", *MODEL], "broken.png: not a picture"),
        (["text", "x", "--num-beams", "2", "--do-sample", *MODEL], "num_beams is 2"),
        (["convert", CHECKPOINT, "taken", "--to", "orbax"], "taken"),
        (["convert", "/nowhere", "new", "--to", "orbax"], "/nowhere"),
        (["info", "/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(args, message, capsys, elsewhere):
    (elsewhere / "broken.png").write_bytes(b"not a picture")
    (elsewhere / "taken").mkdir()
    (elsewhere / "taken/file").write_text("mine")
    assert main(args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("internvlu-jax: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in "\n".join(lines)
    assert (elsewhere / "taken/file").read_text() == "mine"


def test_as_a_process(elsewhere):
    def run(*args):
        command = [sys.executable, "-m", "internvlu_jax.cli", *args]
        environment = {**os.environ, "PYTHONPATH": str(GOLDENS.parent.parent)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    good = run("--help")
    assert good.returncode == 0 and "text-image" in good.stdout
    bad = run("image", "a cat", "--checkpoint", "/nowhere")
    assert bad.returncode == 2
    assert len(bad.stderr.strip().splitlines()) == 1
    assert run("image").returncode == 2
