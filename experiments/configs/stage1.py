"""Stage 1: the head learns to draw at 512 x 512, on the frozen backbone (arXiv 2603.09877, table 3).

    python -m experiments.train stage1 --workdir runs/stage1 --start InternVL-U/InternVL-U \
        --data.sources t2i/ 4 edit/ 1

Batch 2048 as eight micro-batches of 256; the ratio of text to image and editing is 4 : 1. Source pictures reach the
head through the backbone alone. On one 80 GB card take `--data.batch-size 16 --accumulate 128`, or write latents and
contexts beforehand (`experiments.precompute`).
"""

from internvlu_jax.config import Compute
from internvlu_jax.data.config import DataConfig
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig, TrainConfig

HEAD_ONLY = (("head/.*", 1.0), (".*", 0.0))
PROMPTS = (
    "A lighthouse on a cliff at dusk",
    "Three green apples in a blue bowl",
    "A street sign that says OPEN",
    "一只戴着红色围巾的橘猫",
)

config = TrainConfig(
    name="stage1",
    steps=250_000,
    accumulate=8,
    data=DataConfig(batch_size=256, sides=(512,), max_aspect=1.0, text_targets=False),
    head_sources="context",
    objective=ObjectiveConfig((("flow", 1.0),)),
    optimizer=OptimizerConfig(learning_rate=3e-4, schedule="constant", warmup=1000, clip=0.2, rates=HEAD_ONLY),
    compute=Compute(dtype="bfloat16", remat="dots"),
    save_every=2000,
    keep_every=50_000,
    sample_every=2000,
    sample_prompts=PROMPTS,
)
