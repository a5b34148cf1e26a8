"""InternVL-U put together: three parts that meet in two places.

    pixels --ViT--> projector --> visual tokens --+
    text ----------> embedding -------------------+--> Qwen3 --> hidden states --> text
                                                                     |
                                                      context (selected layers, user turn)
    source picture --VAE--> condition latents --> gated MMDiT <------+
    noise ------------------> noisy latents ----->     |
                                                       +--> velocity --> solver --> latents --VAE--> picture

The three parts are `vlm`, `head` and `vae`; parameters are a dict with these keys.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from internvlu_jax.config import Compute, HeadConfig, InternVLUConfig, VLMConfig
from internvlu_jax.models.mmdit import MMDiT
from internvlu_jax.models.qwen3 import KVCache, Qwen3, Qwen3Output
from internvlu_jax.models.vae import VAE
from internvlu_jax.models.vit import Projector, VisionTransformer
from internvlu_jax.ops.patches import pixel_shuffle

NUM_SPECIAL_TOKENS = 10


class VLM(nn.Module):
    """Vision encoder, projector, language model and the table of the ten special tokens."""

    cfg: VLMConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        self.vit = VisionTransformer(self.cfg.vision_config, self.compute)
        self.projector = Projector(self.cfg.llm_config.hidden_size, self.compute)
        self.llm = Qwen3(self.cfg.llm_config, self.compute)
        self.special_tokens = nn.Embed(NUM_SPECIAL_TOKENS, self.cfg.llm_config.hidden_size)

    def visual_tokens(self, tiles: Float[Array, "b y x 3"]) -> Float[Array, "b s d"]:
        """What the language model sees of each tile: ViT, pixel shuffle, projector."""
        vision = self.cfg.vision_config
        rows, columns = (side // vision.patch_size for side in tiles.shape[1:3])
        patches = self.vit(tiles)
        grid = patches.reshape(patches.shape[0], rows, columns, -1)
        shuffled = pixel_shuffle(grid, self.cfg.shuffle)
        return self.projector(shuffled.reshape(shuffled.shape[0], -1, shuffled.shape[-1]))

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
        mask: Bool[Array, "b s s"] | None = None,
        cache: KVCache | None = None,
        return_kv: bool = False,
        capture: tuple[int, ...] = (),
    ) -> Qwen3Output:
        return self.llm(x, positions, mask=mask, cache=cache, return_kv=return_kv, capture=capture)

    def build(self) -> None:
        """Touches every parameter once; used to initialise."""
        size = self.cfg.vision_config.image_size
        visual = self.visual_tokens(jnp.zeros((1, size, size, 3)))[0]
        ids = jnp.zeros((1, 2), jnp.int32)
        x = self.embed_prompt(ids, jnp.arange(NUM_SPECIAL_TOKENS), visual, ids)
        self.logits(self(x, jnp.arange(2)[None]).last)


class ContextProjector(nn.Module):
    """`decoder_projector` of type mlp2x_gelu, which despite its name is Linear, SiLU, Linear with a 3x hidden width."""

    width: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b t e"]) -> Float[Array, "b t f"]:
        dtype = jnp.dtype(self.compute.dtype)
        x = nn.Dense(3 * self.width, dtype=dtype, name="fc1")(x)
        return nn.Dense(self.width, dtype=dtype, name="fc2")(nn.silu(x))


class GenerationHead(nn.Module):
    """Context projector, learned padding token and gated MMDiT.

    Contexts are padded on the right and padding never takes part in attention, so the padding token has no effect on
    the output; it is kept because the released checkpoint has it.
    """

    cfg: HeadConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        self.padding_token = self.param("padding_token", nn.initializers.zeros, (self.cfg.input_hidden_size,))
        if self.cfg.decoder_projector_type == "mlp2x_gelu":
            self.projector = ContextProjector(self.cfg.output_hidden_size, self.compute)
        self.mmdit = MMDiT(self.cfg.decoder_config, self.compute)

    def embed_context(self, context: Float[Array, "b t e"]) -> Float[Array, "b t d"]:
        """Hidden states of the language model -> tokens of the head's text stream. Does not depend on time."""
        if self.cfg.decoder_projector_type == "mlp2x_gelu":
            context = self.projector(context)
        return self.mmdit.embed_context(context)

    def __call__(self, *args: Any, **kwargs: Any) -> Float[Array, "b y x c"]:
        """The velocity; arguments as in `MMDiT.__call__`."""
        return self.mmdit(*args, **kwargs)

    def build(self) -> None:
        """Touches every parameter once; used to initialise."""
        dit = self.cfg.decoder_config
        context = self.embed_context(jnp.zeros((1, 1, self.cfg.input_hidden_size)))
        side = dit.patch_size
        tables = jnp.zeros((1, 2, dit.attention_head_dim // 2))
        latents = jnp.zeros((1, side, side, dit.out_channels))
        self(latents, jnp.zeros((1,)), context, jnp.ones((1,), jnp.int32), (tables, tables))


def modules(cfg: InternVLUConfig, compute: Compute = Compute()) -> dict[str, nn.Module]:
    """The three parts by name; `apply` of each with `{"params": params[name]}`."""
    return {
        "vlm": VLM(cfg.vlm, compute),
        "head": GenerationHead(cfg.generation_decoder, compute),
        "vae": VAE(cfg.vae, compute),
    }


def init_params(cfg: InternVLUConfig, key: jax.Array) -> dict[str, Any]:
    """Random float32 parameters of all parts."""
    parts = modules(cfg)
    keys = jax.random.split(key, len(parts))
    return {
        name: module.init(part_key, method="build")["params"]
        for part_key, (name, module) in zip(keys, parts.items(), strict=True)
    }


def param_shapes(cfg: InternVLUConfig) -> dict[str, Any]:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`, without allocating anything."""
    return jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))
