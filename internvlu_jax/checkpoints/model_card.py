"""The card of a model on the Hub, written from what a run has written about itself.

Nothing in it is guessed: what the model is for, its limits and its license are left to whoever shares it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from internvlu_jax.checkpoints import run_directory

_ROWS = 6  # of the table of losses
_SHOWN = ("loss", "flow_loss", "text_loss", "valid_loss")
_USE = {
    "peft": """from internvlu_jax import InternVLUPipeline

pipe = InternVLUPipeline.from_pretrained({base!r})
pipe.load_lora_weights({name!r})""",
    "released": """from internvlu_jax import InternVLUPipeline

pipe = InternVLUPipeline.from_pretrained({name!r})""",
}
_USE["orbax"] = _USE["released"]


def model_card(name: str, layout: str, parameters: int, made: tuple[Path, int] | None) -> str:
    """A card in Markdown.

    Args:
        name: of the repository, ORG/NAME.
        layout: "released", "orbax" or "peft". parameters: how many numbers the files hold.
        made: work directory and step of the run that made it; None of a checkpoint that no run made here.

    Raises:
        ValueError: what the run wrote cannot be read.
    """
    run = {} if made is None else _without_places(run_directory.stored_config(made[0]))
    hub = None if made is None else run_directory.hub_base(made[0])
    what = "Low-rank adapters (LoRA)" if layout == "peft" else "A model"
    parts = [
        _front_matter(layout, hub),
        f"# {name}",
        f"{what} of the InternVL-U kind, {parameters:,} parameters, made with internvlu_jax.",
        "**License, intended use and limits are not stated yet; whoever shares this model writes them here.**",
        "## Use",
        f"```python\n{_USE[layout].format(name=name, base=hub or 'the model that it was trained on')}\n```",
    ]
    if made is not None:
        workdir, step = made
        parts += ["## Training", _facts(run, step), *_losses(workdir, step), *_command(workdir)]
        whole = json.dumps(run, indent=2, ensure_ascii=False)
        parts.append(f"<details><summary>Whole configuration</summary>\n\n```json\n{whole}\n```\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _front_matter(layout: str, base: str | None) -> str:
    lines = ["---", "# license:", "library_name: " + ("peft" if layout == "peft" else "internvlu_jax")]
    lines += [f"base_model: {base}"] if base else []
    return "\n".join([*lines, "pipeline_tag: any-to-any", "tags: [internvl-u, jax]", "---"])


def _facts(run: Mapping[str, Any], step: int) -> str:
    """What was trained, on what, and how."""
    data, objective, optimizer, lora = (run.get(name) or {} for name in ("data", "objective", "optimizer", "lora"))
    sources = ", ".join(f"{source} ({weight:g})" for source, weight in data.get("sources", ()))
    losses = ", ".join(f"{term} {weight:g}" for term, weight in objective.get("weights", ()))
    batch, accumulate = data.get("batch_size"), run.get("accumulate")
    facts = {
        "configuration": run.get("name"),
        "started from": run.get("start") or f"nothing (`{run.get('model')}`)",
        "steps": step,
        "data (weight)": sources,
        "pictures a step": f"{batch} x {accumulate}",
        "losses (weight)": losses,
        "learning rate": f"{optimizer.get('learning_rate')}, {optimizer.get('schedule')}",
        "trained": "; ".join(f"`{pattern}` x {rate:g}" for pattern, rate in optimizer.get("rates", ()) if rate),
        "adapters": f"rank {lora['rank']}, alpha {lora['alpha']:g}, `{lora['pattern']}`" if lora else None,
        "moving average": optimizer.get("ema"),
        "computed in": (run.get("compute") or {}).get("dtype"),
        "seed": run.get("seed"),
    }
    return _table(("", ""), [(name, value) for name, value in facts.items() if value not in (None, "")])


def _losses(workdir: Path, step: int) -> list[str]:
    """A few lines of the file of metrics up to a step, evenly spread, the first and the last among them."""
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")  # a run that was killed leaves a last line without its end
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        done = [line for line in lines if line["step"] <= step]
        names = [name for name in _SHOWN if any(name in line for line in done)]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of metrics: {error}") from error
    if not done:
        return []
    count = min(_ROWS, len(done))
    chosen = [done[round(i * (len(done) - 1) / max(1, count - 1))] for i in range(count)]
    rows = [(line["step"], *(f"{line[name]:.4f}" if name in line else "" for name in names)) for line in chosen]
    return ["### Losses", _table(("step", *names), rows)]


def _command(workdir: Path) -> list[str]:
    path = workdir / run_directory.COMMAND
    if not path.is_file():
        return []
    words = shlex.split(path.read_text(encoding="utf-8"))
    return ["### Command", f"```bash\n{shlex.join(_without_word(word) for word in words)}\n```"]


def _without_word(word: str) -> str:
    """A word of a command; what follows a "=" is one of its own."""
    option, equals, value = word.partition("=")
    return f"{option}={_without_places(value)}" if equals and option.startswith("--") else _without_places(word)


def _table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")


def _without_places(value: Any) -> Any:
    """JSON whose absolute paths are cut to their last part: where something lies on a machine is nobody's business."""
    if isinstance(value, dict):
        return {name: _without_places(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_without_places(child) for child in value]
    if not isinstance(value, str):
        return value
    windows = PureWindowsPath(value)
    is_place = value.startswith(("/", "~", "gs://")) or windows.is_absolute()
    return windows.name if is_place else value
