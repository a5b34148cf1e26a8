"""Vision encoder, projector and language model: the part that reads."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from internvlu_jax.config import Compute, VLMConfig
from internvlu_jax.models import slots
from internvlu_jax.models.layers import rows_first
from internvlu_jax.models.qwen3 import KVCache, Qwen3, Qwen3Output
from internvlu_jax.models.vit import Projector
from internvlu_jax.ops.patches import pixel_shuffle
from internvlu_jax.processing.tokenizer import SPECIAL_TABLE

NUM_SPECIAL_TOKENS = len(SPECIAL_TABLE)


class VLM(nn.Module):
    """Vision encoder, projector, language model and the table of the ten special tokens."""

    cfg: VLMConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        self.vit: Any = slots.module(self.cfg.vision_config, self.compute)
        self.projector = Projector(self.cfg.llm_config.hidden_size, self.compute)
        self.llm = Qwen3(self.cfg.llm_config, self.compute)
        self.special_tokens = nn.Embed(NUM_SPECIAL_TOKENS, self.cfg.llm_config.hidden_size)

    def visual_tokens(self, tiles: Float[Array, "b y x 3"]) -> Float[Array, "b s d"]:
        """What the language model sees of each tile: ViT, pixel shuffle, projector."""
        vision = self.cfg.vision_config
        rows, columns = (side // vision.patch_size for side in tiles.shape[1:3])
        patches = self.vit(tiles)
        return self.gathered(patches.reshape(patches.shape[0], rows, columns, -1))

    def gathered(self, grid: Float[Array, "b y x e"]) -> Float[Array, "b s d"]:
        """Visual tokens of the features of patches."""
        shuffled = pixel_shuffle(grid, self.cfg.shuffle)
        # Rows whole, or the language model would look visual tokens up in pieces of their width, all rows on a device.
        # The gradient before the projector likewise, which the shuffle turns.
        joined = rows_first(shuffled.reshape(shuffled.shape[0], -1, shuffled.shape[-1]))
        return rows_first(self.projector(joined))

    def embed_prompt(
        self,
        ids: Int[Array, "b s"],
        special_ids: Int[Array, "10"],
        visual: Float[Array, "k d"] | None = None,
        visual_index: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b s d"]:
        """Embeds a prompt (released code: `replace_img_special_tokens`, then the visual tokens).

        The rows of the special-token table replace the embeddings of `special_ids`; then position (b, s) takes visual
        token `visual_index[b, s]` where that is not negative. Several rows may show the same picture.
        """
        x = self.llm.embed(ids)
        is_special = ids[..., None] == special_ids
        special = self.special_tokens(jnp.argmax(is_special, axis=-1)).astype(x.dtype)
        x = jnp.where(is_special.any(axis=-1, keepdims=True), special, x)
        if visual is None or visual_index is None:
            return x
        seen = visual.astype(x.dtype)[jnp.maximum(visual_index, 0)]
        return jnp.where((visual_index >= 0)[..., None], seen, x)

    def embed_written(self, ids: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """Embeds tokens while they are being written: the language model's own table, special tokens too.

        Parity: the released code looks special tokens up in their own table only when it encodes a prompt.
        """
        return self.llm.embed(ids)

    def logits(self, last: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        return self.llm.logits(last)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        positions: Int[Array, "b s"],
        *,
        segments: Int[Array, "b s"] | None = None,
        cache: KVCache | None = None,
        return_kv: bool = False,
        capture: tuple[int, ...] = (),
    ) -> Qwen3Output:
        return self.llm(x, positions, segments=segments, cache=cache, return_kv=return_kv, capture=capture)

    def build(self) -> None:
        """Touches every parameter once; used to initialise."""
        size = self.cfg.vision_config.image_size
        visual = self.visual_tokens(jnp.zeros((1, size, size, 3)))[0]
        ids = jnp.zeros((1, 2), jnp.int32)
        x = self.embed_prompt(ids, jnp.arange(NUM_SPECIAL_TOKENS), visual, ids)
        self.logits(self(x, jnp.arange(2)[None]).last)
