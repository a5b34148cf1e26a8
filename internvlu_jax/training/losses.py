"""What training minimises: named terms, of which two are the paper's.

    (1)  flow = mean over pictures of the mean over latents of (v(x_sigma, 1000 sigma, context) - (eps - x0))^2
    (2)  text = mean over target tokens of -log p(token | what stands before it)
    (3)  loss = sum over terms of weight * term

x_sigma, eps and x0 as in `flow.path`; the means run over everything that one step reads, so each micro-batch and each
device contributes a sum over a total that is known before any gradient is taken. Means of means would weigh the tokens
of a short answer more than those of a long one.

A new term is a function of a `Forward`, and a line in `TERMS`. The backbone's hidden states condition the head with
gradients; where the backbone is frozen nothing flows back, and XLA computes none of it. The VAE encodes, and is never
trained here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, PRNGKeyArray

from internvlu_jax.data.batch import Batch, ImageBatch, TextBatch
from internvlu_jax.flow.path import TIME_SCALE, interpolate, velocity_target
from internvlu_jax.flow.times import LogitNormal, Uniform
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.models.qwen3 import Qwen3Output
from internvlu_jax.training.config import ObjectiveConfig

Terms = dict[str, Array]
"""A number for each term of an objective, by its name."""


class NoiseSamples(NamedTuple):
    """Random numbers of one micro-batch, keyed by the rows' numbers; g noises of each row, one after the other."""

    sigma: Float[Array, "bg"]
    noise: Float[Array, "bg y x c"]


class Forward:
    """One pass of the model over a micro-batch; each part is traced when a term first asks for it, and once.

    params: with the keys vlm, head and, where pictures come as pixels, vae.
    noise: where the batch has pictures to draw.
    """

    def __init__(self, objective: Objective, params: Params, batch: Batch, noise: NoiseSamples | None = None) -> None:
        self.objective, self.model, self.params = objective, objective.model, params
        self.batch: Batch = jax.tree.map(jnp.asarray, batch)
        self._noise = noise

    @property
    def text(self) -> TextBatch:
        assert self.batch.text is not None
        return self.batch.text

    @property
    def picture(self) -> ImageBatch:
        assert self.batch.picture is not None
        return self.batch.picture

    @property
    def noise(self) -> NoiseSamples:
        assert self._noise is not None
        return self._noise

    @cached_property
    def read(self) -> Qwen3Output:
        """The language model over the token rows, with the states that condition the head if a picture follows."""
        text, visual = self.text, None
        if text.tiles is not None:
            tiles = rearrange(text.tiles, "b k p q c -> (b k) p q c")
            visual = self.model.visual_tokens(self.params, tiles)
            visual = rearrange(visual, "(b k) t d -> b (k t) d", b=len(text.ids))
        x = self.model.embed(self.params, text.ids, visual, text.visual_index)
        capture = self.batch.picture is not None
        return self.model.read(self.params, x, text.positions, segments=text.segments, capture=capture)

    @cached_property
    def context(self) -> Float[Array, "b t e"]:
        """The hidden states that condition the pictures: as they were stored, or read now."""
        if self.picture.context is not None:
            return self.picture.context
        assert self.read.captured is not None and self.picture.context_index is not None
        return self.model.context(self.read.captured, self.picture.context_index)

    @cached_property
    def clean(self) -> Float[Array, "_ y x c"]:
        """Latents of the pictures, once for every noise of each."""
        return self.each(self.latents[0])

    @cached_property
    def velocity(self) -> Float[Array, "_ y x c"]:
        """What the head predicts for the noised latents."""
        picture = self.picture
        condition = self.model.condition(
            self.params, self.context, picture.context_lengths, picture.positions, self.latents[1:]
        )
        noisy = interpolate(self.clean, self.noise.noise, self.noise.sigma)
        timestep = TIME_SCALE * self.noise.sigma
        return self.model.velocity(self.params, noisy, timestep, jax.tree.map(self.each, condition))

    def each(self, array: Array) -> Array:
        """Rows repeated, once for every noise of a picture."""
        return jnp.repeat(array, self.objective.cfg.noises_per_image, axis=0)

    @cached_property
    def latents(self) -> tuple[Float[Array, "b y x c"], ...]:
        """Normalised latents of the pictures and of their sources: of 8-bit pixels by the VAE, or as they were stored.

        Those of one size go through one encoder after another: what it needs of memory is most of an edit's.
        """
        pictures = (self.picture.target, *self.picture.sources)
        if all(picture.dtype == jnp.uint8 and picture.shape == pictures[0].shape for picture in pictures):
            return tuple(jax.lax.map(self._latents, jnp.stack(pictures)))
        return tuple(map(self._latents, pictures))

    def _latents(self, picture: Array) -> Float[Array, "b y x c"]:
        if picture.dtype != jnp.uint8:
            return picture.astype(jnp.float32)
        return jax.lax.stop_gradient(self.model.encode(self.params, picture))


@dataclass(frozen=True)
class Term:
    """A part of the loss: the mean `sum(forward) / count(batch)` over all that a step reads.

    count: what the sum is divided by, of one micro-batch; None where the batch has nothing for the term, and `sum` is
        then not called.
    """

    count: Callable[[Batch], Array | None]
    sum: Callable[[Forward], Array]


def target_tokens(batch: Batch) -> Float[Array, ""] | None:
    """Tokens that are to be predicted."""
    text = batch.text
    return None if text is None or text.weights is None else jnp.sum(jnp.asarray(text.weights))


def target_pictures(batch: Batch) -> Float[Array, ""] | None:
    """Pictures that are to be drawn."""
    return None if batch.picture is None else jnp.sum(jnp.asarray(batch.picture.weight))


def text_term(forward: Forward) -> Float[Array, ""]:
    """Equation (2), summed over tokens."""

    def logits(states: Array) -> Array:
        return forward.model.logits(forward.params, states)

    text = forward.text
    return token_loss(logits, forward.read.last, text.targets, text.weights, forward.objective.chunk)


def flow_term(forward: Forward) -> Float[Array, ""]:
    """Equation (1), summed over pictures; the noises of one picture count as one."""
    error = jnp.square(forward.velocity - velocity_target(forward.clean, forward.noise.noise))
    weight = forward.each(forward.picture.weight) / forward.objective.cfg.noises_per_image
    return jnp.sum(jnp.mean(error, axis=(1, 2, 3)) * weight)


TERMS: dict[str, Term] = {
    "text": Term(target_tokens, text_term),
    "flow": Term(target_pictures, flow_term),
}


@dataclass(frozen=True)
class Objective:
    """Equation (3) for one model.

    chunk: target positions whose logits exist at once, over all devices that share a computation.
    """

    model: InternVLU
    cfg: ObjectiveConfig
    chunk: int = 1024

    @property
    def weights(self) -> dict[str, float]:
        """By term; what is not among them is not computed."""
        return dict(self.cfg.weights)

    @property
    def terms(self) -> dict[str, Term]:
        """All that there are to weigh, by name."""
        return TERMS

    def totals(self, batch: Batch) -> Terms:
        """What one micro-batch adds to the totals of its step."""
        counts = {name: self.terms[name].count(batch) for name in self.weights}
        return {name: jnp.zeros(()) if count is None else count for name, count in counts.items()}

    def sums(self, params: Params, batch: Batch, noise: NoiseSamples | None) -> Terms:
        """Each term's sum over one micro-batch, before its division; 0 where the batch has nothing for it."""
        forward = Forward(self, params, batch, noise)
        terms = {name: self.terms[name] for name in self.weights}
        return {name: jnp.zeros(()) if term.count(batch) is None else term.sum(forward) for name, term in terms.items()}

    def means(self, sums: Terms, totals: Terms) -> Terms:
        """Equations (1), (2) and others; 0 where the whole step has nothing for a term."""
        return {name: total / jnp.maximum(totals[name], 1.0) for name, total in sums.items()}

    def loss(self, means: Terms, weights: Terms | None = None) -> Float[Array, ""]:
        """Equation (3). weights: in place of the objective's own, where they are not known when it is compiled."""
        given = self.weights if weights is None else weights
        return sum((weight * means[name] for name, weight in given.items()), jnp.zeros(()))

    def draw(self, key: PRNGKeyArray, batch: Batch) -> NoiseSamples | None:
        """Noise levels and noise of a micro-batch's pictures: the same wherever a row is computed."""
        if batch.picture is None:
            return None
        sigma_key, noise_key = jax.random.split(key)
        shape = self._latent_shape(batch.picture)
        count = self.cfg.noises_per_image
        index = rearrange(count * jnp.asarray(batch.index)[:, None] + jnp.arange(count), "b g -> (b g)")
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(noise_key, i), shape))(index)
        return NoiseSamples(self.times.sample(sigma_key, index), noise)

    @property
    def times(self) -> LogitNormal | Uniform:
        """The distribution of noise levels."""
        head = self.model.cfg.generation_decoder
        shift = head.flow_shift if self.cfg.shift is None else self.cfg.shift
        return Uniform(shift) if self.cfg.time == "uniform" else LogitNormal(head.logit_mean, head.logit_std, shift)

    def _latent_shape(self, picture: ImageBatch) -> tuple[int, int, int]:
        _, rows, columns, _ = picture.target.shape
        if picture.target.dtype == jnp.uint8:
            factor = self.model.cfg.vae.downsample_factor
            rows, columns = rows // factor, columns // factor
        return rows, columns, self.model.cfg.vae.z_dim


def token_loss(
    logits: Callable[[Array], Array],
    last: Float[Array, "b s d"],
    targets: Int[Array, "b s"],
    weights: Float[Array, "b s"],
    chunk: int,
) -> Float[Array, ""]:
    """Sum of weight * -log p(target) over all positions, with at most about `chunk` rows of logits in memory at once.

    Columns of positions go through the output layer in turn, and their logits are computed again for the gradient: for
    151,936 entries of the vocabulary and 8192 tokens they would be 5 GB in each direction.
    """
    rows, length, _ = last.shape
    columns = min(max(chunk // rows, 1), length)
    padding = -length % columns
    parts = [
        jnp.pad(array, ((0, 0), (0, padding)) + ((0, 0),) * (array.ndim - 2)) for array in (last, targets, weights)
    ]
    by_chunk = tuple(jnp.moveaxis(p.reshape(rows, -1, columns, *p.shape[2:]), 1, 0) for p in parts)

    @jax.checkpoint
    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        states, target, weight = part
        scores = logits(states)
        chosen = jnp.take_along_axis(scores, target[..., None], axis=-1)[..., 0]
        return total + jnp.sum(weight * (jax.nn.logsumexp(scores, axis=-1) - chosen)), None

    return jax.lax.scan(add, jnp.zeros(()), by_chunk)[0]
