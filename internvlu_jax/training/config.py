"""A training run as one frozen dataclass: `experiments/configs/` has one for each stage."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from internvlu_jax.config import Compute, ConfigError
from internvlu_jax.data.config import DataConfig
from internvlu_jax.parallel.config import MeshConfig
from internvlu_jax.utils.seeds import check_seed

Rules = tuple[tuple[str, float], ...]
"""(path regex, number): the first that matches the whole path of a parameter (head/mmdit/latent_in/kernel) decides."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """loss = sum of weight * term (table 3 of arXiv 2603.09877).

    Attributes:
        weights: (term, weight) of `training.losses.TERMS`; "text" is next-token prediction, "flow" flow matching.
        time: how noise levels are drawn: "logit_normal" (mean and deviation of the model's config) or "uniform".
        shift: of the noise levels; None is the model's `flow_shift`.
        noises_per_image: of each picture, all in one step: what comes before the head is computed once for all of them.
            For small models, whose examples cost more than their steps.
    """

    weights: tuple[tuple[str, float], ...] = (("text", 1.0), ("flow", 20.0))
    time: Literal["logit_normal", "uniform"] = "logit_normal"
    shift: float | None = None
    noises_per_image: int = 1

    def __post_init__(self) -> None:
        _check("objective.noises_per_image", self.noises_per_image, self.noises_per_image >= 1, "at least 1")
        _check("objective.shift", self.shift, self.shift is None or self.shift > 0, "a number over 0")
        names = [name for name, _ in self.weights]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"objective.weights is {self.weights}; expected each term once, and at least one")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with one schedule; parameters are told apart by the regex rules.

    Attributes:
        learning_rate: the largest, at the end of `warmup`.
        matrices: what moves the kernels of stacked layers: "adam" as all else, or "muon", which gives every direction
            of a matrix the same step (`training.muon`). Learning rates mean about the same for both.
        schedule: "constant" or "cosine", after `warmup` steps of linear increase.
        decay_steps: when the cosine is at 0, after `warmup`; None is the last step of the run.
        warmup: steps in which the learning rate rises from 0.
        b1: decay of the mean of gradients.
        b2: decay of the mean of their squares.
        eps: is added to the root of that mean.
        weight_decay: decoupled, as in AdamW: times the learning rate.
        clip: largest global norm of the gradient; infinity leaves it as it is.
        rates: factor of the learning rate; 0 is frozen: no gradient, no optimizer state, never written to again.
        decays: factor of the weight decay.
        ema: decay of the moving average of what is trained; None keeps none. It is what samples are drawn with,
            held-out losses are taken of and the run is loaded as. It starts at the first parameters, which are
            forgotten after several times 1 / (1 - ema) steps.
    """

    learning_rate: float = 1e-4
    matrices: Literal["adam", "muon"] = "adam"
    schedule: Literal["constant", "cosine"] = "constant"
    decay_steps: int | None = None
    warmup: int = 1000
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    rates: Rules = ((".*", 1.0),)
    decays: Rules = ((r".*/(kernel|embedding)", 1.0), (".*", 0.0))
    ema: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("learning_rate", 0.0), ("warmup", 0), ("weight_decay", 0.0)):
            _check(f"optimizer.{name}", getattr(self, name), getattr(self, name) >= least, "0 or more")
        for name in ("b1", "b2", "ema"):
            value = getattr(self, name)
            _check(f"optimizer.{name}", value, value is None or 0 <= value < 1, "a number from 0, below 1")
        for name in ("eps", "clip"):
            _check(f"optimizer.{name}", getattr(self, name), getattr(self, name) > 0, "a number over 0")
        decay, warmup = self.decay_steps, self.warmup if self.schedule == "cosine" else 0
        expected = f"over {warmup}" + (", the warmup, behind which the cosine begins" if warmup else "")
        _check("optimizer.decay_steps", decay, decay is None or decay > warmup, expected)


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise ConfigError(f"{name} is {value}; expected {expected}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: y = x W + (alpha / rank) x A B for every linear map whose path matches `pattern`.

    Attributes:
        rank: of every pair A, B.
        alpha: what they add is scaled by alpha / rank.
        pattern: regex of the whole path of a map, such as vlm/llm/layers/attn/q. Those of the VAE are refused, which no
            loss reaches; vlm/vit/patch_embed, a convolution in the released layout, cannot be exported for PEFT.
    """

    rank: int = 16
    alpha: float = 16.0
    pattern: str = r"(vlm/llm|head/mmdit)/.*/(q|k|v|out|gate|up|down|fc1|fc2)"

    def __post_init__(self) -> None:
        _check("lora.rank", self.rank, self.rank >= 1, "at least 1")
        _check("lora.alpha", self.alpha, self.alpha > 0, "a number over 0")


@dataclass(frozen=True)
class ValidationConfig:
    """Losses on records that are not trained on: the same ones with the same noise each time, no prompt dropped.

    Attributes:
        sources: as `DataConfig.sources`, read in their order; empty for no validation.
        every: steps from one to the next.
        batches: micro-batches, of as many rows as in training, from the first record.
    """

    sources: tuple[tuple[str, float], ...] = ()
    every: int = 1000
    batches: int = 8

    def __post_init__(self) -> None:
        for name in ("every", "batches"):
            _check(f"validation.{name}", getattr(self, name), getattr(self, name) >= 1, "at least 1")
        good = all(0 < weight < math.inf for _, weight in self.sources)
        _check("validation.sources", self.sources, good, "weights over 0; leave a source out instead")


@dataclass(frozen=True)
class TrainConfig:
    """A run.

    Attributes:
        name: of the configuration; it stands in the work directory's config.json.
        steps: after which the run is done; one that goes on may have another number.
        model: a preset of `presets.PRESETS`, made up at random.
        start: a checkpoint to start from in place of that: a directory in either layout, another run's work directory
            or a step of it (WORKDIR/checkpoints/STEP), a Hub id, or built-in, the model in the box.
        head_sources: what the head gets of source pictures (`HeadConfig.sources`); None is what the model says. It
            becomes part of the model, in training and when it draws.
        seed: from 0 to 4294967295.
        accumulate: micro-batches of one step; their losses are pooled before the one update.
        executor: how the devices share the work: a `mesh`, `pmap`, or one device alone.
        save_every: steps from one checkpoint to the next; the last step has one too.
        keep_last: checkpoints that stay: the last so many.
        keep_every: checkpoints that stay besides: those at multiples of so many steps.
        report: a tracker of experiments that the metrics go to, too.
        sample_every: steps from one sheet of pictures to the next; None draws none.
        sample_prompts: what is drawn on it, from fixed noise.
        sample_steps: steps of the sampler.
    """

    name: str
    steps: int
    model: str = "internvl-u-4b"
    start: str | None = None
    head_sources: Literal["both", "context", "latents"] | None = None
    seed: int = 0
    accumulate: int = 1
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = None
    compute: Compute = Compute()
    executor: Literal["mesh", "pmap", "single"] = "mesh"
    mesh: MeshConfig = MeshConfig()
    save_every: int = 1000
    keep_last: int = 2
    keep_every: int | None = None
    validation: ValidationConfig = ValidationConfig()
    report: Literal["wandb", "trackio"] | None = None
    sample_every: int | None = None
    sample_prompts: tuple[str, ...] = field(default=())
    sample_steps: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "save_every", "keep_last", "sample_steps"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        if self.compute.layers != "scan":
            raise ConfigError(f"compute.layers is {self.compute.layers!r}; training runs with 'scan'")
        check_seed(self.seed)
