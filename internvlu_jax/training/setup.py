"""From a run's configuration to what the loop needs: model, step, data and state, checked before anything compiles."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters.engine import on_host
from internvlu_jax.checkpoints import loading, run_directory
from internvlu_jax.checkpoints.run_checkpoints import RunCheckpoints
from internvlu_jax.config import Compute, ConfigError, InternVLUConfig
from internvlu_jax.config_files import read_config
from internvlu_jax.data.loader import Loader
from internvlu_jax.data.prefetch import Prefetcher
from internvlu_jax.data.sources import is_precomputed
from internvlu_jax.data.workers import WorkerLoader
from internvlu_jax.models import lora
from internvlu_jax.models.internvlu import InternVLU, modules, param_shapes
from internvlu_jax.parallel.executors import Executor
from internvlu_jax.presets import PRESETS
from internvlu_jax.processing import chat
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.losses import TERMS, Objective
from internvlu_jax.training.optimizer import Factors, factors
from internvlu_jax.training.step import Step, TrainState
from internvlu_jax.utils.tree import Tree, merge, paths, split

log = logging.getLogger("internvlu_jax.training")

# Target positions whose logits one device holds at once: 620 MB at 151,936 entries.
_CHUNK = 1024


@dataclass(frozen=True)
class InitialModel:
    """The model that a run trains.

    shapes: of its parameters, adapters among them, with the dtypes they start with. params: host arrays, or None where
    they are made up at random or come from the run's own checkpoint. assets: a directory with its tokenizer and
    config files, or None for a preset.
    """

    config: InternVLUConfig
    tokenizer: Tokenizer
    shapes: Tree
    params: Tree | None
    extras: dict[str, Any]
    assets: Path | None


def initial_model(cfg: TrainConfig, resumed: Path | None = None) -> InitialModel:
    """What `cfg` starts from, or the model of the run in the directory `resumed`.

    A preset has a byte-level tokenizer, which any vocabulary holds.

    Raises:
        ConfigError, ValueError: there is no such preset, or the checkpoint cannot be loaded.
    """
    model = _resumed(resumed) if resumed is not None else _started(cfg)
    if cfg.head_sources is None:
        return model
    head = dataclasses.replace(model.config.generation_decoder, sources=cfg.head_sources)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, generation_decoder=head))


def _resumed(workdir: Path) -> InitialModel:
    files = run_directory.assets(workdir)
    shapes, extras = run_directory.run_shapes(workdir)
    tokenizer = Tokenizer.from_directory(files / "processor")
    return InitialModel(read_config(files), tokenizer, shapes, None, extras, files)


def _started(cfg: TrainConfig) -> InitialModel:
    if cfg.start is not None:
        model = loading.load(cfg.start, place=on_host)
        shapes = _adapted_shapes(cfg, jax.eval_shape(lambda: model.params))
        return InitialModel(model.config, model.tokenizer, shapes, model.params, model.extras, model.assets)
    if cfg.model not in PRESETS:
        raise ConfigError(f"model is {cfg.model!r}; expected one of {', '.join(PRESETS)}, or a checkpoint as `start`")
    config = PRESETS[cfg.model]()
    if PRESETS[cfg.model] is InternVLUConfig:  # small ones may: they are there to try things out
        raise ConfigError(
            f"start is None, and the vae of {cfg.model}, which no run trains, would stay at random numbers; expected "
            "--start CHECKPOINT, such as InternVL-U/InternVL-U (the released weights) or another run's work directory"
        )
    shapes = _adapted_shapes(cfg, param_shapes(config))
    return InitialModel(config, Tokenizer.byte_level(chat.FIXED_TEXTS), shapes, None, {}, None)


def make_step(cfg: TrainConfig, initial: InitialModel, shards: int) -> Step:
    """The step of a run whose rows are shared out over `shards` groups of devices.

    Raises:
        ConfigError: rules or adapters do not fit the model or train the VAE, or a term of the loss is not known.
    """
    unknown = [name for name, _ in cfg.objective.weights if name not in TERMS]
    if unknown:
        raise ConfigError(f"objective.weights names {', '.join(unknown)}; expected terms among {', '.join(TERMS)}")
    scale = None if cfg.lora is None else cfg.lora.alpha / cfg.lora.rank
    model = InternVLU(initial.config, initial.tokenizer.special_table_ids, cfg.compute, scale)
    objective = Objective(model, cfg.objective, _CHUNK * shards)
    rules = factors(initial.shapes, cfg.optimizer)
    if any(rules.is_trained(path) for path in rules.rates if path.startswith("vae/")):
        raise ConfigError(
            "optimizer.rates trains vae, which no term of the loss reaches: weight decay alone would move it; expected "
            "rules that begin with 'vae/.*' 0"
        )
    return Step(objective, cfg.optimizer, rules, cfg.steps)


def check_computed(cfg: TrainConfig, rules: Factors) -> None:
    """Raises ConfigError where a source holds latents and contexts (`experiments.precompute`) of parts that the run
    changes: it would go on drawing from what they were."""
    moving = rules.trained_beside_head()
    for path, _ in (*cfg.data.sources, *cfg.validation.sources) if moving else ():
        if is_precomputed(path):
            raise ConfigError(
                f"{path} holds what was computed beforehand, and {cfg.name} trains {', '.join(moving)}, on which that "
                "depends; expected the records themselves, or --optimizer.rates 'head/.*' 1 '.*' 0"
            )


def warn_of_sizes(cfg: TrainConfig, config: InternVLUConfig) -> None:
    """Says which pictures are trained on that the pipeline refuses to draw with the model."""
    limits = config.processor.image_gen_processor_kwargs
    most = min(limits.max_length or math.inf, math.isqrt(limits.max_pixels))
    beyond = [str(side) for side in cfg.data.sides if side > most]
    if beyond and jax.process_index() == 0:
        log.warning(
            "data.sides has %s, and the model draws %d pixels a side at most: the pipeline will refuse such sizes; "
            "--data.sides %d trains on what it draws", ", ".join(beyond), most, most,
        )  # fmt: skip


def make_loader(cfg: TrainConfig, initial: InitialModel, executor: Executor) -> Prefetcher:
    """The run's data on this process."""
    make = WorkerLoader if cfg.data.workers else Loader
    return make(
        initial.config, initial.tokenizer, cfg.data, seed=cfg.seed, accumulate=cfg.accumulate, rows=executor.rows
    )


def first_state(cfg: TrainConfig, initial: InitialModel, step: Step, executor: Executor) -> TrainState:
    """The state before the first step, born where the executor keeps it. What is frozen is placed there once."""
    key = jax.random.key(cfg.seed)
    params = (
        executor.place(initial.params) if initial.params is not None else random_params(initial.config, key, executor)
    )
    frozen, _ = split(params, lambda path: not step.factors.is_trained(path))
    stays = frozenset(paths(frozen))

    def made(params: Tree, key: jax.Array) -> TrainState:
        """The state but for what stays, of which a program would give back a copy."""
        state = step.init(_adapted(cfg, params, key))
        return dataclasses.replace(state, frozen=split(state.frozen, lambda path: path not in stays)[0])

    state = executor.init(made, params, jax.random.fold_in(key, 1))
    return dataclasses.replace(state, frozen=merge(state.frozen, frozen))


def saved_state(
    cfg: TrainConfig,
    initial: InitialModel,
    step: Step,
    executor: Executor,
    workdir: Path,
    saved: RunCheckpoints,
    last: int,
) -> tuple[TrainState, dict[str, Any]]:
    """The state of a checkpoint, read straight to where the executor keeps it, and the position in the data."""
    like = executor.abstract(jax.eval_shape(step.init, initial.shapes))
    trained, ema, opt_state, data = saved.restore(last, like)
    frozen = run_directory.restore_frozen(workdir, like.frozen)
    state = TrainState(np.asarray(last, np.int32), trained, frozen, opt_state, ema)
    return executor.from_saved(state), data


def _adapted(cfg: TrainConfig, params: Tree, key: jax.Array) -> Tree:
    """The parameters with the adapters that the configuration asks for."""
    return params if cfg.lora is None else lora.add(params, cfg.lora.pattern, cfg.lora.rank, key)


def _adapted_shapes(cfg: TrainConfig, shapes: Tree) -> Tree:
    """Of the parameters that a run starts from, with its adapters.

    Raises:
        ConfigError: it asks for none that there could be, or for some in the VAE.
    """
    adapted = jax.eval_shape(lambda params, key: _adapted(cfg, params, key), shapes, jax.random.key(0))
    if cfg.lora is not None and any(path.startswith("vae/") and path.endswith("/lora_a") for path in paths(adapted)):
        raise ConfigError(
            f"lora.pattern {cfg.lora.pattern!r} takes maps of the vae, which no term of the loss reaches; expected a "
            "pattern of vlm and head, such as '(vlm/llm|head)/.*'"
        )
    return adapted


def random_params(config: InternVLUConfig, key: jax.Array, executor: Executor) -> Tree:
    """Random float32 parameters, each part by a program of its own because one for all compiles far longer."""
    return {
        name: executor.init(lambda k, m=module: m.init(k, method="build")["params"], jax.random.fold_in(key, n))
        for n, (name, module) in enumerate(modules(config, Compute()).items())
    }
