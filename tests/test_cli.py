"""The shell command, on a recorded checkpoint."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvlu_jax.cli import COMMANDS, Model, main
from internvlu_jax.inference.outputs import PipelineOutput
from internvlu_jax.utils.files import written_whole
from internvlu_jax.utils.picture_settings import read_settings, with_settings
from tests.conftest import GOLDENS

CHECKPOINT = str(GOLDENS / "base/checkpoint")
PHOTO = str(GOLDENS / "base/pipeline/edit_0_0.png")
MODEL = ["--checkpoint", CHECKPOINT]
ONLY_READ = (".psd", ".xbm", ".h5", ".blp")  # of one kind each: no writer, not of colours, none installed, palettes
LONG = "a" * 252


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


@pytest.mark.slow
def test_edit_keeps_the_size_of_the_source(elsewhere):
    """64 x 96 is a size that the checkpoint draws."""
    assert main(["edit", "make it blue", "--image", PHOTO, "--steps", "1", "--out", "b.png", *MODEL]) == 0
    assert Image.open(elsewhere / "b.png").size == (96, 64)


@pytest.mark.slow
def test_edit_from_two_pictures(elsewhere):
    edit = ["edit", "join them", "--image", PHOTO, PHOTO, "--steps", "1", "--height", "48", "--width", "48"]
    assert main([*edit, "--out", "b.png", *MODEL]) == 0
    assert Image.open(elsewhere / "b.png").size == (48, 48)


def test_text_image(elsewhere, capsys):
    args = ["text-image", "a cat", "--steps", "1", "--max-new-tokens", "5", "--num-beams", "2", "--out", "c.png"]
    assert main([*args, *MODEL]) == 0
    *text, path = capsys.readouterr().out.splitlines()
    assert path == "c.png" and text


def test_pictures_are_saved_whatever_their_names_hold(elsewhere, monkeypatch):
    """Names of files are bytes, which no strict UTF-8 can print; and all are there before the first is told."""
    source, out = (os.fsdecode(name) for name in (b"caf\xe9.png", b"o\xe9.png"))
    Image.new("RGB", (64, 64)).save(source)
    monkeypatch.setattr(
        Model, "load", lambda self: lambda prompt, **_: PipelineOutput(images=[Image.new("L", (2, 2))] * 3)
    )
    told = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(told, "utf-8", "strict"))
    assert main(["edit", "a", "--image", source, "--out", out, "--num-images", "3", "--seed", "1"]) == 0
    assert told.getvalue().split() == [rb"o\udce9.png", rb"o\udce9-1.png", rb"o\udce9-2.png"]
    assert all(read_settings(f"o\udce9{n}.png")["image"] == [source] for n in ("", "-1", "-2"))


def pixels(name: str) -> bytes:
    return Image.open(name).tobytes()


def test_the_seed_is_shown_and_like_repeats_it(capsys):
    """Of two pictures each has its own seed and is repeated alone; flags override, and out.png is not kept."""
    draw = ["image", "ein Hund 犬", "--height", "32", "--width", "48", "--steps", "1", "--noise", "jax", *MODEL]
    draw += ["--time", "bfloat16"]
    assert main([*draw, "--num-images", "2", "--out", "a.png"]) == 0
    shown = capsys.readouterr()
    assert shown.out.split() == ["a.png", "a-1.png"]
    seeds = [int(line.rpartition(" ")[2]) for line in shown.err.splitlines() if "png: seed " in line]
    assert seeds[1] == seeds[0] + 1
    settings = read_settings("a-1.png")
    assert (settings["prompt"], settings["seed"], settings["noise"]) == ("ein Hund 犬", seeds[1], "jax")
    assert settings["time"] == "bfloat16"
    assert main(["image", "--like", "a-1.png", "--out", "b.png"]) == 0
    levels = [np.asarray(Image.open(name)).astype(int) for name in ("a.png", "a-1.png", "b.png")]
    assert np.abs(levels[1] - levels[2]).max() <= 1  # the rounding of another batch size
    assert np.abs(levels[0] - levels[2]).max() > 1 and read_settings("b.png") == settings
    assert main(["image", "a cat", "--like=a-1.png", "--noise", "torch-cpu", "--out", "c.png"]) == 0
    assert read_settings("c.png") == {**settings, "prompt": "a cat", "noise": "torch-cpu"}
    assert pixels("c.png") != pixels("b.png")
    assert main(["edit", "--like", "a-1.png", "--image", PHOTO, "--out", "d.png"]) == 0
    crc = zlib.crc32(Path(PHOTO).read_bytes())
    assert read_settings("d.png") == {**settings, "image": [PHOTO], "image_crc32": [crc]}
    assert main(["edit", "--like", "a-1.png"]) == 2 and "edit needs a picture" in capsys.readouterr().err


@pytest.mark.slow
def test_like_of_an_edit_and_of_sampled_reasoning(capsys):
    """The second picture of a sampled text needs the first one's seed, so both are drawn again."""
    options = ["--steps", "1", "--max-new-tokens", "3", "--do-sample", "--seed", "4294967295", "--num-images", "2"]
    options += ["--top-k", "None", "--stop-strings", "never", "written"]
    assert main(["text-image", "a cat", "--image", PHOTO, *options, "--out", "a.png", *MODEL]) == 0
    written, *_ = capsys.readouterr().out.splitlines()
    assert main(["text-image", "--like", "a-1.png", "--out", "b.png"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == written
    assert (pixels("a.png"), pixels("a-1.png")) == (pixels("b.png"), pixels("b-1.png"))
    settings = read_settings("b.png")
    assert (settings["image"], settings["top_k"], settings["seed"]) == ([PHOTO], None, 2**32 - 1)
    assert settings["stop_strings"] == ["never", "written"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "a.png does not say how it was drawn"),
        ({"mode": "text_image", "prompt": "a"}, "a.png was not drawn by image; use text-image"),
        ({"prompt": "a"}, "a.png was not drawn by image"),
        ({"mode": "image", "prompt": 3}, "a.png: its prompt is 3"),
        ({"mode": "image", "prompt": "a", "out": "/b.png"}, "a.png: unknown setting 'out'"),
        ({"mode": "image", "prompt": "a", "steps": "many"}, "a.png: its settings cannot be used"),
        ({"mode": "image", "prompt": "a", "seed": -1}, "seed is -1; expected"),
        ({"mode": "image", "prompt": "a", "image": "b.png"}, "a.png: its settings are damaged: sources 'b.png'"),
        ({"mode": "image", "prompt": "a", "image": ["b.png"]}, "a.png: its source b.png is neither here nor beside it"),
        ({"mode": "image", "prompt": "a", "image": ["a.png"], "image_crc32": [1]}, "a.png is another picture now"),
    ],
)
def test_settings_that_cannot_be_repeated(settings, message, capsys):
    Image.new("RGB", (8, 8)).save("a.png", **({} if settings is None else {"pnginfo": with_settings(settings)}))
    assert main(["image", "--like", "a.png", "--out", "b.png"]) == 2
    assert message in capsys.readouterr().err and not Path("b.png").exists()


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_convert_there_and_back(elsewhere):
    assert main(["convert", CHECKPOINT, "ours", "--to", "orbax"]) == 0
    assert main(["convert", "ours", "back", "--to", "released"]) == 0
    assert contents(elsewhere / "back") == contents(GOLDENS / "base/checkpoint")
    assert not [p for p in elsewhere.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_converted_checkpoint_draws_the_same(elsewhere):
    assert main(["convert", CHECKPOINT, "ours", "--to", "orbax"]) == 0
    draw = ["image", "a cat", "--height", "48", "--width", "80", "--steps", "2", "--seed", "3"]
    assert main([*draw, "--out", "a.png", *MODEL]) == 0
    assert main([*draw, "--out", "b.png", "--checkpoint", "ours"]) == 0
    first, second = (Image.open(elsewhere / name) for name in ("a.png", "b.png"))
    assert first.tobytes() == second.tobytes()


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


def test_a_connection_that_breaks_is_one_line(capsys, monkeypatch):
    """What the Hub's client raises then is no OSError, nor an error of the Hub's own."""

    class ReadError(Exception):
        pass

    def snapshot(repository, **options):
        raise ReadError("[Errno 104] Connection reset by peer\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert main(["info", "ORG/NAME"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ORG/NAME" in line and "cannot be had: [Errno 104] Connection reset by peer. " in line
    assert "the same command fetches the files that have not come" in line


def test_adapters_are_no_checkpoint_and_beside_one_no_harm(capsys, elsewhere):
    (elsewhere / "lora/vlm").mkdir(parents=True)
    (elsewhere / "lora/vlm/adapter_config.json").write_text("{}")
    assert main(["info", "lora"]) == 2
    assert "lora cannot be used: holds adapters; expected a checkpoint" in capsys.readouterr().err
    shutil.copytree(CHECKPOINT, elsewhere / "whole")
    shutil.copytree(elsewhere / "lora", elsewhere / "whole/lora")
    (elsewhere / "whole/vlm/adapter_config.json").write_text("{}")
    assert main(["info", "whole"]) == 0


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
        *(
            (["image", "a cat", "--out", f"a{suffix}", *MODEL], f"--out a{suffix}: {suffix} suffix")
            for suffix in ONLY_READ
        ),
        (["image", "a cat", "--out", "taken", *MODEL], "--out taken is a directory"),
        (["image", "a cat", "--out", "folder.png", *MODEL], "--out folder.png is a directory"),
        (["image", "a cat", "--out", f"{LONG}.png", *MODEL], "a name of 256 bytes; expected 255 at most"),
        (["image", "a cat", "--out", f"{LONG[2:]}.png", "--num-images", "3", *MODEL], "a name of 256 bytes"),
        (["image", "a cat", "--out", "broken.png/a.png", *MODEL], "broken.png is a file; expected a directory"),
        (["demo", "--out", "broken.png", *MODEL], "--out broken.png is a file"),
        (["demo", "--out", LONG + "long", *MODEL], "a name of 256 bytes"),
        (["convert", CHECKPOINT, LONG + "long", "--to", "orbax"], "a name of 256 bytes"),
        (["convert", CHECKPOINT, "broken.png/new", "--to", "orbax"], "broken.png is a file; expected a directory"),
        (["text", "x", "--image", "taken", *MODEL], "taken: no such picture file"),
        (["text", "x", "--image", LONG + "long", *MODEL], "too long"),
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
    (elsewhere / "folder.png").mkdir()
    assert main(args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("internvlu-jax: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in "\n".join(lines)
    assert (elsewhere / "taken/file").read_text() == "mine"


@pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning")
def test_what_is_wrong_with_a_name_is_said_before_the_work(monkeypatch):
    """Every suffix that Pillow knows is written or refused; a name that is just short enough is written."""
    written = []
    monkeypatch.setattr("internvlu_jax.cli.Model.load", lambda model: pytest.fail("it went on"))
    Image.init()
    for suffix in Image.registered_extensions():
        try:
            Image.new("RGB", (64, 64)).save(f"a{suffix}")
            written.append(suffix)
        except (OSError, ValueError, KeyError):
            assert main(["image", "x", "--out", f"b{suffix}"]) == 2
    assert len(written) > 30 and ".png" in written
    for suffix in written:
        with pytest.raises(pytest.fail.Exception, match="it went on"):
            main(["image", "x", "--out", f"b{suffix}"])
    with written_whole(f"{LONG[1:]}.png") as partial:
        partial.write_text("")
    assert Path(f"{LONG[1:]}.png").exists()


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 1, "out of memory: RESOURCE_EXHAUSTED"),
        (MemoryError("Unable to allocate"), 1, "out of memory: Unable"),
    ],
)
def test_what_is_no_mistake_is_one_line_too(error, status, said, capsys, monkeypatch):
    def fail(model):
        raise error

    monkeypatch.setattr("internvlu_jax.cli.Model.load", fail)
    assert main(["text", "x"]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"internvlu-jax: .*{said}", line)


def test_a_mistake_in_code_passes_through(monkeypatch):
    def fail(model):
        raise RuntimeError("of ours")

    monkeypatch.setattr("internvlu_jax.cli.Model.load", fail)
    with pytest.raises(RuntimeError, match="of ours"):
        main(["text", "x"])


@pytest.mark.slow
def test_as_a_process(elsewhere):
    def run(*args, **given):
        command = [sys.executable, "-m", "internvlu_jax.cli", *args]
        environment = {**os.environ, "PYTHONPATH": str(GOLDENS.parent.parent), **given}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    good = run("--help")
    assert good.returncode == 0 and "text-image" in good.stdout
    assert run("--version").stdout.split() == ["internvlu-jax", version("internvlu-jax")]
    bad = run("image", "a cat", "--checkpoint", "/nowhere")
    assert bad.returncode == 2
    assert len(bad.stderr.strip().splitlines()) == 1
    assert run("image").returncode == 2
    without = run("text", "x", *MODEL, JAX_PLATFORMS="cuda")
    assert without.returncode == 2
    (line,) = without.stderr.splitlines()
    assert line.startswith("internvlu-jax: JAX_PLATFORMS is 'cuda', and there is no such accelerator here")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_script_for_completion(shell, capsys):
    """It knows the commands and their options, and bash takes it."""
    with pytest.raises(SystemExit) as ended:
        main(["--tyro-print-completion", shell])
    script = capsys.readouterr().out
    assert not ended.value.code and all(word in script for word in (*COMMANDS, "--adapter", "--num-images"))
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_one_example_that_is_right(name, capsys, monkeypatch):
    """As far as reading it goes."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main([name, "--help"])
    (example,) = re.findall(r"Example: internvlu-jax (.*)", capsys.readouterr().out)
    monkeypatch.setattr(COMMANDS[name], "run", lambda self: None)
    assert main(shlex.split(example)) == 0 and example.startswith(name)
