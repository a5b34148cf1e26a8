"""To the Hub, with a stand-in for it: what is uploaded loads again, and the card says what the run wrote, no more."""

import json
import shutil
from types import SimpleNamespace
from unittest.mock import create_autospec

import jax
import numpy as np
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import load_file

from converters.adapters import read_adapter
from internvlu_jax.checkpoints import loading, run_directory
from internvlu_jax.checkpoints.adapters import convert
from internvlu_jax.checkpoints.model_card import _without_places, model_card
from internvlu_jax.checkpoints.model_directory import save_model
from internvlu_jax.checkpoints.sharing import push_to_hub
from internvlu_jax.cli import main
from internvlu_jax.presets import debug_config
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.utils.tree import paths
from tests.checkpoints.test_adapters import model, run  # noqa: F401
from tests.checkpoints.test_run_directory import RELEASED


class Hub:
    """Repositories in a folder; `api` takes the arguments that the real one takes."""

    def __init__(self, root) -> None:
        self.root, self.calls, self.api = root, [], create_autospec(HfApi, instance=True)

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.calls.append((repo_id, private))
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def file_exists(self, repo_id, name):
        return (self.root / repo_id / name).exists()

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
        files = [path for path in (self.root / repo_id).rglob("*") if path.is_file()]
        there = {str(path.relative_to(self.root / repo_id)): path for path in files}
        for name in filter_repo_objects(there, allow_patterns=delete_patterns):
            there[name].unlink()
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1 {commit_message}")

    def snapshot_download(self, repo_id, *, allow_patterns):
        """Of the files that match, links to what lies elsewhere."""
        files = [path.relative_to(self.root / repo_id) for path in (self.root / repo_id).rglob("*") if path.is_file()]
        snapshot = self.root / "snapshots" / repo_id
        for name in filter_repo_objects(map(str, files), allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(self.root / repo_id / name)
        return str(snapshot)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path / "hub")
    for name in ("create_repo", "file_exists", "upload_folder"):
        getattr(made.api, name).side_effect = getattr(made, name)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made.api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
    return made


def front(card: str) -> dict[str, str]:
    """The fields between the two lines of dashes."""
    lines = card.split("---\n")[1].splitlines()
    return dict(line.split(": ", 1) for line in lines if not line.startswith("#"))


def test_adapters_of_a_run(hub, model, run, capsys):  # noqa: F811
    """The card: data and command without the places of this machine, losses of the first step and the uploaded one.

    The run was to make more steps than it saved, and made more of them, too.
    """
    config = json.loads((run / "config.json").read_text())
    config |= {
        "name": "finetune", "steps": 50, "seed": 7, "accumulate": 4, "model": "x",
        "data": {"sources": [["/home/somebody/my own/mine.jsonl", 1.0]], "batch_size": 8},
        "objective": {"weights": [["text", 1.0], ["flow", 20.0]]},
        "optimizer": {"learning_rate": 1e-4, "schedule": "cosine", "rates": [[".*/lora_[ab]|x", 1.0], [".*", 0.0]]},
    }  # fmt: skip
    (run / "config.json").write_text(json.dumps(config))
    (run / "command.txt").write_text(
        "python -m experiments.train finetune --start=/home/somebody/x "
        "--data.sources '/home/somebody/my own/mine.jsonl' 1\n"
    )
    (run / "checkpoints/1").rename(run / "checkpoints/32")
    lines = [{"step": n, "loss": 2 / n, "flow_loss": 1 / n, "rate": 1e-4} for n in range(1, 41)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["push", str(run), "ORG/NEW", "--to", "peft", "--message", "first"]) == 0
    assert capsys.readouterr().out.strip() == "https://hub/ORG/NEW/commit/1 first"
    assert hub.calls == [("ORG/NEW", True)]
    folder = hub.root / "ORG/NEW"
    settings = json.loads((folder / "generation_decoder/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "ORG/NAME"
    assert list(read_adapter(folder, model.config)) and not (folder / "config.json").exists()
    card = (folder / "README.md").read_text()
    assert front(card)["base_model"] == "ORG/NAME" and "\n# license:\n" in card
    assert "pipe.load_lora_weights('ORG/NEW')" in card and "from_pretrained('ORG/NAME')" in card
    for line in (
        "| steps | 32 |", "| data (weight) | mine.jsonl (1) |", "| losses (weight) | text 1, flow 20 |", "| seed | 7 |",
        "| pictures a step | 8 x 4 |", "| trained | `.*/lora_[ab]\\|x` x 1 |", "| step | loss | flow_loss |",
        "| 1 | 2.0000 | 1.0000 |", "| 32 | 0.0625 | 0.0312 |", "| started from | ORG/NAME |",
        "python -m experiments.train finetune --start=x --data.sources mine.jsonl 1",
    ):  # fmt: skip
        assert line in card, line
    assert "| 40 |" not in card and "somebody" not in card and str(run.parent) not in card


def test_a_directory_that_a_run_began_with_is_no_base(tmp_path, monkeypatch):
    """Wherever the card is written, and whether the directory is still there; of runs of before it cannot be known."""
    (tmp_path / "runs/2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    tokenizer, arrays = Tokenizer.from_directory(RELEASED / "processor"), {"head": {"bias": np.zeros(1)}}
    for name, start in (("a", "runs/2"), ("b", "ORG/NAME"), ("c", None)):
        config = {"lora": None, "start": start}
        run_directory.start_run(tmp_path / name, config, debug_config(), arrays, {}, tokenizer, RELEASED)
    (tmp_path / "runs/2").rmdir()
    (tmp_path / "ORG/NAME").mkdir(parents=True)

    def base(name):
        return front(model_card("me/x", "peft", 1, (tmp_path / name, 1))).get("base_model")

    assert [base(name) for name in "abc"] == [None, "ORG/NAME", None]
    for name in "abc":
        (tmp_path / name / "start/base.json").unlink()
    assert [base(name) for name in "abc"] == ["runs/2", None, None]


@pytest.mark.parametrize(("first", "then"), [("orbax", "released"), ("released", "orbax"), ("orbax", "orbax")])
def test_a_second_upload_takes_the_place_of_the_first(hub, tmp_path, first, then):
    """Whose files would be found before the new ones, or downloaded for ever; what is no model's stays."""
    other = loading.load(RELEASED)
    scaled = {**other.params, "head": jax.tree.map(lambda leaf: leaf * 2, other.params["head"])}
    save_model(tmp_path / "new", other.config, scaled, other.extras, other.assets)
    push_to_hub(RELEASED, "me/x", to=first)
    (hub.root / "me/x/sheet.png").write_bytes(b"mine")
    (hub.root / "me/x/vlm").mkdir(exist_ok=True)
    (hub.root / "me/x/vlm/model-00001-of-00002.safetensors").write_bytes(b"of a shard")
    push_to_hub(tmp_path / "new", "me/x", to=then)
    got, want = (paths(loading.load(place).params) for place in ("me/x", tmp_path / "new"))
    assert all(np.array_equal(got[path], want[path]) for path in want)
    convert(tmp_path / "new", tmp_path / "alone", then)
    files = {str(path.relative_to(hub.root / "me/x")) for path in (hub.root / "me/x").rglob("*.safetensors")}
    assert files == {str(path.relative_to(tmp_path / "alone")) for path in (tmp_path / "alone").rglob("*.safetensors")}
    assert (hub.root / "me/x/sheet.png").exists() and (hub.root / "me/x/README.md").exists()


def test_a_card_that_is_there_stays(hub, capsys):
    """The repository's before all, then that of a checkpoint; what has none gets a short one."""
    (hub.root / "ORG/OLD").mkdir(parents=True)
    (hub.root / "ORG/OLD/README.md").write_text("mine")
    assert main(["push", str(RELEASED), "ORG/OLD", "--to", "orbax", "--public"]) == 0
    assert hub.calls == [("ORG/OLD", False)] and (hub.root / "ORG/OLD/README.md").read_text() == "mine"
    got, want = (paths(loading.load(place).params) for place in ("ORG/OLD", RELEASED))
    assert got.keys() == want.keys() and all(np.array_equal(got[path], want[path]) for path in got)
    assert main(["push", str(RELEASED), "ORG/NEW", "--to", "released"]) == 0
    card = (hub.root / "ORG/NEW/README.md").read_text()
    count = sum(array.size for file in RELEASED.rglob("*.safetensors") for array in load_file(file).values())
    assert f"{count:,} parameters" in card and "## Training" not in card and "license" in card


def test_what_cannot_be_uploaded(hub, tmp_path, capsys):
    for arguments, words in (
        ([str(RELEASED), "no/such/name", "--to", "orbax"], "no/such/name"),
        ([str(tmp_path / "none"), "ORG/NEW", "--to", "orbax"], "there is no directory"),
        ([str(RELEASED), "ORG/NEW", "--to", "peft"], "takes a run that trained adapters"),
    ):
        assert main(["push", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert not hub.calls

    answer = SimpleNamespace(headers={}, request=None)
    hub.api.create_repo.side_effect = HfHubHTTPError("401 Client Error\nmore", response=answer)
    assert main(["push", str(RELEASED), "ORG/NEW", "--to", "orbax"]) == 2
    assert "ORG/NEW cannot be written on the Hub: 401 Client Error. Check" in capsys.readouterr().err

    class ConnectError(Exception):  # as of the Hub's client where there is no network
        pass

    hub.api.create_repo.side_effect = ConnectError("[Errno 111] Connection refused")
    assert main(["push", str(RELEASED), "ORG/NEW", "--to", "orbax"]) == 2
    assert "ORG/NEW cannot be written on the Hub: [Errno 111] Connection refused. Check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/me/a b.jsonl", "a b.jsonl"), ("/data/t2i/", "t2i"), ("~/x/y", "y"), ("C:\\me\\z.png", "z.png"),
        ("ORG/NAME", "ORG/NAME"), ("runs/1", "runs/1"), ("https://a.b/c", "https://a.b/c"), ("head/.*/(q|k)",) * 2,
        ("gs://bucket/run", "run"), (["--start=/a/b", {"x": ("/a/b", 1)[0]}], ["--start=/a/b", {"x": "b"}]),
    ],
)  # fmt: skip
def test_absolute_paths_are_cut(text, left):
    assert _without_places(text) == left
