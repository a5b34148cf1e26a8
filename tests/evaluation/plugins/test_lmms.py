"""lmms-eval's calls, from a stand-in of it; and, where it is installed, the harness itself."""

import json
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from tests.helpers.harness import plugged


class Lmms:
    def __init__(self):
        self.task_dict, self.cache_hook = {}, SimpleNamespace(add_partial=lambda *given: self.kept.append(given))
        self.kept = []


@pytest.fixture
def loaded(monkeypatch):
    modules = {"lmms_eval": {}, "lmms_eval__api": {}, "lmms_eval__api__model": {"lmms": Lmms}}
    module, pipe = plugged(monkeypatch, "lmms", **modules)

    def model(**arguments):
        model = module.InternVLUJax(device="cpu", max_batch_size=None, **arguments)
        model.task_dict = {"mmmu_val": {"test": [[Image.new("L", (20 + n, 17))] for n in range(3)] + [None]}}
        return model

    return model, pipe


def _request(number, text="What?", visuals=None, **options):
    return SimpleNamespace(args=(text, options, visuals or (lambda document: document), number, "mmmu_val", "test"))


def test_answers_come_in_the_order_of_requests(loaded):
    build, pipe = loaded
    model = build(batch_size="2", seed=5)
    short, long = {"max_new_tokens": 4, "until": ["."]}, {"max_new_tokens": 9, "temperature": 0, "do_sample": False}
    asked = [(0, short), (1, long), (2, short), (0, short), (3, long)]
    answers = model.generate_until([_request(number, **options) for number, options in asked])
    assert answers == ["1", "4.", "2", "3", "5."]  # stop strings are cut off
    calls = [(call["prompt"], call["max_new_tokens"], call["seed"]) for call in pipe.calls]
    assert calls == [
        (["<image>\nWhat?"] * 2, 4, [5, 7]),
        (["<image>\nWhat?"], 4, [3101376431]),  # the first document once more: sha256 of "5/1"
        (["<image>\nWhat?", "What?"], 9, [6, 8]),
    ]
    assert pipe.calls[0]["max_tiles"] == 12 and "do_sample" not in pipe.calls[2]
    assert [kept[0] for kept in model.kept] == ["generate_until"] * 5


def test_sampling_and_marks(loaded):
    build, pipe = loaded
    build().generate_until([_request(0, "Here <image> is", temperature=0.5, top_p=1, num_beams=1, image_size=3)])
    [call] = pipe.calls
    assert (call["prompt"], call["do_sample"], call["temperature"], call["top_p"]) == (
        ["Here <image> is"],
        True,
        0.5,
        1.0,
    )
    assert "image_size" not in call


def test_pictures_are_files_in_the_answer(loaded, tmp_path):
    build, pipe = loaded
    model = build(mode="text_image", output_dir=str(tmp_path / "out"), num_inference_steps=3)
    requests = [_request(2, max_new_tokens=7, until=["\n\n"]), _request(3), _request(3)]
    files = [tmp_path / f"out/mmmu_val_test_{name}.png" for name in ("2", "3", "3-1")]
    assert [json.loads(answer) for answer in model.generate_until(requests)] == [
        {"text": f"{n}.", "images": [str(file)]} for n, file in enumerate(files, start=1)
    ]
    assert [Image.open(file).size for file in files] == [(22, 17), (64, 48), (64, 48)]
    given = {"mode": "text_image", "num_inference_steps": 3}
    for call in pipe.calls:  # and nothing of what the task says of answers
        assert {name: call[name] for name in call if name not in ("prompt", "image", "seed")} == given
    assert len({call["seed"][0] for call in pipe.calls}) == 3


def test_rounds_go_on_until_the_task_ends_them(loaded):
    build, pipe = loaded
    asked = []

    def to_text(document, previous_output, round_idx, previous_round_info):
        asked.append((list(previous_output), round_idx, previous_round_info))
        ended = round_idx == 2
        return None if ended else [Image.new("RGB", (8, 8))] * 2, "And?", ended, previous_output, f"info {round_idx}"

    args = ("What?", {"max_new_tokens": 3}, lambda document: document, to_text, 1, "mmmu_val", "test")
    assert build().generate_until_multi_round([SimpleNamespace(args=args)]) == [["1.", "2."]]
    assert asked == [(["1."], 1, None), (["1.", "2."], 2, "info 1")]
    assert [call["prompt"] for call in pipe.calls] == [
        ["<image>\nWhat?"],
        ["Image-1: <image>\nImage-2: <image>\nAnd?"],
    ]


def test_what_cannot_be_done_is_said(loaded, monkeypatch):
    build, _ = loaded
    with pytest.raises(ValueError, match="mode=pictures; expected one of text, image, text_image"):
        build(mode="pictures")
    with pytest.raises(ValueError, match="the task shows a int; expected pictures"):
        build().generate_until([_request(0, visuals=lambda document: [3])])
    with pytest.raises(NotImplementedError, match="generate_until form"):
        build().loglikelihood([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="several processes; start one, and give devices=all"):
        build()


def test_our_metadata_names_the_manifest(loaded, monkeypatch):
    metadata = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    module, _, name = metadata["entry-points"]["lmms_eval.models"]["internvlu_jax"].partition(":")
    registry = ModuleType("lmms_eval.models.registry_v2")
    registry.ModelManifest = lambda name, simple_class_path: (name, simple_class_path)
    monkeypatch.setitem(sys.modules, "lmms_eval.models", ModuleType("lmms_eval.models"))
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    plugin = sys.modules[module]
    assert getattr(plugin, name)() == ("internvlu_jax", f"{module}.{plugin.InternVLUJax.__name__}")


TASK = """
task: counting
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_visual: !function shown.visual
doc_to_text: "{{question}}"
doc_to_target: "answer"
generation_kwargs: {max_new_tokens: 8, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 0.0}
"""
SHOWN = """
from PIL import Image
def visual(document):
    return [Image.open(document["picture"]).convert("RGB")]
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed: internvlu-jax[lmms]")
def test_the_harness_itself(tmp_path):
    """The model in the box, by its command, on questions of its own world: answered as by the pipeline."""
    from internvlu_jax import InternVLUPipeline
    from internvlu_jax.small_world import SMALL, WorldSource

    source, pictures, rows = WorldSource(SMALL, {"general/picture": 1.0}, seed=1), [], []
    for number in range(3):
        picture = Image.fromarray(source.example(number).image.draw(64))
        picture.save(tmp_path / f"{number}.png")
        pictures.append(picture)
        rows.append(
            {"question": "How many circles are there?", "answer": "0", "picture": str(tmp_path / f"{number}.png")}
        )
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/counting.yaml").write_text(TASK % (tmp_path / "rows.jsonl"))
    (tmp_path / "tasks/shown.py").write_text(SHOWN)
    for mode in ("text", "image"):
        arguments = f"mode={mode},num_inference_steps=2,output_dir={tmp_path / 'drawn'}"
        command = f"--model internvlu_jax --tasks counting --batch_size 2 --log_samples --model_args {arguments}"
        places = ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / mode)]
        harness = [sys.executable, "-m", "lmms_eval", *command.split(), *places]
        subprocess.run(harness, check=True, timeout=600, cwd=tmp_path)
    found = [json.loads(line)["filtered_resps"] for line in _samples(tmp_path / "text")]
    pipe = InternVLUPipeline.from_pretrained()
    wanted = [pipe(rows[0]["question"], image=picture, max_new_tokens=8).text[0] for picture in pictures]
    assert found == [text.strip() for text in wanted]
    drawn = [json.loads(json.loads(line)["filtered_resps"])["images"] for line in _samples(tmp_path / "image")]
    assert [Image.open(file).size for [file] in drawn] == [(64, 64)] * 3


def _samples(folder):
    [file] = folder.rglob("*samples*.jsonl")
    return file.read_text().splitlines()
