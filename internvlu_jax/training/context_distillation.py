"""A backbone that understands, for a head that draws: it learns to give the contexts that the head was trained on.

Pictures and answers want different amounts of training: a small head is good after as many pictures as a GPU draws in
minutes, while answers take many small steps. So the two may be trained apart, and the backbone then learns the contexts
of another; the head takes no part in it:

    loss = text + context_weight * context
    text    = mean over target tokens of -log p(token | what stands before it), of packed conversations, and another of
              the reasoning before pictures
    context = mean over the layers that condition the head of
              sum over context tokens of |h - h'|^2 / sum over context tokens of |h' - mean h'|^2

h are the hidden states of the backbone that is trained (`HeadConfig.vlm_select_layer`), h' those of the backbone that
the head was trained with, of prompts, edits and prompts with their reasoning.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jaxtyping import Array, Float

from converters.engine import on_host
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.model_directory import is_model, save_model
from internvlu_jax.config import ConfigError
from internvlu_jax.data.batch import Batch
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.loader import Loader
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig
from internvlu_jax.training.losses import Forward, Objective, text_term
from internvlu_jax.training.optimizer import factors, make_optimizer
from internvlu_jax.training.resuming import LoopState, check_loop, has_settings, run_steps
from internvlu_jax.utils.tree import merge, split


@dataclass(frozen=True)
class DistillationConfig:
    """A run. A step reads one batch of each kind of data.

    questions: conversations. prompts: what is to be drawn. Where these have reasoning it has to be a target: contexts
    that are another backbone's end what the output layer knew of it.
    optimizer: `rates` are of vlm/..., and `ema` is needed.
    """

    steps: int
    questions: DataConfig
    prompts: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig(ema=0.995)
    context_weight: float = 3.0
    seed: int = 0
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.optimizer.ema is None:
            raise ConfigError("optimizer.ema is None; expected a decay: the average is what the result keeps")


def context_error(
    now: Float[Array, "b t e"], then: Float[Array, "b t e"], lengths: Array, layers: int
) -> Float[Array, ""]:
    """The distance of the module's docstring; the first `lengths` tokens of each row count."""
    now, then = (rearrange(states.astype(jnp.float32), "b t (l d) -> l b t d", l=layers) for states in (now, then))
    counts = (jnp.arange(now.shape[2]) < lengths[:, None])[..., None]
    mean = jnp.sum(then * counts, axis=(1, 2), keepdims=True) / jnp.sum(counts)
    moved, size = (jnp.sum(jnp.square(x) * counts, axis=(1, 2, 3)) for x in (now - then, then - mean))
    return jnp.mean(moved / size)


def distill_context(
    cfg: DistillationConfig, backbone: str | Path, head: str | Path, workdir: str | Path, quiet: bool = False
) -> Path:
    """Trains the backbone of the model `backbone` for the head of the model `head`, or goes on in `workdir`.

    The result is the model `workdir`/model: that backbone, and everything else of `head`.

    Raises:
        ConfigError, ValueError: the models do not fit together, the rules or the data cannot be used, or what is in
            `workdir` began under other settings; before compilation.
        NotFiniteError, Stopped: see `resuming.run_steps`.
    """
    workdir = Path(workdir)
    target = workdir / "model"
    settings = {"distillation": dataclasses.asdict(cfg), "backbone": str(backbone), "head": str(head)}
    if is_model(target) and not has_settings(workdir):  # made elsewhere
        return target
    check_loop(workdir, settings, _MAY_CHANGE)
    if is_model(target):
        return target
    own, other = (loading.load(name, place=on_host) for name in (backbone, head))
    tokenizer, theirs = own.tokenizer, other.tokenizer
    if tokenizer.encode(_SAMPLE) != theirs.encode(_SAMPLE):
        raise ConfigError(f"{backbone} and {head} have different tokenizers; expected backbones that read the same ids")
    config = dataclasses.replace(other.config, vlm=own.config.vlm)
    wide, given = (jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), m.params["vlm"]) for m in (own, other))
    trained, frozen = split({"vlm": wide}, factors({"vlm": wide}, cfg.optimizer).is_trained)
    ids, words = tokenizer.special_table_ids, ObjectiveConfig((("text", 1.0),))
    rules = _Rules(cfg, *(Objective(InternVLU(c, ids), words) for c in (config, other.config)))

    def start() -> LoopState:
        opt_state = jax.jit(rules.transform(trained, frozen).init)(trained)
        state = LoopState(trained, opt_state, jax.tree.map(jnp.copy, trained))
        return jax.device_put(state, jax.local_devices()[0])  # bound to it, like what is restored: one program for both

    with (
        Loader(config, tokenizer, cfg.questions, seed=cfg.seed) as questions,
        Loader(config, tokenizer, cfg.prompts, seed=cfg.seed + 1) as prompts,
    ):

        def step(state: LoopState, number: int) -> tuple[LoopState, dict[str, Array]]:
            batches = next(questions)[0], next(prompts)[0]
            return _step(rules, state, frozen, given, *batches, jnp.float32(number + 1))

        state = run_steps(
            workdir, settings, start, step, steps=cfg.steps, save_every=cfg.save_every,
            data={"questions": questions, "prompts": prompts}, may_change=_MAY_CHANGE, quiet=quiet,
        )  # fmt: skip
    vlm = jax.tree.map(np.asarray, merge(state.ema, frozen)["vlm"])
    save_model(target, config, {**other.params, "vlm": vlm}, other.extras, other.assets)
    return target


# How often it saves, and what makes the same batches with other means.
_MAY_CHANGE = (
    "distillation.save_every",
    *(f"distillation.{data}.{name}" for data in ("questions", "prompts") for name in ("threads", "prefetch")),
)

_SAMPLE = "The word STOP above two red circles, left of a small blue square: 1 + 2 = 3."


@dataclass(frozen=True)
class _Rules:
    """What a step is compiled for. Equal rules share one program."""

    cfg: DistillationConfig
    student: Objective
    teacher: Objective

    def transform(self, trained: Params, frozen: Params) -> optax.GradientTransformationExtraArgs:
        numbers = factors(merge(trained, frozen), self.cfg.optimizer)
        return make_optimizer(self.cfg.optimizer, numbers, trained, self.cfg.steps)

    def loss(
        self, trained: Params, frozen: Params, given: Params, questions: Batch, prompts: Batch
    ) -> tuple[Array, tuple[Array, Array]]:
        """The module's loss, and its two parts; `given` is the backbone that the head was trained with."""
        student, params = self.student, {"vlm": merge(trained, frozen)["vlm"]}
        assert prompts.picture is not None
        answers = student.means(student.sums(params, questions, None), student.totals(questions))["text"]
        reading = Forward(student, params, prompts)
        reasoning = student.means({"text": text_term(reading)}, student.totals(prompts))["text"]
        target = jax.lax.stop_gradient(Forward(self.teacher, {"vlm": given}, prompts).context)
        lengths = jnp.asarray(prompts.picture.context_lengths)
        error = context_error(
            reading.context, target, lengths, len(student.model.cfg.generation_decoder.vlm_select_layer)
        )
        text = answers + reasoning
        return text + self.cfg.context_weight * error, (text, error)


@partial(jax.jit, static_argnums=0)
def _step(
    rules: _Rules,
    state: LoopState,
    frozen: Params,
    given: Params,
    questions: Batch,
    prompts: Batch,
    number: Float[Array, ""],
) -> tuple[LoopState, dict[str, Array]]:
    """Step `number` from 1; compiled once for each kind of prompts."""
    gradient_of = jax.value_and_grad(rules.loss, has_aux=True)
    (total, (text, error)), gradient = gradient_of(state.trained, frozen, given, questions, prompts)
    transform = rules.transform(state.trained, frozen)
    updates, opt_state = transform.update(gradient, state.opt_state, state.trained)
    trained = optax.apply_updates(state.trained, updates)
    keep = jnp.minimum(rules.cfg.optimizer.ema or 0.0, number / (9 + number))  # the first steps are forgotten sooner
    ema = jax.tree.map(lambda average, new: keep * average + (1 - keep) * new, state.ema, trained)
    metrics = {"loss": total, "text_loss": text, "context_error": error, "grad_norm": optax.tree.norm(gradient)}
    return LoopState(trained, opt_state, ema), metrics
