"""Training of an autoencoder alone, for models from scratch: the released VAE is never trained further.

    loss = |x - x'| + square_weight (x - x')^2 + kl_weight KL(q(z | x) || N(0, 1)),    each a mean over its entries

x in [-1, 1], x' the decoding of z = mean + exp(logvar / 2) eps. Afterwards `latent_statistics` gives the mean and
deviation per channel that normalise the latents for the head.

Of a quantized VAE (`models.codes`) z are the rounded latents, without noise or divergence. Of an autoencoder around a
frozen encoder (`models.semantic`) the decoder alone is trained, by the same loss without the divergence; z are
the encoder's normalised latents with noise, so there the statistics come first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from internvlu_jax.config import (
    Compute,
    GenerationImageProcessorConfig,
    InternVLUConfig,
    QuantizedCodec,
    SemanticCodec,
    VAEConfig,
)
from internvlu_jax.models import slots
from internvlu_jax.models.pixels import codec_values
from internvlu_jax.models.semantic import noised
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.optimizer import factors, make_optimizer
from internvlu_jax.training.resuming import LoopState, run_steps
from internvlu_jax.utils.seeds import check_seed
from internvlu_jax.utils.tree import merge, split

Params = dict[str, Any]
Pictures = Callable[[int], UInt8[np.ndarray, "b y x 3"]]
"""From the number of a step to its pictures: a pure function, so that a run resumes exactly."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """How an autoencoder is trained; a VAE's scale is set by the KL divergence and then normalised away."""

    steps: int = 1000
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup=100, b2=0.99, clip=1.0)
    square_weight: float = 2.0
    kl_weight: float = 1e-4
    seed: int = 0
    save_every: int = 1000

    def __post_init__(self) -> None:
        check_seed(self.seed)


def autoencoder_loss(
    cfg: VAEConfig | SemanticCodec,
    weights: AutoencoderConfig,
    params: Params,
    pixels: Float[Array, "b Y X 3"],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """The loss of the module's docstring, for pixels in [-1, 1]."""
    apply = partial(slots.module(cfg, Compute()).apply, {"params": params})
    divergence: Array | float = 0.0
    if isinstance(cfg, SemanticCodec):
        z = noised(cfg, cast("Array", apply(pixels, method="encode_latents")), key)
    elif isinstance(cfg, QuantizedCodec):
        z = cast("Array", apply(pixels, method="encode_latents"))
    else:
        mean, logvar = cast("tuple[Array, Array]", apply(pixels, method="encode"))
        logvar = jnp.clip(logvar, -30.0, 20.0)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        divergence = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    error = cast("Array", apply(z, method="decode_unclipped")) - pixels
    reconstruction = jnp.mean(jnp.abs(error)) + weights.square_weight * jnp.mean(jnp.square(error))
    return reconstruction + weights.kl_weight * divergence


def train_autoencoder(
    cfg: VAEConfig, how: AutoencoderConfig, pictures: Pictures, workdir: str | Path, quiet: bool = False
) -> Params:
    """Trains a VAE from scratch, or goes on with the one in `workdir`; returns its parameters.

    Raises:
        ConfigError: the one in `workdir` began under other settings.
        NotFiniteError, Stopped: see `resuming.run_steps`.
    """
    return _train(cfg, how, {}, pictures, Path(workdir), {"vae": dataclasses.asdict(cfg)}, quiet)


def train_decoder(
    cfg: SemanticCodec,
    how: AutoencoderConfig,
    encoder: Params,
    pictures: Pictures,
    workdir: str | Path,
    quiet: bool = False,
) -> Params:
    """Trains the decoder of a frozen encoder's latents from scratch, or goes on with the one in `workdir`.

    Args:
        cfg: with the statistics of the encoder's latents, by which a run in `workdir` tells encoders apart.
        encoder: its parameters, which stay as they are.

    Returns:
        The parameters of the whole, `encoder` among them.

    Raises:
        ConfigError: the one in `workdir` began under other settings.
        NotFiniteError, Stopped: see `resuming.run_steps`.
    """
    return _train(cfg, how, {_ENCODER: encoder}, pictures, Path(workdir), {"codec": dataclasses.asdict(cfg)}, quiet)


def _train(
    cfg: VAEConfig | SemanticCodec,
    how: AutoencoderConfig,
    frozen: Params,
    pictures: Pictures,
    workdir: Path,
    settings: Mapping[str, Any],
    quiet: bool,
) -> Params:
    """All parameters, of which those in `frozen` are not trained."""

    alike, key = dataclasses.replace(how, seed=0), jax.random.key(how.seed)  # runs of all seeds share what is compiled

    def step(state: LoopState, number: int) -> tuple[LoopState, dict[str, Array]]:
        return _step(cfg, alike, state, frozen, pictures(number), jnp.int32(number), key)

    state = run_steps(
        workdir, {"autoencoder": dataclasses.asdict(how), **settings}, lambda: _start(cfg, alike, key), step,
        steps=how.steps, save_every=how.save_every, may_change=("autoencoder.save_every",), quiet=quiet,
    )  # fmt: skip
    return merge(state.trained["vae"], frozen)


_ENCODER = "encoder"  # the parameters of a `SemanticAutoencoder` that are not trained


@partial(jax.jit, static_argnums=(0, 1))
def _start(cfg: VAEConfig | SemanticCodec, how: AutoencoderConfig, key: PRNGKeyArray) -> LoopState:
    params = slots.module(cfg, Compute()).init(key, method="build")["params"]
    if isinstance(cfg, SemanticCodec):
        params, _ = split(params, lambda path: not path.startswith(f"{_ENCODER}/"))
    trained = {"vae": params}
    return LoopState(trained, _transform(how, trained).init(trained))


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    cfg: VAEConfig | SemanticCodec,
    how: AutoencoderConfig,
    state: LoopState,
    frozen: Params,
    batch: UInt8[Array, "b y x 3"],
    number: Array,
    key: PRNGKeyArray,
) -> tuple[LoopState, dict[str, Array]]:
    """Step `number` from 0, and its metrics. key: of the run."""
    pixels = jnp.asarray(codec_values(batch, GenerationImageProcessorConfig()))
    noise_key = jax.random.fold_in(key, number)

    def loss_of(trained: Params) -> Array:
        return autoencoder_loss(cfg, how, merge(trained["vae"], frozen), pixels, noise_key)

    loss, gradient = jax.value_and_grad(loss_of)(state.trained)
    updates, opt_state = _transform(how, state.trained).update(gradient, state.opt_state, state.trained)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
    return LoopState(optax.apply_updates(state.trained, updates), opt_state), metrics


def _transform(how: AutoencoderConfig, trained: Params) -> optax.GradientTransformationExtraArgs:
    return make_optimizer(how.optimizer, factors(trained, how.optimizer), trained, how.steps)


def latent_statistics(
    cfg: VAEConfig | SemanticCodec, params: Params, batches: Iterable[UInt8[np.ndarray, "b y x 3"]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of latents that are not normalised, over pictures: float64 [c].

    Args:
        params: of the autoencoder; of one around a frozen encoder {"encoder"} is enough.
    """
    model = slots.module(cfg, Compute())

    @jax.jit
    def encode(params: Params, pixels: Array) -> Any:
        if isinstance(cfg, SemanticCodec):
            return model.apply({"params": params}, pixels, method="features")
        return cast("tuple[Array, Array]", model.apply({"params": params}, pixels, method="encode"))[0]

    values = [codec_values(batch, GenerationImageProcessorConfig()) for batch in batches]
    latents = [np.asarray(encode(params, pixels), np.float64).reshape(-1, cfg.z_dim) for pixels in values]
    return np.concatenate(latents).mean(0), np.concatenate(latents).std(0)


def with_statistics(config: InternVLUConfig, mean: np.ndarray, std: np.ndarray) -> InternVLUConfig:
    """The model's configuration with latents normalised by these numbers."""
    vae = dataclasses.replace(config.vae, latents_mean=tuple(map(float, mean)), latents_std=tuple(map(float, std)))
    return dataclasses.replace(config, vae=vae)
