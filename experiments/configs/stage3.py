"""Stage 3: everything but the VAE, on pictures, edits and conversations at once (table 3).

    python -m experiments.train stage3 --workdir runs/stage3 --start runs/stage2 \
        --data.sources t2i/ 1 edit/ 1 questions/ 2 --mesh.fsdp 8

Eight micro-batches of 128 share an update, so that each update sees all three tasks. The context conditions the head
with gradients: the backbone learns from both losses, 1 : 20. The paper names neither ViT nor VAE; here the ViT is
trained and the VAE is not, because its latents are what the head has learned.
"""

from experiments.configs.stage1 import PROMPTS
from internvlu_jax.config import Compute
from internvlu_jax.data.config import DataConfig
from internvlu_jax.parallel.config import MeshConfig
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig, TrainConfig

ALL_BUT_VAE = (("vae/.*", 0.0), (".*", 1.0))

config = TrainConfig(
    name="stage3",
    steps=20_000,
    accumulate=8,
    data=DataConfig(
        batch_size=128, packed_rows=32, sides=(512, 768, 1024), max_aspect=2.0, pack_length=4096, pack_tiles=12
    ),
    head_sources="both",
    objective=ObjectiveConfig((("text", 1.0), ("flow", 20.0))),
    optimizer=OptimizerConfig(
        learning_rate=1e-5, schedule="cosine", warmup=1000, weight_decay=0.01, clip=1.0, rates=ALL_BUT_VAE
    ),
    compute=Compute(dtype="bfloat16", remat="full"),
    mesh=MeshConfig(data=-1, fsdp=8),
    save_every=500,
    keep_every=5000,
    sample_every=500,
    sample_prompts=PROMPTS,
)
