"""Work directories of training runs: what a run was started with, and the model that its last checkpoint makes.

    WORKDIR/config.json      the run's configuration
    WORKDIR/command.txt      the command that began it
    WORKDIR/start/           what it never changes, as a model directory, but with the arrays {"frozen", "extras"},
                             base.json, {"hub": which repository of the Hub it began with or null}, and checksums of
                             everything
    WORKDIR/checkpoints/     what it changes (see `RunCheckpoints`)

The frozen parameters are written once. A checkpoint has the others, whole, so together they are the model. A work
directory may be one of a bucket, gs://BUCKET/NAME; there start/ is whole once its marker is in it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from internvlu_jax.checkpoints.arrays import (
    CheckpointError,
    array_shapes,
    read_arrays,
    targets,
    targets_like,
    write_arrays,
)
from internvlu_jax.checkpoints.model_directory import MARKER, checked, is_model
from internvlu_jax.checkpoints.run_checkpoints import (
    barrier,
    check_space,
    from_first,
    last_intact,
    model_part,
    saved_steps,
)
from internvlu_jax.checkpoints.seals import check_seal, seal
from internvlu_jax.config import InternVLUConfig
from internvlu_jax.config_files import check_types, read_config, write_assets
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.utils.buckets import filled, in_bucket, on_disk, path_of, remove_objects
from internvlu_jax.utils.files import read_object, write_json
from internvlu_jax.utils.tree import merge

FORMAT = {"format": "internvlu_jax run", "version": 1}
COMMAND = "command.txt"
_BASE = "base.json"


def is_run(directory: str | Path) -> bool:
    """Whether the directory is one that `start_run` wrote."""
    return is_model(path_of(directory) / "start")


def split_step(directory: str | Path) -> tuple[Path, int | None]:
    """(work directory, None), or (work directory, step) of one of its checkpoints, WORKDIR/checkpoints/STEP."""
    path = path_of(directory).absolute()
    for place in (path,) if in_bucket(path) else (path, path.resolve()):  # a link to a step is one
        if place.name.isdecimal() and place.parent.name == "checkpoints" and is_run(place.parents[1]):
            return place.parents[1], int(place.name)
    return path_of(directory), None


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

    What a run began with that has saved no step is written over: it may start from something else this time.

    Args:
        config: the run's configuration as JSON; its entry "lora" is None or has "alpha" and "rank", and "start" names
            the checkpoint that it begins with, if there is one.
        frozen: the parameters that are not trained.
        released: the assets of the model that the run starts from, see `config_files.write_assets`; without it the
            configs and the tokenizer are written.

    Raises:
        CheckpointError: the directory holds a run that has saved a step, or part of a run, the disk is full, or writing
            failed.
    """
    root = path_of(workdir).absolute()
    start = root / "start"
    partial = start if in_bucket(start) else root / ".start.partial"  # one name for all processes
    from_first(lambda: _clear(root, start, partial))
    arrays = {"frozen": frozen, "extras": extras}
    check_space(root, arrays)
    if jax.process_index() == 0:
        with filled(partial / "released") as files:
            if released is None:
                tokenizer.save(files / "processor")
            write_assets(model_config, files, released)
    barrier("start_run: begun")
    write_arrays(partial / "arrays", arrays)
    if jax.process_index() == 0:
        write_json(partial / _BASE, {"hub": hub_id(config.get("start"))})  # a relative path is one only here and now
        seal(partial)
        write_json(root / "config.json", config)
        write_json(partial / MARKER, FORMAT)
        if partial != start:
            partial.rename(start)
    barrier("start_run: ended")


def _clear(root: Path, start: Path, partial: Path) -> int:
    """Removes what was begun, and may have been killed in, before a step was saved; returns 0, for `from_first`."""
    if saved_steps(root / "checkpoints") or (start.exists() and not in_bucket(start) and not is_run(root)):
        raise CheckpointError(
            f"{root} holds a run, or part of one (start/, checkpoints/); take another work directory, or remove that"
        )
    if in_bucket(start):
        (start / MARKER).unlink(missing_ok=True)  # first, so that what is half removed is never taken for whole
        remove_objects(start)
        return 0
    shutil.rmtree(partial, ignore_errors=True)
    if start.exists():
        start.rename(partial)
        shutil.rmtree(partial)
    return 0


def hub_id(name: str | Path | None) -> str | None:
    """The name of a checkpoint if it is one of a Hub repository, ORG/NAME, and no directory here."""
    text = "" if name is None else str(name)
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) and not Path(text).exists()
    return text if is_id else None


def hub_base(workdir: str | Path) -> str | None:
    """The Hub repository that a run began with; None where it was a directory, or nothing.

    A run of before wrote down no more than the name, and a directory that is not here passes for a repository.

    Raises:
        ValueError: what the run wrote cannot be read.
    """
    note = path_of(workdir) / "start" / _BASE
    return read_object(note).get("hub") if note.is_file() else hub_id(stored_config(workdir).get("start"))


def config_differences(workdir: str | Path, config: dict[str, Any], may_change: Iterable[str] = ()) -> list[str]:
    """Where a configuration is not that of the run: "optimizer.learning_rate: 0.0001 -> 0.001", in order.

    Args:
        may_change: entries that are not compared, by the path of a value (data.threads) or of a group (mesh).

    Raises:
        ValueError: the run's configuration cannot be read.
    """
    stored = _leaves(stored_config(workdir))
    given = _leaves(json.loads(json.dumps(config)))
    # A run from before there was `head_sources` gave the head both signals, which has two spellings now.
    both = "head_sources" not in stored and given.get("head_sources") in ("null", '"both"')
    free = (*may_change, *(("head_sources",) if both else ()))
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


def stored_config(workdir: str | Path) -> dict[str, Any]:
    """A run's configuration (`with_present_names`). Raises ValueError if it cannot be read."""
    path = path_of(workdir).absolute() / "config.json"
    config = read_object(path)
    groups = ("objective", "data", "compute")
    if any(not isinstance(config.get(name) or {}, dict) for name in groups):
        raise ValueError(f"{path} is damaged; expected an object with objects {', '.join(groups)}")
    return with_present_names(config)


def with_present_names(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration as it would be written today, whenever it was written.

    objective.draws is objective.noises_per_image, objective.text_weight and flow_weight are objective.weights,
    data.condition_latents is head_sources, every run trained with compute.layers "scan", and every optimizer was Adam.
    """
    config = _with_matrices(config)
    objective, data = dict(config.get("objective") or {}), dict(config.get("data") or {})
    if "draws" in objective:
        objective["noises_per_image"] = objective.pop("draws")
    if "text_weight" in objective:
        weights = [["text", objective.pop("text_weight")], ["flow", objective.pop("flow_weight", None)]]
        objective["weights"] = [term for term in weights if term[1]]  # what is not named is not computed
    if data.pop("condition_latents", True) is False:
        config["head_sources"] = "context"
    compute = {"layers": "scan", **(config.get("compute") or {})}
    groups = {"objective": objective, "data": data, "compute": compute}
    return config | {name: group for name, group in groups.items() if name in config}


def _with_matrices(tree: dict[str, Any]) -> dict[str, Any]:
    """With `OptimizerConfig.matrices` in every optimizer, wherever a kind of run keeps its own."""
    named = {name: _with_matrices(node) if isinstance(node, dict) else node for name, node in tree.items()}
    if isinstance(own := named.get("optimizer"), dict):
        named["optimizer"] = {"matrices": "adam", **own}
    return named


def restore_frozen(workdir: str | Path, like: Any) -> Any:
    """The parameters that a run never changes, bit for bit, with the shardings of `like`: arrays or shapes.

    Raises:
        ValueError: not a run, or they do not fit or cannot be read.
    """
    start = _start(workdir)
    from_first(lambda: _check_start(start))
    extras = targets(array_shapes(start / "arrays")["extras"])
    return read_arrays(start / "arrays", {"frozen": targets_like(like), "extras": extras})["frozen"]


def load_run(
    workdir: str | Path, step: int | None = None, max_dtype: str | None = None, on_host: bool = False
) -> tuple[InternVLUConfig, dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """The model that a checkpoint of a run holds: (config, params, extras, lora).

    The moving average is taken where the run keeps one. `lora` is the entry of the run's configuration; where it is not
    None, params have adapters (see `models.lora`), and none is cast so that the adapters can be merged without loss.

    Args:
        step: of the checkpoint; None is the last, or where that is damaged the one before it, which one line says.
        max_dtype, on_host: as for `model_directory.load_model`.

    Raises:
        ValueError: not a run, or one that has no checkpoint yet, or that cannot be read or is damaged.
    """
    start = _start(workdir)
    last = _trained(workdir, step)
    lora = stored_config(workdir)["lora"]
    _check_start(start)
    max_dtype = max_dtype if lora is None else None
    stored = array_shapes(start / "arrays")
    specs = {
        "frozen": targets(stored["frozen"], max_dtype, on_host),
        "extras": targets(stored["extras"]),
    }
    arrays = read_arrays(start / "arrays", specs)
    trained = read_arrays(last, targets(array_shapes(last), max_dtype, on_host))
    return model_config(workdir), merge(arrays["frozen"], trained), arrays["extras"], lora


def trained_time(workdir: str | Path) -> str | None:
    """What the head's time was rounded to in a run (`Compute.time`). Raises ValueError if it cannot be read."""
    compute = stored_config(workdir).get("compute") or {}
    return compute.get("time") or compute.get("dtype")


def load_trained(workdir: str | Path, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what a run trains, on the host; its configuration). Of the last intact checkpoint, or of a step; as `load_run`.

    Raises:
        ValueError: as `load_run`.
    """
    _start(workdir)
    last = _trained(workdir, step)
    return read_arrays(last, targets(array_shapes(last))), stored_config(workdir)


def run_shapes(workdir: str | Path, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, extras) of a run's checkpoint, the last if no other, as `jax.ShapeDtypeStruct`, with its adapters."""
    stored = array_shapes(_start(workdir) / "arrays")
    return merge(stored["frozen"], array_shapes(_parameters(workdir, step))), stored["extras"]


def model_config(workdir: str | Path) -> InternVLUConfig:
    """The configuration of the model that a run trains.

    Raises:
        ValueError: not a run, or a file cannot be read.
    """
    files = assets(workdir)
    check_types(files)
    config, sources = read_config(files), stored_config(workdir).get("head_sources")
    if sources is None:
        return config
    return replace(config, generation_decoder=replace(config.generation_decoder, sources=sources))


def assets(workdir: str | Path) -> Path:
    """A directory on a disk with the configs and the tokenizer of a run, in the released layout."""
    return on_disk(_start(workdir) / "released")


def _start(workdir: str | Path) -> Path:
    return checked(path_of(workdir) / "start", FORMAT)


def _check_start(start: Path) -> int:
    """Raises CheckpointError if what a run began with is not as it was written; returns 0, for `from_first`."""
    for part in ("arrays", "released"):
        check_seal(start, part)
    return 0


def _trained(workdir: str | Path, step: int | None) -> Path:
    """The parameters of a step, or of the last that is intact, looked at byte by byte."""
    if step is None:
        return _parameters(workdir, last_intact(path_of(workdir).absolute() / "checkpoints", model_part))
    chosen = _parameters(workdir, step)
    check_seal(chosen.parent, chosen.name)
    return chosen


def _parameters(workdir: str | Path, step: int | None) -> Path:
    """Those of a step, or of the last."""
    checkpoints = path_of(workdir).absolute() / "checkpoints"
    steps = saved_steps(checkpoints)
    if not steps:
        raise CheckpointError(f"{checkpoints} has no checkpoint; the run has not saved a step yet")
    saved = checkpoints / str(steps[-1] if step is None else step)
    return saved / model_part(saved)
