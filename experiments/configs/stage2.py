"""Stage 2: the head at 512 to 1024 pixels, aspect ratios 1:2 to 2:1, with the latents of source pictures (table 3).

python -m experiments.train stage2 --workdir runs/stage2 --start runs/stage1 --data.sources t2i/ 3 edit/ 4
"""

from experiments.configs.stage1 import HEAD_ONLY, PROMPTS
from internvlu_jax.config import Compute
from internvlu_jax.data.config import DataConfig
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig, TrainConfig

config = TrainConfig(
    name="stage2",
    steps=60_000,
    accumulate=8,
    data=DataConfig(batch_size=128, sides=(512, 768, 1024), max_aspect=2.0, text_targets=False),
    head_sources="both",
    objective=ObjectiveConfig((("flow", 1.0),)),
    optimizer=OptimizerConfig(learning_rate=1e-4, schedule="cosine", warmup=1000, clip=0.2, rates=HEAD_ONLY),
    compute=Compute(dtype="bfloat16", remat="full"),
    save_every=1000,
    keep_every=20_000,
    sample_every=1000,
    sample_prompts=PROMPTS,
)
