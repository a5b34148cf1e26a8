"""Do the two losses pull the shared weights apart? Cosines and norms of their gradients, layer by layer.

The cosine of two losses' gradients means little by itself: two batches of one loss do not agree either. So that cosine
stands beside it, as the most that could be had. The programs are those of training, with weights of 0 and 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.ablations.results import Curve
from experiments.ablations.together import Knobs, Member, Steps, gradients_together, knobs_of
from internvlu_jax.training.step import Step, TrainState
from internvlu_jax.utils.tree import Tree, paths

LOOKS = 5
"""Checkpoints at which it is measured, evenly over a run; the last is its end."""

NAMES = ("interference_cosine", "interference_noise", "interference_norms")
"""Of `ENDPOINTS`."""

_SHARED = "vlm/llm/layers/"  # weights that both losses train, whichever the arm; stacked, layer after layer


def interference(
    step: Step, states: TrainState, steps: Steps, first: int, members: Sequence[Member]
) -> list[dict[str, Any]]:
    """For each member means over the layers, by the names of `ENDPOINTS`, and in "layers" what each layer has.

    Args:
        states: of the members. steps, first: the batches are those of steps number `first` and the next.
    """
    knobs, batches = knobs_of(step, members), [steps(first), steps(first + 1)]
    (drawing,) = step.objective.weights.keys() - {"text"}
    text, drawn = (
        [
            _vectors(gradients_together(step, _later(states, n), batch, _only(knobs, term)).of)
            for n, batch in enumerate(batches)
        ]
        for term in ("text", drawing)
    )
    told = []
    for n in range(len(members)):
        t, f = ([batch[n] for batch in vectors] for vectors in (text, drawn))
        cosine = np.mean([_cosine(a, b) for a in t for b in f], axis=0)
        noise = (_cosine(*t) + _cosine(*f)) / 2
        norms = np.mean([np.log(_norm(f[i]) / _norm(t[i])) for i in range(2)], axis=0)
        told.append(
            {
                "interference_cosine": float(np.mean(cosine)),
                "interference_noise": float(np.mean(noise)),
                "interference_norms": float(np.exp(np.mean(norms))),
                "layers": {"cosine": cosine.tolist(), "noise": noise.tolist(), "norms": np.exp(norms).tolist()},
            }
        )
    return told


def looks(
    step: Step, steps: Steps, count: int, members: Sequence[Member], path: Path
) -> dict[int, Callable[[TrainState], None]]:
    """For `train_together`: at `LOOKS` checkpoints of a run of `count` steps a line is written, which `told` reads."""

    def at(number: int, states: TrainState) -> None:
        line = {"step": number, "members": interference(step, states, steps, number, members)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    return {number: partial(at, number) for number in {max(k * count // LOOKS, 1) for k in range(1, LOOKS + 1)}}


def told(path: Path, member: int) -> dict[int, Mapping[str, Any]]:
    """By the number of steps done; of a checkpoint that was come to twice the last."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return {line["step"]: line["members"][member] for line in lines}


def endpoints(told: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Those of the last checkpoint; none where nothing was measured."""
    return {name: told[max(told)][name] for name in NAMES} if told else {}


def curves(told: Mapping[int, Mapping[str, Any]], a_step: float) -> dict[str, Curve]:
    """Of all checkpoints. a_step: operations of a step."""
    return {name: tuple((a_step * step, told[step][name]) for step in sorted(told)) for name in NAMES if told}


def _later(states: TrainState, steps: int) -> TrainState:
    """Whose next batch gets the noise of that step: two batches of one noise would agree too well."""
    return replace(states, step=states.step + steps)


def _only(knobs: Knobs, term: str) -> Knobs:
    """The weights of one loss alone."""
    return knobs._replace(weights={name: jnp.full_like(w, float(name == term)) for name, w in knobs.weights.items()})


def _vectors(gradients: Tree) -> Float[np.ndarray, "m layers n"]:
    """The gradients of the shared weights, a vector for each member and layer."""
    leaves = [np.asarray(leaf, np.float64) for path, leaf in paths(gradients).items() if path.startswith(_SHARED)]
    return np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=-1)


def _norm(a: Float[np.ndarray, "layers n"]) -> Float[np.ndarray, "layers"]:
    return np.sqrt(np.sum(np.square(a), axis=-1))


def _cosine(a: Float[np.ndarray, "layers n"], b: Float[np.ndarray, "layers n"]) -> Float[np.ndarray, "layers"]:
    return np.sum(a * b, axis=-1) / np.maximum(_norm(a) * _norm(b), 1e-30)
