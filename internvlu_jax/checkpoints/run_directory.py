"""Work directories of training runs: what a run was started with, and the model that its last checkpoint makes.

    WORKDIR/config.json      the run's configuration
    WORKDIR/start/           what it never changes, as a model directory, but with the arrays {"frozen", "extras"}
    WORKDIR/checkpoints/     what it changes (see `checkpoint.RunCheckpoints`)

The frozen parameters are written once. A checkpoint has the others, whole, so together they are the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from internvlu_jax.checkpoints import arrays as checkpoint
from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.config import InternVLUConfig
from internvlu_jax.config_files import read_config, write_config
from internvlu_jax.processing.tokenizer import Tokenizer

FORMAT = {"format": "internvlu_jax run", "version": 1}


def is_run(directory: str | Path) -> bool:
    """Whether the directory is one that `start_run` wrote."""
    return checkpoint.is_model(Path(directory) / "start")


def start_run(
    workdir: str | Path,
    config: dict[str, Any],
    model_config: InternVLUConfig,
    frozen: dict[str, Any],
    extras: dict[str, Any],
    tokenizer: Tokenizer,
    released: str | Path | None = None,
) -> None:
    """Writes down what a run starts from and never changes. The directory is a run once all of it is written.

    Args:
        config: the run's configuration as JSON; its entry "lora" is None or has "alpha" and "rank".
        frozen: the parameters that are not trained.
        released: a directory whose small files are kept; without it the configs and the tokenizer are written.

    Raises:
        CheckpointError: the directory holds a run or part of one, the disk is full, or writing failed.
    """
    root = Path(workdir).absolute()
    if (root / "start").exists() or checkpoint.saved_steps(root / "checkpoints"):
        raise CheckpointError(
            f"{root} holds a run, or part of one (start/, checkpoints/); take another work directory, or remove that"
        )
    arrays = {"frozen": frozen, "extras": extras}
    checkpoint.check_space(root, arrays)
    partial = root / ".start.partial"
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        _write_assets(partial / "released", model_config, tokenizer, released)
    checkpoint.barrier("start_run: begun")
    checkpoint.write_arrays(partial / "arrays", arrays)
    if jax.process_index() == 0:
        (partial / checkpoint.MARKER).write_text(json.dumps(FORMAT) + "\n", encoding="utf-8")
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (partial / "config.json").replace(root / "config.json")
        partial.rename(root / "start")
    checkpoint.barrier("start_run: ended")


def _write_assets(directory: Path, config: InternVLUConfig, tokenizer: Tokenizer, released: str | Path | None) -> None:
    if released is None:
        tokenizer.save(directory / "processor")
    else:
        checkpoint.copy_assets(released, directory)
    write_config(config, directory, released)


def config_differences(workdir: str | Path, config: dict[str, Any], may_change: Iterable[str] = ()) -> list[str]:
    """Where a configuration is not that of the run: "optimizer.learning_rate: 0.0001 -> 0.001", in order.

    Args:
        may_change: entries that are not compared, by the path of a value (data.threads) or of a group (mesh).

    Raises:
        ValueError: the run's configuration cannot be read.
    """
    stored = _leaves(_config(Path(workdir)))
    given = _leaves(json.loads(json.dumps(config)))
    free = tuple(may_change)
    return [
        f"{path}: {stored.get(path, 'nothing')} -> {given.get(path, 'nothing')}"
        for path in {**stored, **given}
        if stored.get(path) != given.get(path) and not any(f"{path}.".startswith(f"{name}.") for name in free)
    ]


def _leaves(tree: Any, path: str = "") -> dict[str, str]:
    """The values of a JSON object by path, as JSON."""
    if not isinstance(tree, dict | list) or not tree:
        return {path: json.dumps(tree)}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {p: value for name, node in items for p, value in _leaves(node, f"{path}.{name}".lstrip(".")).items()}


def _config(workdir: Path) -> dict[str, Any]:
    return checkpoint.read_json(workdir.absolute() / "config.json")


def restore_frozen(workdir: str | Path, like: Any) -> Any:
    """The parameters that a run never changes, bit for bit, with the shardings of `like`: arrays or shapes.

    Raises:
        ValueError: not a run, or they do not fit or cannot be read.
    """
    start = _start(workdir)
    extras = checkpoint.targets(checkpoint.array_shapes(start / "arrays")["extras"])
    wanted = {"frozen": checkpoint.targets_like(like), "extras": extras}
    return checkpoint.read_arrays(start / "arrays", wanted)["frozen"]


def load_run(
    workdir: str | Path, max_dtype: str | None = None, on_host: bool = False
) -> tuple[InternVLUConfig, dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """The model that the last checkpoint of a run holds: (config, params, extras, lora).

    The moving average is taken where the run keeps one. `lora` is the entry of the run's configuration; where it is not
    None, params have adapters (see `models.lora`), and none is cast so that the adapters can be merged without loss.

    Args:
        max_dtype, on_host: as for `checkpoint.load_model`.

    Raises:
        ValueError: not a run, or one that has no checkpoint yet, or that cannot be read.
    """
    start, last = _start(workdir), _newest(workdir)
    lora = _config(Path(workdir))["lora"]
    max_dtype = max_dtype if lora is None else None
    stored = checkpoint.array_shapes(start / "arrays")
    wanted = {
        "frozen": checkpoint.targets(stored["frozen"], max_dtype, on_host),
        "extras": checkpoint.targets(stored["extras"]),
    }
    arrays = checkpoint.read_arrays(start / "arrays", wanted)
    trained = checkpoint.read_arrays(last, checkpoint.targets(checkpoint.array_shapes(last), max_dtype, on_host))
    return read_config(start / "released"), _merged(arrays["frozen"], trained), arrays["extras"], lora


def run_shapes(workdir: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, extras) of a run's last checkpoint as `jax.ShapeDtypeStruct`; adapters are among the params."""
    stored = checkpoint.array_shapes(_start(workdir) / "arrays")
    return _merged(stored["frozen"], checkpoint.array_shapes(_newest(workdir))), stored["extras"]


def assets(workdir: str | Path) -> Path:
    """The directory with the configs and the tokenizer of a run, in the released layout."""
    return _start(workdir) / "released"


def _start(workdir: str | Path) -> Path:
    return checkpoint.checked(Path(workdir) / "start", FORMAT)


def _newest(workdir: str | Path) -> Path:
    """The newest parameters."""
    checkpoints = Path(workdir).absolute() / "checkpoints"
    steps = checkpoint.saved_steps(checkpoints)
    if not steps:
        raise CheckpointError(f"{checkpoints} has no checkpoint; the run has not saved a step yet")
    step = checkpoints / str(steps[-1])
    return step / ("ema" if (step / "ema").is_dir() else "params")


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return unflatten_dict({**flatten_dict(first), **flatten_dict(second)})
