"""Training of the VAE alone, for models from scratch: the released one is never trained further.

    loss = |x - x'| + square_weight (x - x')^2 + kl_weight KL(q(z | x) || N(0, 1)),    each a mean over its entries

x in [-1, 1], x' the decoding of z = mean + exp(logvar / 2) eps. Afterwards `latent_statistics` gives the mean and
deviation per channel that normalise the latents for the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from internvlu_jax.config import Compute, GenerationImageProcessorConfig, InternVLUConfig, VAEConfig
from internvlu_jax.models.pixels import codec_values
from internvlu_jax.models.vae import VAE
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.optimizer import factors, make_optimizer
from internvlu_jax.training.resuming import LoopState, run_steps

Params = dict[str, Any]
Pictures = Callable[[int], UInt8[np.ndarray, "b y x 3"]]
"""From the number of a step to its pictures: a pure function, so that a run resumes exactly."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """How a VAE is trained; the latents' scale is set by the KL divergence and then normalised away."""

    steps: int = 1000
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup=100, b2=0.99, clip=1.0)
    square_weight: float = 2.0
    kl_weight: float = 1e-4
    seed: int = 0
    save_every: int = 1000


def autoencoder_loss(
    cfg: VAEConfig, weights: AutoencoderConfig, params: Params, pixels: Float[Array, "b Y X 3"], key: PRNGKeyArray
) -> Float[Array, ""]:
    """The loss of the module's docstring, for pixels in [-1, 1]."""
    vae, variables = VAE(cfg, Compute()), {"params": params}
    mean, logvar = cast("tuple[Array, Array]", vae.apply(variables, pixels, method="encode"))
    logvar = jnp.clip(logvar, -30.0, 20.0)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    error = cast("Array", vae.apply(variables, z, method="decode_unclipped")) - pixels
    divergence = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    reconstruction = jnp.mean(jnp.abs(error)) + weights.square_weight * jnp.mean(jnp.square(error))
    return reconstruction + weights.kl_weight * divergence


def train_autoencoder(
    cfg: VAEConfig, how: AutoencoderConfig, pictures: Pictures, workdir: str | Path, quiet: bool = False
) -> Params:
    """Trains a VAE from scratch, or goes on with the one in `workdir`; returns its parameters.

    Raises:
        ConfigError: the one in `workdir` began under other settings.
        Stopped: SIGTERM or Ctrl-C came; the same call goes on.
    """

    def step(state: LoopState, number: int) -> tuple[LoopState, dict[str, Array]]:
        state, loss = _step(cfg, how, state, pictures(number), jnp.int32(number))
        return state, {"loss": loss}

    settings = {"autoencoder": dataclasses.asdict(how), "vae": dataclasses.asdict(cfg)}
    state = run_steps(
        Path(workdir), settings, lambda: _start(cfg, how), step, steps=how.steps, save_every=how.save_every,
        may_change=("autoencoder.save_every",), quiet=quiet,
    )  # fmt: skip
    return state.trained["vae"]


@partial(jax.jit, static_argnums=(0, 1))
def _start(cfg: VAEConfig, how: AutoencoderConfig) -> LoopState:
    trained = {"vae": _init(cfg, jax.random.key(how.seed))}
    return LoopState(trained, _transform(how, trained).init(trained))


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    cfg: VAEConfig, how: AutoencoderConfig, state: LoopState, batch: UInt8[Array, "b y x 3"], number: Array
) -> tuple[LoopState, Array]:
    """Step `number` from 0, and its loss."""
    pixels = jnp.asarray(codec_values(batch, GenerationImageProcessorConfig()))
    key = jax.random.fold_in(jax.random.key(how.seed), number)
    loss, gradient = jax.value_and_grad(lambda p: autoencoder_loss(cfg, how, p["vae"], pixels, key))(state.trained)
    updates, opt_state = _transform(how, state.trained).update(gradient, state.opt_state, state.trained)
    return LoopState(optax.apply_updates(state.trained, updates), opt_state), loss


def _transform(how: AutoencoderConfig, trained: Params) -> optax.GradientTransformationExtraArgs:
    return make_optimizer(how.optimizer, factors(trained, how.optimizer), trained, how.steps)


def _init(cfg: VAEConfig, key: PRNGKeyArray) -> Params:
    return VAE(cfg).init(key, method="build")["params"]


def latent_statistics(
    cfg: VAEConfig, params: Params, batches: Iterable[UInt8[np.ndarray, "b y x 3"]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each latent channel over pictures, float64 [c]."""
    encode = jax.jit(lambda pixels: VAE(cfg).apply({"params": params}, pixels, method="encode")[0])
    means = [np.asarray(encode(codec_values(batch, GenerationImageProcessorConfig())), np.float64) for batch in batches]
    values = np.concatenate([m.reshape(-1, cfg.z_dim) for m in means])
    return values.mean(0), values.std(0)


def with_statistics(config: InternVLUConfig, mean: np.ndarray, std: np.ndarray) -> InternVLUConfig:
    """The model's configuration with latents normalised by these numbers."""
    vae = dataclasses.replace(config.vae, latents_mean=tuple(map(float, mean)), latents_std=tuple(map(float, std)))
    return dataclasses.replace(config, vae=vae)
