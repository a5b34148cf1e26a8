"""`adapter_config.json` of PEFT: what of it says how large an update is, and what says that it is none of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.engine import ConversionError
from internvlu_jax.utils.files import read_json

# Read here, or without a meaning for a model that is only used: where modules were found, how training began and went.
_READ = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "peft_type", "bias", "init_lora_weights")
_WITHOUT_MEANING = (
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "runtime_config",
    "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "ensure_weight_tying", "parent_library",
)  # fmt: skip
# Ways to begin that leave the weights beside the factors as they are; others (pissa, olora, ...) take something off.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Settings:
    """Rank and scale of each module's update, by its name in the file."""

    r: int
    alpha: float
    rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank(self, module: str) -> int:
        return _matching(self.ranks, module, self.r)

    def scale(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) where ranks are stabilised (rsLoRA, arXiv 2312.03732)."""
        rank = self.rank(module)
        return _matching(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that a module's name, or the end of it after a dot, matches."""
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def read_settings(path: Path) -> tuple[Settings, list[str]]:
    """The settings of an adapter, and all in its file that a low-rank update of linear maps cannot say, by name.

    A setting that this code does not know is refused where it says something.

    Raises:
        ConversionError: there is no such file, or it is damaged.
    """
    if not path.exists():
        raise ConversionError(f"{path.parent} is no adapter: expected {path.name} and adapter_model.safetensors in it")
    stored = read_json(path)
    try:
        settings = Settings(
            r=_positive(stored, "r", 8),
            alpha=_number(stored.get("lora_alpha", 8)),
            rslora=bool(stored.get("use_rslora")),
            ranks={_pattern(key): _positive({key: n}, key, 0) for key, n in (stored.get("rank_pattern") or {}).items()},
            alphas={_pattern(key): _number(n) for key, n in (stored.get("alpha_pattern") or {}).items()},
        )
    except (TypeError, AttributeError, re.error) as error:
        raise ConversionError(f"{path} is damaged: {error}") from error
    known = (*_READ, *_WITHOUT_MEANING)
    refused = [f"{name} {value!r:.60}" for name, value in stored.items() if name not in known and _says(value)]
    refused += [f"peft_type {stored.get('peft_type')!r}"] if stored.get("peft_type") != "LORA" else []
    refused += [f"bias {stored['bias']!r}"] if stored.get("bias") not in (None, "none") else []
    start = stored.get("init_lora_weights")
    refused += (
        [f"init_lora_weights {start!r}, which changes the weights beside it"] if start not in _PLAIN_STARTS else []
    )
    return settings, refused


def _says(value: Any) -> bool:
    return value is not None and value is not False and value not in ([], {}, "")


def _positive(stored: Mapping[str, Any], name: str, default: int) -> int:
    value = stored.get(name, default)
    if type(value) is not int or value < 1:
        raise TypeError(f"the rank {name} is {value!r}; expected an integer of at least 1")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"alpha is {value!r}; expected a number")
    return float(value)


def _pattern(key: str) -> str:
    return re.compile(key).pattern
