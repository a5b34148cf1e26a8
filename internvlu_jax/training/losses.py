"""What training minimises: flow matching of the head, next-token prediction of the language model.

    (1)  flow = mean over pictures of the mean over latents of (v(x_sigma, 1000 sigma, context) - (eps - x0))^2
    (2)  text = mean over target tokens of -log p(token | what stands before it)
    (3)  loss = text_weight * text + flow_weight * flow

x_sigma, eps and x0 as in `flow.path`; the means run over everything that one step reads, so each micro-batch and each
device contributes a sum (`Sums`) over a total (`Totals`) that is known before any gradient is taken. Means of means
would weigh the tokens of a short answer more than those of a long one.

The backbone's hidden states condition the head with gradients; where the backbone is frozen nothing flows back, and XLA
computes none of it. The VAE encodes, and is never trained here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from internvlu_jax.config import Compute, InternVLUConfig
from internvlu_jax.data.batch import Batch, Picture, Text
from internvlu_jax.flow.path import TIME_SCALE, interpolate, velocity_target
from internvlu_jax.flow.times import LogitNormal, Uniform
from internvlu_jax.models.internvlu import modules
from internvlu_jax.models.lora import adapted
from internvlu_jax.models.qwen3 import Qwen3Output
from internvlu_jax.ops.msrope import msrope_table
from internvlu_jax.training.config import ObjectiveConfig

Params = dict[str, Any]


class Totals(NamedTuple):
    """What the sums of a whole step are divided by: pictures that count, target tokens that count."""

    pictures: Float[Array, ""]
    tokens: Float[Array, ""]


class Sums(NamedTuple):
    """Sums of equations (1) and (2) over one micro-batch, before their division."""

    flow: Float[Array, ""]
    text: Float[Array, ""]


class Draws(NamedTuple):
    """Random numbers of one micro-batch, keyed by the rows' numbers; g = `draws` for each row, one after the other."""

    sigma: Float[Array, "b*g"]
    noise: Float[Array, "b*g y x c"]


@dataclass(frozen=True)
class Objective:
    """Equations (1) to (3) for one model.

    special_ids: ids of the ten tokens with embeddings of their own (`Tokenizer.special_table_ids`).
    chunk: target positions whose logits exist at once, over all devices that share a computation.
    adapter_scale: of low-rank adapters in the parameters, see `models.lora`; None if there are none.
    """

    cfg: InternVLUConfig
    compute: Compute
    weights: ObjectiveConfig
    special_ids: tuple[int, ...]
    chunk: int = 1024
    adapter_scale: float | None = None

    def totals(self, batch: Batch) -> Totals:
        """What one micro-batch adds to the totals of its step."""
        picture, text = batch.picture, batch.text
        pictures = jnp.zeros(()) if picture is None else jnp.sum(jnp.asarray(picture.weight))
        tokens = jnp.zeros(()) if text is None or text.weights is None else jnp.sum(jnp.asarray(text.weights))
        return Totals(pictures, tokens)

    def loss(self, sums: Sums, totals: Totals) -> Float[Array, ""]:
        """Equation (3); a kind of target that the step does not have counts as 0."""
        flow, text = self.means(sums, totals)
        return self.weights.text_weight * text + self.weights.flow_weight * flow

    def means(self, sums: Sums, totals: Totals) -> Sums:
        """Equations (1) and (2)."""
        return Sums(sums.flow / jnp.maximum(totals.pictures, 1.0), sums.text / jnp.maximum(totals.tokens, 1.0))

    def draw(self, key: PRNGKeyArray, batch: Batch) -> Draws | None:
        """Noise levels and noise of a micro-batch's pictures: the same wherever a row is computed."""
        if batch.picture is None:
            return None
        sigma_key, noise_key = jax.random.split(key)
        grid = self._latent_shape(batch.picture)
        draws = self.weights.draws
        index = rearrange(draws * jnp.asarray(batch.index)[:, None] + jnp.arange(draws), "b g -> (b g)")
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(noise_key, i), grid))(index)
        return Draws(self._times().sample(sigma_key, index), noise)

    def sums(self, params: Params, batch: Batch, draws: Draws | None) -> Sums:
        """Sums of one micro-batch; `params` has the keys vlm, head and, where pictures come as pixels, vae."""
        batch = jax.tree.map(jnp.asarray, batch)
        with nullcontext() if self.adapter_scale is None else adapted(self.adapter_scale):
            states = None if batch.text is None else self._read(params["vlm"], batch.text, batch.picture is not None)
            text, flow = jnp.zeros(()), jnp.zeros(())
            if states is not None and batch.text is not None and batch.text.weights is not None:
                text = self._text_sum(params["vlm"], states.last, batch.text)
            if batch.picture is not None and draws is not None:
                context = batch.picture.context if states is None else _chosen(states, batch.picture)
                flow = self._flow_sum(params, batch.picture, context, draws)
        return Sums(flow, text)

    def contexts(self, vlm: Params, batch: Batch) -> Float[Array, "b t e"]:
        """The hidden states that condition the pictures of a batch, to be stored in place of its text."""
        return self._contexts(vlm, jax.tree.map(jnp.asarray, batch))[1]

    def text_and_contexts(self, vlm: Params, batch: Batch) -> tuple[Float[Array, ""], Float[Array, "b t e"]]:
        """Mean of equation (2) over a batch with targets, and its `contexts`, from one pass."""
        batch = jax.tree.map(jnp.asarray, batch)
        states, contexts = self._contexts(vlm, batch)
        assert batch.text is not None
        sums = Sums(jnp.zeros(()), self._text_sum(vlm, states.last, batch.text))
        return self.means(sums, self.totals(batch)).text, contexts

    def _contexts(self, vlm: Params, batch: Batch) -> tuple[Qwen3Output, Float[Array, "b t e"]]:
        assert batch.text is not None and batch.picture is not None
        states = self._read(vlm, batch.text, True)
        return states, _chosen(states, batch.picture)

    def _apply(self, part: str, params: Params, *args: Any, method: str | None = None, **kwargs: Any) -> Any:
        return modules(self.cfg, self.compute)[part].apply({"params": params}, *args, method=method, **kwargs)

    def _times(self) -> LogitNormal | Uniform:
        head = self.cfg.generation_decoder
        shift = head.flow_shift if self.weights.shift is None else self.weights.shift
        return Uniform(shift) if self.weights.time == "uniform" else LogitNormal(head.logit_mean, head.logit_std, shift)

    # The language model

    def _read(self, vlm: Params, text: Text, conditions: bool) -> Qwen3Output:
        """The language model over the rows, with the hidden states that condition the head if any do."""
        ids, special = text.ids, jnp.asarray(self.special_ids)
        if text.tiles is None:
            x = self._apply("vlm", vlm, ids, special, method="embed_prompt")
        else:
            x = self._embed_pictures(vlm, ids, special, text)
        mask = None
        if text.segments is not None:
            segments = text.segments
            mask = segments[:, :, None] == segments[:, None, :]
        capture = self.cfg.generation_decoder.vlm_select_layer if conditions else ()
        return self._apply("vlm", vlm, x, text.positions, mask=mask, capture=capture)

    def _embed_pictures(self, vlm: Params, ids: Array, special: Array, text: Text) -> Float[Array, "b s d"]:
        """Row by row, so that each row's visual tokens stay with it on a sharded mesh."""
        tiles = self._normalised(text.tiles)
        visual = self._apply("vlm", vlm, rearrange(tiles, "b k p q c -> (b k) p q c"), method="visual_tokens")
        visual = rearrange(visual, "(b k) t d -> b (k t) d", b=ids.shape[0])

        def embed(row: Array, seen: Array, index: Array) -> Array:
            return self._apply("vlm", vlm, row[None], special, seen, index[None], method="embed_prompt")[0]

        return jax.vmap(embed)(ids, visual, text.visual_index)

    def _normalised(self, tiles: UInt8[Array, "b k p q 3"]) -> Float[Array, "b k p q 3"]:
        """As `processing.images.normalise`, on the device."""
        cfg = self.cfg.processor.image_processor_kwargs
        mean, std = (255 * jnp.asarray(values, jnp.float32) for values in (cfg.image_mean, cfg.image_std))
        return (tiles.astype(jnp.float32) - mean) / std

    def _text_sum(self, vlm: Params, last: Float[Array, "b s d"], text: Text) -> Float[Array, ""]:
        def logits(states: Array) -> Array:
            return self._apply("vlm", vlm, states, method="logits")

        return token_loss(logits, last, text.targets, text.weights, self.chunk)

    # The head

    def _latent_shape(self, picture: Picture) -> tuple[int, int, int]:
        _, rows, columns, _ = picture.target.shape
        if picture.target.dtype == jnp.uint8:
            factor = self.cfg.vae.downsample_factor
            rows, columns = rows // factor, columns // factor
        return rows, columns, self.cfg.vae.z_dim

    def latents(self, params: Params, picture: Array) -> Float[Array, "b y x c"]:
        """Normalised latents: of 8-bit pixels by the VAE (its parameters under `vae`), or as they were stored."""
        if picture.dtype != jnp.uint8:
            return picture.astype(jnp.float32)
        cfg = self.cfg.processor.image_gen_processor_kwargs
        mean, std = (jnp.asarray(values, jnp.float32) for values in (cfg.image_mean, cfg.image_std))
        pixels = (picture.astype(jnp.float32) / 255 - mean) / std
        latents = self._apply("vae", params["vae"], pixels, method="encode_latents")
        return jax.lax.stop_gradient(latents.astype(jnp.float32))

    def _flow_sum(self, params: Params, picture: Picture, context: Any, drawn: Draws) -> Float[Array, ""]:
        head, dit, draws = params["head"], self.cfg.generation_decoder.decoder_config, self.weights.draws

        def each(array: Array) -> Array:
            return jnp.repeat(array, draws, axis=0)

        clean = each(self.latents(params, picture.target))
        velocity = self._apply(
            "head",
            head,
            interpolate(clean, drawn.noise, drawn.sigma),
            TIME_SCALE * drawn.sigma,
            each(self._apply("head", head, context, method="embed_context")),
            each(picture.context_lengths),
            jax.tree.map(each, msrope_table(picture.positions, dit.axes_dims_rope)),
            tuple(each(self.latents(params, source)) for source in picture.sources),
        )
        error = jnp.square(velocity - velocity_target(clean, drawn.noise))
        return jnp.sum(jnp.mean(error, axis=(1, 2, 3)) * each(picture.weight)) / draws


def _chosen(states: Qwen3Output, picture: Picture) -> Float[Array, "b t e"]:
    """Of the captured hidden states of whole rows those that condition the head."""
    assert states.captured is not None and picture.context_index is not None
    return jnp.take_along_axis(states.captured, picture.context_index[..., None], axis=1, mode="clip")


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
