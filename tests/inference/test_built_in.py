"""The model in the box: small, shipped whole, and right on a handful of fixed cases."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvlu_jax import InternVLUPipeline, PipelineOutput
from internvlu_jax.checkpoints import loading
from internvlu_jax.cli import main
from internvlu_jax.small_world import SMALL
from internvlu_jax.small_world.scenes.scene import Item, Scene
from internvlu_jax.small_world.scoring import edits, geneval
from internvlu_jax.small_world.tasks.edits import Edit
from internvlu_jax.small_world.tasks.specs import Group, SceneSpec

ROOT = Path(__file__).parents[2]
CIRCLE = Item("circle", "red", "large", 0.25, 0.5)
SQUARE = Item("square", "blue", "large", 0.75, 0.5)
SCENE = Scene((CIRCLE, SQUARE))
STARS = Scene((Item("star", "green", "large", 0.25, 0.25), Item("star", "green", "large", 0.75, 0.75)), "light blue")

# As many pictures and edits as in the demo: both then run the same compiled programs.
DRAWN = {
    "a red circle": SceneSpec((Group("circle", "red"),)),
    "three blue squares": SceneSpec((Group("square", "blue", count=3),)),
    "a green triangle above a blue circle": SceneSpec((Group("triangle", "green"), Group("circle", "blue")), "above"),
    "a yellow star on a light blue background": SceneSpec((Group("star", "yellow"),), background="light blue"),
}
REASONED = {
    "a star in the colour of grass": (SceneSpec((Group("star", "green"),)), "green"),
    "as many circles as a bicycle has wheels": (SceneSpec((Group("circle", count=2),)), "two"),
}
ASKED = (
    (SCENE, "How many objects are there?", "2"),
    (SCENE, "What colour is the circle?", "red"),
    (SCENE, "Is there a star?", "no"),
    (STARS, "How many stars are there?", "2"),
    (STARS, "What colour is the background?", "light blue"),
)
_SMALL = Item("circle", "red", "small", 0.25, 0.5)
_GREEN = Item("square", "green", "large", 0.75, 0.5)
EDITS = (
    Edit("recolour", "make the blue square green", SCENE, Scene((CIRCLE, _GREEN)), SQUARE, _GREEN),
    Edit("remove", "remove the blue square", SCENE, Scene((CIRCLE,)), SQUARE),
    Edit("resize", "make the red circle smaller", SCENE, Scene((_SMALL, SQUARE)), CIRCLE, _SMALL),
    Edit("background", "change the background to light yellow", SCENE, Scene(SCENE.items, "light yellow")),
)


@pytest.fixture(scope="module")
def pipe() -> InternVLUPipeline:
    return InternVLUPipeline.from_pretrained()


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 8, 8, 8)).astype(np.float32)


def drawing(scene: Scene) -> Image.Image:
    return Image.fromarray(scene.draw(64))


def test_it_is_shipped_and_small():
    files = [path for path in loading.BUILT_IN.rglob("*") if path.is_file()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = project["tool"]["setuptools"]["package-data"]["internvlu_jax"]
    package = loading.BUILT_IN.parents[1]
    assert set(files) <= {path for pattern in shipped for path in package.glob(pattern)}
    assert sum(path.stat().st_size for path in files) <= 25e6


def test_it_has_a_name_where_a_checkpoint_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert loading.resolve("built-in") == loading.resolve(None) == loading.BUILT_IN
    assert main(["info", "built-in"]) == 0
    assert "8,656,264" in capsys.readouterr().out
    (tmp_path / "built-in").mkdir()
    assert loading.resolve("built-in") == Path("built-in"), "a directory of that name comes first"


def test_it_draws(pipe):
    pictures = pipe(list(DRAWN), generation_mode="image", latents=noise(len(DRAWN))).images
    for picture, (prompt, wanted) in zip(pictures, DRAWN.items(), strict=True):
        assert geneval.score(SMALL, wanted, np.asarray(picture)) == geneval.RIGHT, prompt


def test_it_answers(pipe):
    out = pipe([asked for _, asked, _ in ASKED], [drawing(scene) for scene, *_ in ASKED], max_new_tokens=24)
    assert [text.strip() for text in out.text] == [answer for *_, answer in ASKED]


@pytest.mark.slow
def test_it_edits(pipe):
    prompts, sources = [e.instruction for e in EDITS], [drawing(e.before) for e in EDITS]
    pictures = pipe(prompts, sources, "image", latents=noise(len(EDITS)), num_inference_steps=10).images
    for picture, edit in zip(pictures, EDITS, strict=True):
        verdict, untouched = edits.score(SMALL, edit, np.asarray(picture))
        assert verdict == geneval.RIGHT, edit.instruction
        assert untouched > 22, edit.instruction


@pytest.mark.slow
def test_it_reasons(pipe):
    out = pipe(list(REASONED), generation_mode="text_image", latents=noise(len(REASONED)), max_new_tokens=96)
    for picture, text, (prompt, (wanted, said)) in zip(out.images, out.text, REASONED.items(), strict=True):
        assert said in text
        assert geneval.score(SMALL, wanted, np.asarray(picture)) == geneval.RIGHT, prompt


@pytest.mark.slow
def test_the_command_takes_it_when_no_checkpoint_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["image", "a red circle", "--seed", "1", "--out", "a.png"]) == 0
    assert main(["text", "What colour is the circle?", "--image", "a.png"]) == 0
    assert "red" in capsys.readouterr().out


def little(self, prompts, image=None, generation_mode="text", **_):
    """In the place of the pipeline's call, whose modes are tested above."""
    pictures = [Image.new("RGB", (64, 64), "red") for _ in prompts] if generation_mode != "text" else None
    return PipelineOutput(["a text"] * len(prompts) if generation_mode != "image" else None, None, pictures)


@pytest.mark.parametrize("call", [little, pytest.param(InternVLUPipeline.__call__, marks=pytest.mark.slow)])
def test_the_demo_leaves_pictures_a_sheet_and_the_texts(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(InternVLUPipeline, "__call__", call)
    assert main(["demo", "--out", "shown"]) == 0
    names = sorted(path.name for path in (tmp_path / "shown").iterdir())
    assert names == [*(f"{n:02d}.png" for n in range(10)), "sheet.png", "texts.txt"]
    assert len((tmp_path / "shown/texts.txt").read_text(encoding="utf-8").splitlines()) == 10


def test_a_demo_cannot_replace_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("shown").write_text("mine", encoding="utf-8")
    assert main(["demo", "--out", "shown"]) == 2
    assert "--out shown is a file" in capsys.readouterr().err
    assert Path("shown").read_text(encoding="utf-8") == "mine"
