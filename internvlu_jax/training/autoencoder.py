"""Training of the VAE alone, for models from scratch: the released one is never trained further.

    loss = |x - x'| + square_weight (x - x')^2 + kl_weight KL(q(z | x) || N(0, 1)),    each a mean over its entries

x in [-1, 1], x' the decoding of z = mean + exp(logvar / 2) eps. Afterwards `latent_statistics` gives the mean and
deviation per channel that normalise the latents for the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from internvlu_jax.checkpoints.arrays import RunCheckpoints
from internvlu_jax.config import Compute, InternVLUConfig, VAEConfig
from internvlu_jax.models.vae import VAE
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.optimizer import factors, make_optimizer
from internvlu_jax.training.reporting import LiveLine

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


class AutoencoderState(NamedTuple):
    """`trained`, `opt_state` and `ema` as `RunCheckpoints` saves them."""

    trained: Params
    opt_state: Any
    ema: None = None


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
    """Trains a VAE from scratch, or goes on with the one in `workdir`; returns its parameters."""
    key = jax.random.key(how.seed)
    shapes = jax.eval_shape(lambda k: _init(cfg, k), key)
    transform = make_optimizer(how.optimizer, factors({"vae": shapes}, how.optimizer), {"vae": shapes}, how.steps)

    @jax.jit
    def step(state: AutoencoderState, batch: Array, number: Array) -> tuple[AutoencoderState, Array]:
        pixels = batch.astype(jnp.float32) / 127.5 - 1.0
        loss, gradient = jax.value_and_grad(
            lambda p: autoencoder_loss(cfg, how, p["vae"], pixels, jax.random.fold_in(key, number))
        )(state.trained)
        updates, opt_state = transform.update(gradient, state.opt_state, state.trained)
        return AutoencoderState(optax.apply_updates(state.trained, updates), opt_state), loss

    def start(k: PRNGKeyArray) -> AutoencoderState:
        trained = {"vae": _init(cfg, k)}
        return AutoencoderState(trained, transform.init(trained))

    with RunCheckpoints(Path(workdir) / "checkpoints", keep_last=1) as saved:
        done = saved.latest() or 0
        state = jax.jit(start)(key)
        if done:
            trained, _, opt_state, _ = saved.restore(done, state)
            state = AutoencoderState(trained, opt_state)
        line = LiveLine(how.steps, done, not quiet)
        for number in range(done, how.steps):
            state, loss = step(state, pictures(number), jnp.int32(number))
            if (number + 1) % how.save_every == 0 or number + 1 == how.steps:
                saved.save(number + 1, state, {})
            if (number + 1) % 20 == 0 or number + 1 == how.steps:
                line.update(number + 1, f"autoencoder loss {float(loss):.4f}")
        line.close()
    return state.trained["vae"]


def _init(cfg: VAEConfig, key: PRNGKeyArray) -> Params:
    return VAE(cfg).init(key, method="build")["params"]


def latent_statistics(
    cfg: VAEConfig, params: Params, batches: Iterable[UInt8[np.ndarray, "b y x 3"]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each latent channel over pictures, float64 [c]."""
    encode = jax.jit(lambda pixels: VAE(cfg).apply({"params": params}, pixels, method="encode")[0])
    means = [np.asarray(encode(batch.astype(np.float32) / 127.5 - 1.0), np.float64) for batch in batches]
    values = np.concatenate([m.reshape(-1, cfg.z_dim) for m in means])
    return values.mean(0), values.std(0)


def with_statistics(config: InternVLUConfig, mean: np.ndarray, std: np.ndarray) -> InternVLUConfig:
    """The model's configuration with latents normalised by these numbers."""
    vae = dataclasses.replace(config.vae, latents_mean=tuple(map(float, mean)), latents_std=tuple(map(float, std)))
    return dataclasses.replace(config, vae=vae)
