"""Adapters to load: random factors of modules of a checkpoint in the released layout, as PEFT writes them."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from internvlu_jax.utils.files import write_json

Q0, V1, O1 = (f"language_model.model.layers.{at}_proj" for at in ("0.self_attn.q", "1.self_attn.v", "1.self_attn.o"))
DOWN2, TO_Q, LAST = (
    "language_model.model.layers.2.mlp.down_proj",
    "decoder.transformer_blocks.0.attn.to_q",
    "decoder.transformer_blocks.2.img_mod.1",
)


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    """The matrices of the VLM's and the head's linear maps, [out, in], by the names of their modules."""
    files = [checkpoint / "vlm/model.safetensors", checkpoint / "generation_decoder/model.safetensors"]
    tensors = {name: array for file in files for name, array in load_file(file).items()}
    return {
        name.removesuffix(".weight"): array
        for name, array in tensors.items()
        if name.endswith(".weight") and array.ndim == 2 and "embed" not in name.split(".")[-2]
    }


def factors(matrices: dict[str, np.ndarray], rank: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """lora_A [r, in] and lora_B [out, r] of each module, by the names that PEFT gives them."""
    rng = np.random.default_rng(seed)
    made = {}
    for module, matrix in matrices.items():
        taken, given = matrix.shape
        made[f"base_model.model.{module}.lora_A.weight"] = 0.1 * rng.normal(size=(rank, given)).astype(np.float32)
        made[f"base_model.model.{module}.lora_B.weight"] = rng.normal(size=(taken, rank)).astype(np.float32)
    return made


def update(tensors: dict[str, np.ndarray], module: str) -> np.ndarray:
    """B A [out, in] in float64."""
    a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return b @ a


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], **settings) -> Path:
    """The two files, with rank 2 and alpha 4 unless told otherwise."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **settings})
    return folder
