"""How a run does on records that it is not trained on: the terms of its loss, always on the same batches and noise."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from internvlu_jax.data.loader import Loader
from internvlu_jax.data.sources import open_source
from internvlu_jax.parallel.executors import Executor
from internvlu_jax.parallel.together import next_step
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.losses import Objective
from internvlu_jax.training.setup import InitialModel
from internvlu_jax.training.step import TrainState

_SEED = 0  # of the noise, whatever the run's: runs of several seeds can be compared


class Validation:
    """Opens the records once, and makes the batches anew each time, so that nothing of them stays in memory.

    Raises:
        DataError, ValueError: the records of the first batch cannot be used; before anything is compiled. Calling it
            raises DataError where those of a later one cannot.
    """

    def __init__(self, cfg: TrainConfig, initial: InitialModel, executor: Executor, objective: Objective) -> None:
        self._batches = cfg.validation.batches
        self._initial, self._executor, self._objective = initial, executor, objective
        self._data = replace(
            cfg.data, sources=cfg.validation.sources, shuffle=False, workers=0, drop_all_t2i=0.0, drop_all_edit=0.0,
            drop_text_edit=0.0,
        )  # fmt: skip
        self._sources = [open_source(path, self._data.allow_outside) for path, _ in self._data.sources]
        with self._loader() as loader:
            next_step(loader)

    def _loader(self) -> Loader:
        initial = self._initial
        return Loader(
            initial.config, initial.tokenizer, self._data, seed=_SEED, rows=self._executor.rows, sources=self._sources
        )

    def __call__(self, state: TrainState) -> dict[str, float]:
        """valid_loss, and each term as valid_NAME_loss, pooled over all batches; without terms that none has."""
        sums, totals = dict.fromkeys(self._objective.weights, 0.0), dict.fromkeys(self._objective.weights, 0.0)
        with self._loader() as loader:
            for number in range(self._batches):
                (batch,) = next_step(loader)
                key = jax.random.fold_in(jax.random.key(_SEED), number)
                measured = self._executor.measure(state, self._executor.put(batch), key)
                for pooled, values in zip((sums, totals), measured, strict=True):
                    for name, value in values.items():
                        pooled[name] += np.asarray(value).item()
        means = {name: total / totals[name] for name, total in sums.items() if totals[name]}
        loss = sum(self._objective.weights[name] * mean for name, mean in means.items())
        return {"valid_loss": loss} | {f"valid_{name}_loss": mean for name, mean in means.items()}
