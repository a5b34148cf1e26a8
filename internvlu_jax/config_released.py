"""How the released code reads its config files, where that is not how `config` would have it.

The rule: what would change the numbers is refused by name, what would not is warned about, and an absent key means what
it means to the released class, not the released value. Facts of the released code and of the versions of transformers
(4.52) and diffusers (0.35) that it asks for; of transformers 5, the keys that it writes in place of older ones.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

from internvlu_jax.config import (
    CheckpointWarning,
    ConfigError,
    GenerationImageProcessorConfig,
    HeadConfig,
    ImageProcessorConfig,
    MMDiTConfig,
    ProcessorConfig,
    Qwen3Config,
    SizeConfig,
    VAEConfig,
    VisionConfig,
    VLMConfig,
)


@dataclass(frozen=True)
class Keys:
    """The keys of one JSON object beside the fields of its config, and what absent ones mean.

    fixed: these decide the mathematics, and one value of each is implemented. Written out on export, so that the
        released code reads a complete file. closed: the same, but not written: released files do not have them.
    ignored: these look as if they mattered, and the released code does not use them; written out, too.
    defaults: of the released class, for absent fields and keys, where they are not what stands here.
    """

    fixed: dict[str, Any] = field(default_factory=dict)
    closed: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def written(self) -> dict[str, Any]:
        return {**self.ignored, **self.fixed}


# What both image processors take for an absent mean and deviation: CLIP's.
_CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
_BICUBIC = {"resample": 3, "rescale_factor": 1 / 255}

KEYS: dict[type, Keys] = {
    VisionConfig: Keys(
        fixed={"hidden_act": "gelu", "norm_type": "layer_norm", "qk_normalization": False},
        ignored={"architectures": ["InternVisionModel"]},
        defaults={
            "hidden_size": 3200, "num_hidden_layers": 48, "num_attention_heads": 25, "intermediate_size": 12800,
            "image_size": 224, "qkv_bias": False, "norm_type": "rms_norm", "qk_normalization": True,
        },
    ),
    Qwen3Config: Keys(
        fixed={
            "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "attention_bias": False, "rope_scaling": None,
            "use_sliding_window": False,
        },
        ignored={"model_type": "qwen3"},
        defaults={
            "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "intermediate_size": 22016, "rope_theta": 10000.0,
        },
    ),
    VLMConfig: Keys(
        # What prompts are rendered by (`processing.chat`); the released code has no other template for drawing.
        fixed={"select_layer": -1, "template": "qwen2_5-chat-v3"},
        # It shuffles pixels by "v2" whatever ps_version says.
        ignored={
            "architectures": ["InternVLUChatModel"], "model_type": "internvlu_chat", "ps_version": "v2",
            "anyres_image_size": False, "pad2square": False,
        },
        defaults={"ps_version": "v1"},
    ),
    MMDiTConfig: Keys(defaults={"num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584}),
    HeadConfig: Keys(
        fixed={"padding_encoder_hidden_states": True},
        ignored={"architectures": ["InternVLUGenerationDecoder"]},
        defaults={
            "decoder_projector_type": "mlp2x_gelu", "input_hidden_size": 1536, "output_hidden_size": 2304,
            "pad_to_fix_length": True, "vlm_select_layer": (-1,), "vae_downsample_factor": 32,
        },
    ),
    VAEConfig: Keys(fixed={"attn_scales": []}, closed={"input_channels": 3, "is_residual": False}),
    ProcessorConfig: Keys(
        fixed={"image_gen_processor_class": "InternVLUDynamicResGenerationImageProcessor"},
        ignored={"processor_class": "InternVLUProcessor"},
    ),
    ImageProcessorConfig: Keys(
        fixed={"do_resize": True, "do_rescale": True, "do_normalize": True},
        closed={**_BICUBIC, "do_center_crop": False},
        ignored={"crop_to_patches": False},  # the processor's call says False
        defaults={**_CLIP, "size": {"height": 384, "width": 384}},
    ),
    GenerationImageProcessorConfig: Keys(
        fixed={"do_resize": True, "do_pad": False, "temporal_patch_size": 1},
        closed={**_BICUBIC, "do_rescale": True, "do_normalize": True},
        defaults={**_CLIP, "max_length": None, "temporal_patch_size": 2, "gen_down_sample_ratio": 2.0},
    ),
}  # fmt: skip
# The sampler is implemented as this says; nothing in it is a choice of ours.
SCHEDULER = Keys(
    fixed={
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "solver_order": 2,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "euler_at_final": False,
        "thresholding": False,
        "use_dynamic_shifting": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
    },
    ignored={"_class_name": "DPMSolverMultistepScheduler"},  # model_index.json chooses the class
    defaults={"prediction_type": "epsilon", "use_flow_sigmas": False},
)

_SHOWN: dict[Any, Any] = {}


def note(text: str) -> None:
    """Warns of what a checkpoint says and no number here depends on: one line, and the same one once."""
    warnings.warn_explicit(text, CheckpointWarning, "internvlu_jax", 0, registry=_SHOWN)


def check_keys(keys: Keys, data: dict[str, Any], where: str) -> None:
    """Refuses values that are not implemented, and warns of those that nothing depends on.

    Raises:
        ConfigError: naming `where`, the key and its value.
    """
    if data.get("quantization_config"):
        raise ConfigError(
            f"{where}: quantization_config is {data['quantization_config']!r}: quantized weights are not read here; "
            "take the checkpoint from before it was quantized"
        )
    for key, implemented in {**keys.fixed, **keys.closed}.items():
        if differs := _differs(keys, data, key, implemented):
            raise ConfigError(f"{where}: {differs}; only {implemented!r} is implemented")
    for key, implemented in keys.ignored.items():
        if differs := _differs(keys, data, key, implemented):
            note(f"{where}: {differs}, which the released code does not use; computed as with {implemented!r}")


def _differs(keys: Keys, data: dict[str, Any], key: str, implemented: Any) -> str | None:
    """How a key differs from what is implemented. To the released code null is false where it expects a truth value."""
    value, is_flag = data.get(key), isinstance(implemented, bool)
    if value is None and not (is_flag and key in data):
        default = keys.defaults.get(key, implemented)
        said = f"{value!r}" if key in data else "absent"
        return None if default == implemented else f"{key} is {said}, which means {default!r} to the released class"
    if is_flag and (value is None or isinstance(value, int)):
        same = bool(value) == implemented
    elif isinstance(implemented, float):
        same = isinstance(value, int | float) and math.isclose(value, implemented, rel_tol=1e-6)
    else:
        same = value == implemented
    return None if same else f"{key} is {value!r}"


def as_object(data: Any, where: str) -> dict[str, Any]:
    """A copy of a JSON object. Raises ConfigError if it is none."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {type(data).__name__}")
    return dict(data)


def released_view(part: str, data: dict[str, Any], where: str) -> dict[str, Any]:
    """One config file with what it says in several places, or in several ways, said once.

    Args:
        part: the field of `InternVLUConfig` that the file is.

    Raises:
        ConfigError: it says what is not implemented, or contradicts itself.
    """
    views = {"vlm": _vlm, "generation_decoder": _head, "processor": _processor}
    return views[part](dict(data), where) if part in views else data


def _vlm(data: dict[str, Any], where: str) -> dict[str, Any]:
    inner = f"{where}: llm_config"
    llm = as_object(data.get("llm_config"), inner)
    tied, above = bool(llm.get("tie_word_embeddings")), data.get("tie_word_embeddings")
    if above is not None and bool(above) != tied:
        note(f"{where}: tie_word_embeddings is {above!r}, in llm_config {tied}; llm_config alone decides")
    data["llm_config"] = _without_windows(_with_one_theta(_architecture(llm), inner), inner)
    vision = as_object(data.get("vision_config") or {}, f"{where}: vision_config")
    data["vision_config"] = vision
    if vision.get("num_channels", 3) != 3:
        note(f"{where}: num_channels is {vision['num_channels']!r}, which the released code does not use; it is 3")
        vision["num_channels"] = 3
    forced, size = data.get("force_image_size"), vision.get("image_size")
    if forced and size and forced != size:
        note(f"{where}: force_image_size is {forced!r}, which the released code does not use; image_size {size!r} is")
    return data


def _architecture(llm: dict[str, Any]) -> dict[str, Any]:
    """The first of `architectures` chooses the class; nothing else in the file does."""
    named = llm.get("architectures")
    if isinstance(named, list) and named[:1] == KEYS[Qwen3Config].fixed["architectures"]:
        llm["architectures"] = named[:1]
    if llm.get("num_key_value_heads", 0) is None:
        llm["num_key_value_heads"] = llm.get("num_attention_heads")
    return llm


def _with_one_theta(llm: dict[str, Any], where: str) -> dict[str, Any]:
    """One `rope_theta` and no scaling, from the keys of transformers 4 or those that 5 writes in their place.

    The dynamic type turns as the plain one does while a row has no more than `max_position_embeddings` tokens.
    """
    new = as_object(llm.pop("rope_parameters", None) or {}, f"{where}: rope_parameters")
    old = as_object(llm.pop("rope_scaling", None) or {}, f"{where}: rope_scaling")
    thetas = [place["rope_theta"] for place in (llm, new) if place.get("rope_theta") is not None]
    if len(thetas) == 2 and thetas[0] != thetas[1]:
        raise ConfigError(f"{where}: rope_theta is {thetas[0]!r}, and {thetas[1]!r} in rope_parameters; which is it?")
    for place in (llm, new, old):
        if place.get("partial_rotary_factor") not in (None, 1):
            factor = place["partial_rotary_factor"]
            raise ConfigError(f"{where}: partial_rotary_factor is {factor!r}; only 1 is implemented")
    for name, rope in (("rope_parameters", new), ("rope_scaling", old)):
        kind = rope.get("rope_type", rope.get("type", "default" if name == "rope_parameters" else None))
        if rope and kind not in ("default", "dynamic"):
            raise ConfigError(f"{where}: {name} is {rope!r}; only the types 'default' and 'dynamic' are implemented")
        if kind == "dynamic":
            longest = llm.get("max_position_embeddings") or 32768
            note(f"{where}: {name} is {rope!r}; as without it, and so up to {longest} tokens a row")
    return {**llm, "rope_theta": thetas[0]} if thetas else llm


def _without_windows(llm: dict[str, Any], where: str) -> dict[str, Any]:
    """Refuses sliding windows, but for switches that turn one on for no layer."""
    kinds = llm.pop("layer_types", None) or []
    if not isinstance(kinds, list):
        raise ConfigError(f"{where}: layer_types is {kinds!r}; expected a list")
    others = sorted({str(kind) for kind in kinds} - {"full_attention"})
    if others:
        raise ConfigError(f"{where}: layer_types has {', '.join(others)}; only 'full_attention' is implemented")
    first, layers = llm.get("max_window_layers", 28), llm.get("num_hidden_layers", 32)
    beyond = isinstance(first, int) and isinstance(layers, int) and first >= layers
    if llm.get("use_sliding_window") and (beyond or llm.get("sliding_window", 0) is None):
        note(f"{where}: use_sliding_window is {llm['use_sliding_window']!r}, and no layer has a window")
        llm["use_sliding_window"] = False
    return llm


def _head(data: dict[str, Any], where: str) -> dict[str, Any]:
    """The constructor writes the file's factors over those of decoder_config, also where the file has none."""
    inner = as_object(data.get("decoder_config") or {}, f"{where}: decoder_config")
    for key in ("video_position_scale_factor", "vlm_cond_position_scale_factor"):
        inner[key] = 1.0 if data.get(key) is None else data[key]
    if "out_channels" in inner and not inner["out_channels"]:
        inner["out_channels"] = inner.get("in_channels")
    data["decoder_config"] = inner
    return data


def _processor(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Sizes as one number or two, and one mean for all channels, are spelled out."""
    for name in ("image_processor_kwargs", "image_gen_processor_kwargs"):
        pictures = as_object(data.get(name) or {}, f"{where}: {name}")
        for key in ("image_mean", "image_std"):
            if isinstance(pictures.get(key), int | float):
                pictures[key] = [pictures[key]] * 3
        data[name] = pictures
    size = data["image_processor_kwargs"].get("size")
    pair = [size, size] if isinstance(size, int) else size
    if isinstance(pair, list) and len(pair) == 2:
        data["image_processor_kwargs"]["size"] = {"height": pair[0], "width": pair[1]}
    elif isinstance(pair, dict) and not {f.name for f in dataclasses.fields(SizeConfig)} <= pair.keys():
        raise ConfigError(f"{where}: image_processor_kwargs: size is {size!r}; expected height and width")
    return data
