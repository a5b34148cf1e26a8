"""One part of the recorded vision-language models at a time: "vit", "projector" or "llm"."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from safetensors.numpy import load_file

from converters.engine import convert
from converters.rules import TensorInfo
from converters.vlm import vlm_rules
from internvlu_jax.config import Compute
from internvlu_jax.config_files import read_config
from internvlu_jax.models.qwen3 import Qwen3
from internvlu_jax.models.vit import Projector, VisionTransformer


class Memory:
    """Tensors in memory, as the converter reads them."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.infos = {name: TensorInfo("F32", tensor.shape) for name, tensor in tensors.items()}

    def read(self, name):
        return self.tensors[name]


def vlm_config(golden):
    return read_config(golden.checkpoint).vlm


def build(cfg, part, compute=Compute()):
    """(module, shapes of its parameters)."""
    key, llm, vision = jax.random.key(0), cfg.llm_config, cfg.vision_config
    if part == "vit":
        module = VisionTransformer(vision, compute)
        side = vision.image_size
        return module, jax.eval_shape(lambda: module.init(key, jnp.zeros((1, side, side, 3))))["params"]
    if part == "projector":
        module = Projector(llm.hidden_size, compute)
        width = vision.hidden_size * cfg.shuffle**2
        return module, jax.eval_shape(lambda: module.init(key, jnp.zeros((1, 1, width))))["params"]
    module = Qwen3(llm, compute)
    return module, jax.eval_shape(lambda: module.init(key, method=touch_all))["params"]


def touch_all(llm):
    """Runs every submodule of a `Qwen3`, so that all parameters exist."""
    llm.logits(llm(llm.embed(jnp.zeros((1, 1), jnp.int32)), jnp.zeros((1, 1), jnp.int32)).last)


def rules_of(cfg, part):
    """The rows of one part, with targets relative to it."""
    prefix = f"{part}/"
    return [replace(r, target=r.target[len(prefix) :]) for r in vlm_rules(cfg) if r.target.startswith(prefix)]


def load(golden, part):
    """Recorded parameters of one part, through the real conversion table."""
    cfg = vlm_config(golden)
    rules = rules_of(cfg, part)
    names = {name for rule in rules for name in rule.names()}
    tensors = load_file(golden.checkpoint / "vlm/model.safetensors")
    reader = Memory({name: tensor for name, tensor in tensors.items() if name in names})
    return convert(rules, reader, build(cfg, part)[1], place=lambda _, array: jnp.asarray(array))[0]


def cast(params, dtype):
    return jax.tree.map(lambda p: p.astype(dtype), params)


def layer_of(params, i):
    """Parameters of layer i of a stack."""
    return jax.tree.map(lambda p: p[i], params)
