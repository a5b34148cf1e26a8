"""Conversion table of the generation head: released `generation_decoder` tensors <-> our parameters.

Letters: d input width, f output width, n heads, h head width, p number of vectors. Released matrices are [out, in],
ours [in, out].
"""

from __future__ import annotations

from converters.engine import Rule
from internvlu_jax.config import HeadConfig

# Names of one stream's tensors inside a released block.
_IMAGE = {
    "mod": "img_mod.1", "q": "attn.to_q", "k": "attn.to_k", "v": "attn.to_v", "q_norm": "attn.norm_q",
    "k_norm": "attn.norm_k", "out": "attn.to_out.0", "fc1": "img_mlp.net.0.proj", "fc2": "img_mlp.net.2",
}  # fmt: skip
_TEXT = {
    "mod": "txt_mod.1", "q": "attn.add_q_proj", "k": "attn.add_k_proj", "v": "attn.add_v_proj",
    "q_norm": "attn.norm_added_q", "k_norm": "attn.norm_added_k", "out": "attn.to_add_out",
    "fc1": "txt_mlp.net.0.proj", "fc2": "txt_mlp.net.2",
}  # fmt: skip


def head_rules(cfg: HeadConfig) -> list[Rule]:
    """Every tensor of `generation_decoder`; targets are relative to the head's parameters."""
    last = cfg.decoder_config.num_layers - 1
    rules = [Rule("encoder_padding_token", "padding_token")]
    if cfg.decoder_projector_type == "mlp2x_gelu":
        rules += _linear("decoder_projector.0", "projector/fc1")
        rules += _linear("decoder_projector.2", "projector/fc2")
    rules += _linear("decoder.time_text_embed.timestep_embedder.linear_1", "mmdit/time_embed/fc1")
    rules += _linear("decoder.time_text_embed.timestep_embedder.linear_2", "mmdit/time_embed/fc2")
    rules.append(Rule("decoder.txt_norm.weight", "mmdit/context_norm/scale"))
    rules += _linear("decoder.txt_in", "mmdit/context_in")
    rules += _linear("decoder.img_in", "mmdit/latent_in")
    if last > 0:
        rules += _block("decoder.transformer_blocks.{i}", "mmdit/blocks", last)
    rules += _block(f"decoder.transformer_blocks.{last}", "mmdit/last_block", None)
    rules += _split_linear("decoder.norm_out.linear", "mmdit/norm_out")
    rules += _linear("decoder.proj_out", "mmdit/proj_out")
    return rules


def _block(source: str, target: str, layers: int | None) -> list[Rule]:
    rules = []
    for stream, names in (("image", _IMAGE), ("text", _TEXT)):
        there = {part: f"{source}.{name}" for part, name in names.items()}
        here = f"{target}/{stream}"
        rules += _split_linear(there["mod"], f"{here}/mod", layers)
        for part in ("q", "k", "v"):
            rules += _heads_out(there[part], f"{here}/{part}", layers)
        for part in ("q_norm", "k_norm"):
            rules.append(Rule(f"{there[part]}.weight", f"{here}/{part}/scale", layers=layers))
        rules.append(Rule(f"{there['out']}.weight", f"{here}/out/kernel", "d (n h) -> n h d", layers=layers))
        rules.append(Rule(f"{there['out']}.bias", f"{here}/out/bias", layers=layers))
        rules += _linear(there["fc1"], f"{here}/mlp/fc1", layers)
        rules += _linear(there["fc2"], f"{here}/mlp/fc2", layers)
    return rules


def _linear(source: str, target: str, layers: int | None = None) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"{target}/kernel", "f d -> d f", layers=layers),
        Rule(f"{source}.bias", f"{target}/bias", layers=layers),
    ]


def _split_linear(source: str, target: str, layers: int | None = None) -> list[Rule]:
    """A linear layer that gives several vectors, one after the other; our parameter has an axis for them."""
    return [
        Rule(f"{source}.weight", f"{target}/kernel", "(p f) d -> d p f", layers=layers),
        Rule(f"{source}.bias", f"{target}/bias", "(p f) -> p f", layers=layers),
    ]


def _heads_out(source: str, target: str, layers: int | None) -> list[Rule]:
    """A projection to heads; of the doubled query projection each head holds its query and then its gate."""
    return [
        Rule(f"{source}.weight", f"{target}/kernel", "(n h) d -> d n h", layers=layers),
        Rule(f"{source}.bias", f"{target}/bias", "(n h) -> n h", layers=layers),
    ]
