"""From a run's configuration to what the loop needs: model, step, data and state, checked before anything compiles."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internvlu_jax import loading
from internvlu_jax.config import PRESETS, Compute, ConfigError, InternVLUConfig
from internvlu_jax.data.loader import Loader
from internvlu_jax.models import lora
from internvlu_jax.models.internvlu import modules, param_shapes
from internvlu_jax.parallel import Executor
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.losses import Objective
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.step import Step, TrainState
from internvlu_jax.training.tree import Tree

# Target positions whose logits one device holds at once: 620 MB at 151,936 entries.
_CHUNK = 1024


@dataclass(frozen=True)
class Origin:
    """The model that a run starts from.

    params: host arrays, or None where they are made up at random.
    small_files: a directory with its tokenizer and config files, or None for a preset.
    """

    config: InternVLUConfig
    tokenizer: Tokenizer
    params: Tree | None
    extras: dict[str, Any]
    small_files: Path | None


def origin(cfg: TrainConfig) -> Origin:
    """The preset or the checkpoint that `cfg` names.

    A preset has the byte-level tokenizer, which any vocabulary holds.

    Raises:
        ConfigError, ValueError: there is no such preset, or the checkpoint cannot be loaded.
    """
    if cfg.start is not None:
        model = loading.load(cfg.start, place=np.asarray)
        tokenizer = Tokenizer.from_directory(model.small_files / "processor")
        return Origin(model.config, tokenizer, model.params, model.extras, model.small_files)
    if cfg.model not in PRESETS:
        raise ConfigError(f"model is {cfg.model!r}; expected one of {', '.join(PRESETS)}, or a checkpoint as `start`")
    return Origin(PRESETS[cfg.model](), Tokenizer.byte_level(), None, {}, None)


def make_step(cfg: TrainConfig, found: Origin, shards: int) -> Step:
    """The step of a run on `shards` groups of devices that share the rows.

    Raises:
        ConfigError: rules or adapters do not fit the model.
    """
    shapes = param_shapes(found.config) if found.params is None else found.params
    scale = None
    if cfg.lora is not None:
        shapes = jax.eval_shape(lambda key: _with_adapters(cfg, shapes, key), jax.random.key(0))
        scale = cfg.lora.alpha / cfg.lora.rank
    config = dataclasses.replace(found.config, files={})
    special = found.tokenizer.special_table_ids
    objective = Objective(config, cfg.compute, cfg.objective, special, _CHUNK * shards, scale)
    return Step(objective, cfg.optimizer, factors(shapes, cfg.optimizer), cfg.steps)


def _with_adapters(cfg: TrainConfig, params: Tree, key: jax.Array) -> Tree:
    assert cfg.lora is not None
    return lora.add(params, cfg.lora.pattern, cfg.lora.rank, key)


def make_loader(cfg: TrainConfig, found: Origin, executor: Executor) -> Loader:
    """The run's data on this process."""
    return Loader(found.config, found.tokenizer, cfg.data, seed=cfg.seed, accumulate=cfg.accumulate, rows=executor.rows)


def state_shapes(cfg: TrainConfig, found: Origin, step: Step) -> TrainState:
    """The state as shapes, nothing allocated."""
    shapes = param_shapes(found.config) if found.params is None else found.params
    return jax.eval_shape(lambda params, key: _first_state(cfg, step, params, key), shapes, jax.random.key(0))


def first_state(cfg: TrainConfig, found: Origin, step: Step, executor: Executor) -> TrainState:
    """The state before the first step, born where the executor keeps it."""
    key = jax.random.key(cfg.seed)
    params = executor.place(found.params) if found.params is not None else random_params(found.config, key, executor)
    return executor.init(lambda p, k: _first_state(cfg, step, p, k), params, jax.random.fold_in(key, 1))


def _first_state(cfg: TrainConfig, step: Step, params: Tree, key: jax.Array) -> TrainState:
    return step.init(params if cfg.lora is None else _with_adapters(cfg, params, key))


def random_params(config: InternVLUConfig, key: jax.Array, executor: Executor) -> Tree:
    """Random float32 parameters, each part by a program of its own because one for all compiles far longer."""
    parts = modules(config, Compute())
    return {
        name: executor.init(lambda k, m=module: m.init(k, method="build")["params"], jax.random.fold_in(key, n))
        for n, (name, module) in enumerate(parts.items())
    }


def state_bytes(shapes: Any) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(shapes))
