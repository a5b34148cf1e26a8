"""The least an equivalent computation needs, in operations (two for each multiply-add), part by part.

What the formulas assume, each exact:
- one stream's weights per token; text-to-image has two branches, editing three, of which the one with everything
  dropped sees no condition latents;
- all branches start from the same noisy latents, and two of editing's from the same condition latents, so the first
  block's queries, gates, keys and values of these tokens are shared;
- in the last block context and condition tokens give keys and values only; all branches share one time embedding;
- contexts are embedded once per picture; that of the fully dropped prompt is kept from picture to picture; of the
  prompt without text only what follows the prefix that it shares with the whole prompt is encoded;
- causal attention counts the pairs that are seen; no lm_head but for the tokens that are chosen by it;
- each source picture goes once through the vision encoder and once through the VAE, whose convolutions are 2-D, and
  after an enlargement 2 x 2.
Every size is the config's; what stands here as a number is the same in all configs of these classes.
Norms, activations, rotary turns and the solver are not counted, as in `internvlu_jax.utils.flops`.

Letters: d width, f MLP width, S tokens of a branch, n tokens of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from internvlu_jax.config import (
    HeadConfig,
    InternVLUConfig,
    MMDiTConfig,
    Qwen3Config,
    VAEConfig,
    VisionConfig,
    VLMConfig,
)
from internvlu_jax.processing.layout import takes_latents

_TIME_CHANNELS = 256
_PIXEL_CHANNELS = 3


@dataclass(frozen=True)
class Case:
    """What is asked of the model, in sizes and token counts.

    system: tokens of the system turn, which conditions nothing.
    turns: tokens from the user turn to the end, per branch: whole prompt, text dropped (editing only), all dropped.
    shared: tokens at the start of the user turn that the whole and the text-dropped prompt have in common.
    """

    task: str
    height: int
    width: int
    system: int
    turns: tuple[int, ...]
    shared: int = 0
    tiles: int = 0
    steps: int = 20
    new_tokens: int = 0


@dataclass(frozen=True)
class Branch:
    """Tokens of one guidance branch: noisy latents, condition latents, context."""

    noisy: int
    condition: int
    context: int

    @property
    def total(self) -> int:
        return self.noisy + self.condition + self.context


def minimum(cfg: InternVLUConfig, case: Case) -> dict[str, int]:
    """Operations of each part for one picture or one answer."""
    if case.task == "text":
        return _minimum_of_text(cfg, case)
    rows = branches(cfg, case)
    parts = {
        "vision": visual_tokens(cfg.vlm, case.tiles),
        "prompt": _encode_prompts(cfg.vlm.llm_config, case),
        "context": sum(embed_context(cfg.generation_decoder, row.context) for row in rows[:-1]),
        "vae_encode": vae_encode(cfg.vae, case.height, case.width) if rows[0].condition else 0,
        "denoise": case.steps * denoise_step(cfg.generation_decoder.decoder_config, rows),
        "vae_decode": vae_decode(cfg.vae, case.height, case.width),
    }
    return {name: operations for name, operations in parts.items() if operations}


def _minimum_of_text(cfg: InternVLUConfig, case: Case) -> dict[str, int]:
    llm, prompt = cfg.vlm.llm_config, case.system + case.turns[0]
    return {
        "vision": visual_tokens(cfg.vlm, case.tiles),
        "prompt": encode(llm, prompt) + lm_head(llm, 1),
        "write": write(llm, prompt, case.new_tokens - 1),  # the prompt itself gives the first token
    }


def _encode_prompts(llm: Qwen3Config, case: Case) -> int:
    total = encode(llm, case.system + case.turns[0])
    if case.task == "edit":
        prefix = case.system + case.shared
        total += encode(llm, case.system + case.turns[1] - prefix, before=prefix)
    return total


def contexts(cfg: InternVLUConfig, case: Case) -> tuple[int, ...]:
    """Context tokens of each branch: its turns, as far as the head takes them.

    A head that gets sources as latents alone has no context of them: visual tokens and two marks for each picture.
    """
    head, last = cfg.generation_decoder, len(case.turns) - 1
    pictures = case.tiles * (cfg.vlm.tokens_per_tile + 2) if head.sources == "latents" else 0
    shown = (length - (pictures if row < last else 0) for row, length in enumerate(case.turns))
    return tuple(head.context_length(length) for length in shown)


def branches(cfg: InternVLUConfig, case: Case) -> list[Branch]:
    """The guidance branches; the source picture of an edit is as large as the result."""
    noisy = case.height * case.width // cfg.generation_decoder.pixel_multiple**2
    seen = noisy if case.task == "edit" and takes_latents(cfg) else 0
    last = len(case.turns) - 1
    return [Branch(noisy, seen if row < last else 0, length) for row, length in enumerate(contexts(cfg, case))]


# Building blocks.


def linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and weighted sum: 4 operations a pair and channel of the query heads."""
    return 4 * queries * keys * width


def causal_attention(tokens: int, width: int, before: int = 0) -> int:
    """`tokens` in a row, each seeing itself, those ahead of it, and `before` earlier ones."""
    pairs = tokens * before + tokens * (tokens + 1) // 2
    return 4 * pairs * width


# Vision and language.


def visual_tokens(cfg: VLMConfig, tiles: int) -> int:
    """ViT over patches and class token, 24 d^2 a token and layer (qkv 6, out 2, MLP 16), then the projector."""
    per_tile = vision_encoder(cfg.vision_config)
    width = cfg.llm_config.hidden_size
    shuffled = cfg.vision_config.hidden_size * cfg.shuffle**2
    per_tile += linear(cfg.tokens_per_tile, shuffled, width) + linear(cfg.tokens_per_tile, width, width)
    return tiles * per_tile


def vision_encoder(cfg: VisionConfig) -> int:
    d, patches = cfg.hidden_size, (cfg.image_size // cfg.patch_size) ** 2
    tokens = patches + 1
    layer = linear(tokens, d, 4 * d) + 2 * linear(tokens, d, cfg.intermediate_size) + attention(tokens, tokens, d)
    return linear(patches, cfg.num_channels * cfg.patch_size**2, d) + cfg.num_hidden_layers * layer


def encode(cfg: Qwen3Config, tokens: int, before: int = 0) -> int:
    """Tokens through all layers of the language model, `before` of them already in the cache."""
    d, queries = cfg.hidden_size, cfg.num_attention_heads * cfg.head_dim
    keys = cfg.num_key_value_heads * cfg.head_dim
    projections = linear(tokens, d, queries + 2 * keys) + linear(tokens, queries, d)
    layer = projections + 3 * linear(tokens, d, cfg.intermediate_size) + causal_attention(tokens, queries, before)
    return cfg.num_hidden_layers * layer


def lm_head(cfg: Qwen3Config, tokens: int) -> int:
    return linear(tokens, cfg.hidden_size, cfg.vocab_size)


def write(cfg: Qwen3Config, prompt: int, tokens: int) -> int:
    """Tokens that are fed back one by one after a prompt, each giving the next token's logits."""
    return encode(cfg, tokens, before=prompt) + lm_head(cfg, tokens)


# The head.


def embed_context(cfg: HeadConfig, tokens: int) -> int:
    """The projector, if the checkpoint has one, and the linear layer into the text stream."""
    e = cfg.output_hidden_size
    projector = linear(tokens, cfg.input_hidden_size, 3 * e) + linear(tokens, 3 * e, e)
    into_stream = linear(tokens, cfg.decoder_config.joint_attention_dim, cfg.decoder_config.hidden_size)
    return into_stream + (0 if cfg.decoder_projector_type == "identity" else projector)


def block_tokens(cfg: MMDiTConfig, tokens: int) -> int:
    """Linear layers of one block: 26 d^2 a token (query and gate 4, key 2, value 2, output 2, MLP 16)."""
    return 13 * linear(tokens, cfg.hidden_size, cfg.hidden_size)


def denoise_step(cfg: MMDiTConfig, rows: list[Branch]) -> int:
    """One evaluation of all branches: full blocks, less what the last and the first one save."""
    d = cfg.hidden_size
    full = sum(block_tokens(cfg, row.total) + attention(row.total, row.total, d) for row in rows)
    saved = _last_block_saving(cfg, rows) + _first_block_saving(cfg, rows)
    patch = cfg.in_channels
    pictures = {row.condition for row in rows} - {0}
    into_stream = linear(rows[0].noisy + sum(pictures), patch, d)
    out_of_stream = sum(linear(row.noisy, d, cfg.out_channels * cfg.patch_size**2) for row in rows)
    return cfg.num_layers * full - saved + into_stream + out_of_stream + _time(cfg)


def _last_block_saving(cfg: MMDiTConfig, rows: list[Branch]) -> int:
    """Context and condition tokens need no query, gate, output and MLP there: 22 d^2 and their row of attention."""
    d = cfg.hidden_size
    silent = [row.condition + row.context for row in rows]
    return sum(
        11 * linear(tokens, d, d) + attention(tokens, row.total, d) for tokens, row in zip(silent, rows, strict=True)
    )


def _first_block_saving(cfg: MMDiTConfig, rows: list[Branch]) -> int:
    """Query, gate, key and value, 8 d^2, of latents that another branch has too."""
    repeated = sum(row.noisy for row in rows[1:]) + sum(row.condition for row in rows[1:])
    return 4 * linear(repeated, cfg.hidden_size, cfg.hidden_size)


def _time(cfg: MMDiTConfig) -> int:
    """Time embedding, six vectors for each stream and block, two for the output: the same for all branches."""
    d = cfg.hidden_size
    return linear(1, _TIME_CHANNELS, d) + linear(1, d, d) + linear(1, d, 12 * d * cfg.num_layers) + linear(1, d, 2 * d)


# The VAE on single pictures.


def conv(rows: int, columns: int, inputs: int, outputs: int, side: int) -> int:
    return linear(rows * columns, side * side * inputs, outputs)


def res_block(rows: int, columns: int, inputs: int, outputs: int) -> int:
    skip = conv(rows, columns, inputs, outputs, 1) if inputs != outputs else 0
    return conv(rows, columns, inputs, outputs, 3) + conv(rows, columns, outputs, outputs, 3) + skip


def vae_middle(rows: int, columns: int, width: int) -> int:
    """Res block, one-head attention over all positions, res block."""
    positions = rows * columns
    around = linear(positions, width, 4 * width) + attention(positions, positions, width)
    return 2 * res_block(rows, columns, width, width) + around


def vae_encode(cfg: VAEConfig, height: int, width: int) -> int:
    """First convolution, stages of res blocks with a strided convolution between, middle, moments.

    A place of the first convolution is a patch of `cfg.patch_size` pixels a side, all its pixels as channels.
    """
    stages = [cfg.base_dim * factor for factor in cfg.dim_mult]
    rows, columns = height // cfg.patch_size, width // cfg.patch_size
    total, channels = conv(rows, columns, _PIXEL_CHANNELS * cfg.patch_size**2, cfg.base_dim, 3), cfg.base_dim
    for number, outputs in enumerate(stages):
        for _ in range(cfg.num_res_blocks):
            total += res_block(rows, columns, channels, outputs)
            channels = outputs
        if number < len(stages) - 1:
            rows, columns = rows // 2, columns // 2
            total += conv(rows, columns, channels, channels, 3)
    moments = 2 * cfg.z_dim
    total += vae_middle(rows, columns, channels) + conv(rows, columns, channels, moments, 3)
    return total + conv(rows, columns, moments, moments, 1)


def vae_decode(cfg: VAEConfig, height: int, width: int) -> int:
    """The encoder turned round, with one res block more a stage; an enlargement halves the width.

    An enlarged picture repeats each entry 2 x 2 times, so 3 x 3 windows see only 2 x 2 different ones: 4/9 of the work.
    """
    stages = [cfg.base_dim * factor for factor in (cfg.dim_mult[-1], *reversed(cfg.dim_mult))]
    rows, columns = height // cfg.downsample_factor, width // cfg.downsample_factor
    total = conv(rows, columns, cfg.z_dim, cfg.z_dim, 1) + conv(rows, columns, cfg.z_dim, stages[0], 3)
    total += vae_middle(rows, columns, stages[0])
    for number, (inputs, outputs) in enumerate(pairwise(stages)):
        channels = inputs if number == 0 else inputs // 2
        for _ in range(cfg.num_res_blocks + 1):
            total += res_block(rows, columns, channels, outputs)
            channels = outputs
        if number < len(cfg.dim_mult) - 1:
            rows, columns = 2 * rows, 2 * columns
            total += conv(rows, columns, outputs, outputs // 2, 2)
    return total + conv(rows, columns, cfg.base_dim * cfg.dim_mult[0], _PIXEL_CHANNELS * cfg.patch_size**2, 3)
