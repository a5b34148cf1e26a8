"""A checkpoint or a run to the Hugging Face Hub, with a card of what it is."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import jax

from converters.checkpoint import PARTS
from converters.tensors import TensorReader
from internvlu_jax.checkpoints import loading, seals
from internvlu_jax.checkpoints.adapters import convert
from internvlu_jax.checkpoints.model_card import model_card
from internvlu_jax.checkpoints.model_directory import MARKER, TIME, is_model, stored_shapes
from internvlu_jax.checkpoints.run_checkpoints import last_intact, model_part
from internvlu_jax.checkpoints.run_directory import is_run, split_step

# What any of the three layouts consists of: left there, an older model would be found before the new one.
_REPLACED = [
    MARKER, TIME, seals.NAME, "arrays/*", "released/*", "adapter_*",
    *(f"{part.folder}/{name}" for part in PARTS.values() for name in ("*.safetensors", "*.index*.json", "adapter_*")),
]  # fmt: skip


def push_to_hub(
    source: str | Path, repo_id: str, *, to: str, private: bool = True, commit_message: str | None = None
) -> str:
    """Uploads a checkpoint, or what a run made, as one commit of a repository, which is made where there is none.

    It takes the place of what an upload before it brought, in whichever layout. A card that is there stays as it is.
    The files lie in the folder for temporary files meanwhile (TMPDIR moves it).
    Who is writing is known from `hf auth login`, or HF_TOKEN.

    Args:
        source: a directory in either layout, or of a run, or of a step of it.
        repo_id: ORG/NAME.
        to: the layout that is uploaded: "released", "orbax", or "peft" for the adapters of a run.
        private: of a repository that is made for it.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the source cannot be written so, or the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    root = loading.resolve(source)
    workdir, step = split_step(root)
    if step is None and is_run(workdir):
        step = last_intact(workdir / "checkpoints", model_part)  # once, for a run that is at work saves others
    made = None if step is None else (workdir, step)
    chosen = root if step is None else workdir / "checkpoints" / str(step)
    api = HfApi()
    with tempfile.TemporaryDirectory(prefix="internvlu-jax-") as folder:
        files = Path(folder) / "model"
        convert(chosen, files, to)
        card = model_card(repo_id, to, _numbers(files), made)
        own = files / "README.md"  # of the source, or of the model that the run began with
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if api.file_exists(repo_id, own.name):
                own.unlink(missing_ok=True)
            elif made is not None or not own.exists():
                own.write_text(card, encoding="utf-8")
            message = commit_message or f"Upload of {root.name}"
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=files, commit_message=message, delete_patterns=_REPLACED
            )
            return str(commit.commit_url)
        except Exception as error:  # of the client's transport, whose errors have nothing in common
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{repo_id} cannot be written on the Hub: {reason}. Check the name, the network and `hf auth login`"
            ) from error


def _numbers(files: Path) -> int:
    """How many numbers a directory's tensors hold."""
    if is_model(files):
        shapes = [leaf.shape for leaf in jax.tree.leaves(stored_shapes(files)[0])]
    else:
        shapes = [info.shape for info in TensorReader(sorted(files.rglob("*.safetensors"))).infos.values()]
    return sum(map(math.prod, shapes))
