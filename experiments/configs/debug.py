"""All of stage 3 at a size that a laptop trains in seconds, on the pictures of `experiments/toy`.

python -m experiments.train debug --workdir /tmp/debug
"""

from pathlib import Path

from experiments.configs.stage3 import ALL_BUT_VAE
from internvlu_jax.data.config import DataConfig
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig, TrainConfig

TOY = Path(__file__).parent.parent / "toy"
DATA = DataConfig(
    sources=((str(TOY / "t2i.jsonl"), 1.0), (str(TOY / "edit.jsonl"), 1.0), (str(TOY / "questions.jsonl"), 2.0)),
    batch_size=8,
    packed_rows=8,
    sides=(64,),
    text_lengths=(64, 192),
    pack_length=192,
    pack_tiles=2,
    threads=2,
)

config = TrainConfig(
    name="debug",
    model="debug",
    steps=20,
    accumulate=2,
    data=DATA,
    objective=ObjectiveConfig((("text", 1.0), ("flow", 20.0))),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=5, clip=1.0, rates=ALL_BUT_VAE),
    save_every=10,
    sample_every=10,
    sample_prompts=("a red circle", "a blue square"),
    sample_steps=5,
)
