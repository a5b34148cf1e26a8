"""Fine-tuning a released checkpoint with low-rank adapters on backbone and head, on one card.

    python -m experiments.train finetune --workdir runs/mine --start InternVL-U/InternVL-U \
        --data.sources mine.jsonl 1 --steps 2000
    internvlu-jax convert runs/mine mine --to released        # adapters folded in

Targets that are close to their source pictures teach the head to copy the source within a few hundred steps: look at
the samples, and mix in text to image.
"""

from experiments.configs.stage1 import PROMPTS
from internvlu_jax.config import Compute
from internvlu_jax.data.config import DataConfig
from internvlu_jax.training.config import LoraConfig, ObjectiveConfig, OptimizerConfig, TrainConfig

ADAPTERS_ONLY = ((".*/lora_[ab]", 1.0), (".*", 0.0))

config = TrainConfig(
    name="finetune",
    steps=2000,
    start="InternVL-U/InternVL-U",
    data=DataConfig(batch_size=4, sides=(512,), max_aspect=2.0, pack_length=1024, pack_tiles=3),
    objective=ObjectiveConfig((("text", 1.0), ("flow", 20.0))),
    optimizer=OptimizerConfig(learning_rate=1e-4, schedule="cosine", warmup=100, clip=1.0, rates=ADAPTERS_ONLY),
    lora=LoraConfig(rank=16, alpha=16.0),
    compute=Compute(dtype="bfloat16", remat="full"),
    accumulate=4,
    save_every=200,
    sample_every=200,
    sample_prompts=PROMPTS,
)
