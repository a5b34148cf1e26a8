"""Released tensors of `vlm/` and the parameters they fill: vision encoder, projector, language model, special tokens.

Linear weights are [out, in] in the release and [in, out] here, with attention heads on axes of their own.
"""

from __future__ import annotations

from converters.rules import Rule
from internvlu_jax.config import Qwen3Config, VisionConfig, VLMConfig


def vlm_rules(cfg: VLMConfig) -> list[Rule]:
    """One rule per released tensor, or per tensor of every layer; targets are paths within the `vlm` parameters."""
    return [
        *_vision_rules(cfg.vision_config),
        Rule("mlp1.0.weight", "projector/norm/scale"),
        Rule("mlp1.0.bias", "projector/norm/bias"),
        Rule("mlp1.1.weight", "projector/fc1/kernel", "o i -> i o"),
        Rule("mlp1.1.bias", "projector/fc1/bias"),
        Rule("mlp1.3.weight", "projector/fc2/kernel", "o i -> i o"),
        Rule("mlp1.3.bias", "projector/fc2/bias"),
        *_llm_rules(cfg.llm_config),
        Rule("special_token_embedding.weight", "special_tokens/embedding"),
    ]


def _vision_rules(cfg: VisionConfig) -> list[Rule]:
    patch = {"c": cfg.num_channels, "p": cfg.patch_size, "q": cfg.patch_size}

    def layer(source: str, target: str, pattern: str = "") -> Rule:
        source, target = f"vision_model.encoder.layers.{{i}}.{source}", f"vit/layers/{target}"
        return Rule(source, target, pattern, layers=cfg.num_hidden_layers)

    qkv_bias = [layer("attn.qkv.bias", "attn/qkv/bias", "(three n h) -> three n h")]
    return [
        Rule("vision_model.embeddings.class_embedding", "vit/class_token", "1 1 d -> d"),
        Rule("vision_model.embeddings.position_embedding", "vit/position_embedding", "1 s d -> s d"),
        Rule(
            "vision_model.embeddings.patch_embedding.weight",
            "vit/patch_embed/kernel",
            "d c p q -> (c p q) d",
            patch,
        ),
        Rule("vision_model.embeddings.patch_embedding.bias", "vit/patch_embed/bias"),
        layer("norm1.weight", "norm1/scale"),
        layer("norm1.bias", "norm1/bias"),
        layer("norm2.weight", "norm2/scale"),
        layer("norm2.bias", "norm2/bias"),
        layer("attn.qkv.weight", "attn/qkv/kernel", "(three n h) d -> d three n h"),
        *(qkv_bias if cfg.qkv_bias else []),
        layer("attn.proj.weight", "attn/out/kernel", "d (n h) -> n h d"),
        layer("attn.proj.bias", "attn/out/bias"),
        layer("ls1", "ls1"),
        layer("ls2", "ls2"),
        layer("mlp.fc1.weight", "mlp/fc1/kernel", "o i -> i o"),
        layer("mlp.fc1.bias", "mlp/fc1/bias"),
        layer("mlp.fc2.weight", "mlp/fc2/kernel", "o i -> i o"),
        layer("mlp.fc2.bias", "mlp/fc2/bias"),
    ]


def _llm_rules(cfg: Qwen3Config) -> list[Rule]:
    """A tied output layer is the token table itself, and the release stores no tensor for it."""

    def layer(source: str, target: str, pattern: str = "") -> Rule:
        source, target = f"language_model.model.layers.{{i}}.{source}.weight", f"llm/layers/{target}"
        return Rule(source, target, pattern, layers=cfg.num_hidden_layers)

    rules = [
        Rule("language_model.model.embed_tokens.weight", "llm/embed/embedding"),
        layer("input_layernorm", "input_norm/scale"),
        layer("post_attention_layernorm", "post_norm/scale"),
        layer("self_attn.q_proj", "attn/q/kernel", "(n h) d -> d n h"),
        layer("self_attn.k_proj", "attn/k/kernel", "(n h) d -> d n h"),
        layer("self_attn.v_proj", "attn/v/kernel", "(n h) d -> d n h"),
        layer("self_attn.o_proj", "attn/out/kernel", "d (n h) -> n h d"),
        layer("self_attn.q_norm", "attn/q_norm/scale"),
        layer("self_attn.k_norm", "attn/k_norm/scale"),
        layer("mlp.gate_proj", "mlp/gate/kernel", "o i -> i o"),
        layer("mlp.up_proj", "mlp/up/kernel", "o i -> i o"),
        layer("mlp.down_proj", "mlp/down/kernel", "o i -> i o"),
        Rule("language_model.model.norm.weight", "llm/norm/scale"),
    ]
    if not cfg.tie_word_embeddings:
        rules.append(Rule("language_model.lm_head.weight", "llm/lm_head/kernel", "v d -> d v"))
    return rules
