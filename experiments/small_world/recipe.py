"""The parts of the small model's training, in order.

The first are those of the 4B model, with a backbone of our own in the place of the pretrained one: the autoencoder; the
vision encoder and language model on questions about pictures and on reasoning in words; stage 1, the head alone on
prompts; stage 2, the head alone with edits; stage 3, everything but the autoencoder on all tasks. Then come many small
steps in place of few large ones: a second backbone on questions alone, its distillation to the contexts that the head
of stage 3 knows, and all of it together. What all tasks together never teach is learned alone, letters first and then
places, at the cost of the rest; the average of the weights before and after keeps most of both, and all tasks bring
back what is missing (together2 and 3; together4 in larger steps, with more pictures).
"""

from __future__ import annotations

from dataclasses import replace

from experiments.configs.stage1 import HEAD_ONLY
from experiments.configs.stage3 import ALL_BUT_VAE
from experiments.small_world import mixtures
from experiments.small_world.parts import Average, Distil, Part, Start, Train
from experiments.small_world.start import SIDE
from internvlu_jax.data.config import DataConfig
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig
from internvlu_jax.training.context_distillation import DistillationConfig

BACKBONE_ONLY = (("vlm/.*", 1.0), (".*", 0.0))
# The language model is what the head reads: at the full rate it forgets its words, and the head cannot follow.
_GENTLY = (("vlm/llm/.*", 0.4), *ALL_BUT_VAE)

_STEADY = OptimizerConfig(learning_rate=1.5e-3, warmup=200, clip=1.0, b2=0.99, ema=0.999)
_FALLING = replace(_STEADY, schedule="cosine")
_SLOW = replace(_FALLING, learning_rate=5e-4, ema=0.998, rates=ALL_BUT_VAE)
_BRIEF = replace(_STEADY, warmup=30, ema=0.98)  # of parts that learn one thing alone

_WORDS = ObjectiveConfig((("text", 1.0),))
# Over noise levels of 0.8 a picture shows too little of itself, and the prompt decides: a third of the samples are
# there, where logit-normal ones without shift have 8%.
_FLOW = ObjectiveConfig((("flow", 1.0),), time="uniform", shift=2.0)
_JOINT = replace(_FLOW, weights=(("text", 0.5), ("flow", 1.0)))

_BOTH = DataConfig(
    batch_size=16, packed_rows=4, sides=(SIDE,), text_lengths=(60,), pack_length=256, pack_tiles=5, threads=1,
)  # fmt: skip
_DRAWN = replace(_BOTH, text_targets=False)

PARTS: tuple[Part, ...] = (
    Start("start", steps=10_000),
    Train(
        "backbone", "start", 1150, seed=0, large=True, objective=_WORDS,
        optimizer=replace(_STEADY, learning_rate=1e-3, rates=BACKBONE_ONLY),
        data=replace(_BOTH, sources=mixtures.BACKBONE),
    ),
    Train(
        "stage1", "backbone", 2250, seed=100, large=True, objective=_FLOW,
        optimizer=replace(_STEADY, rates=HEAD_ONLY), data=replace(_DRAWN, sources=mixtures.STAGE1),
    ),
    Train(
        "stage2", "stage1", 900, seed=200, large=True, objective=_FLOW,
        optimizer=replace(_STEADY, rates=HEAD_ONLY), data=replace(_DRAWN, sources=mixtures.STAGE2),
    ),
    Train(
        "stage3", "stage2", 7650, seed=300, large=True, objective=_JOINT,
        optimizer=replace(_FALLING, rates=_GENTLY), data=replace(_BOTH, sources=mixtures.STAGE3),
    ),
    Train(
        "understanding", "start", 15_000, seed=400, objective=_WORDS,
        optimizer=replace(_FALLING, learning_rate=1e-3, rates=BACKBONE_ONLY),
        data=replace(_BOTH, batch_size=12, packed_rows=12, sources=mixtures.UNDERSTANDING),
    ),
    Distil(
        "distilled", student="understanding", teacher="stage3",
        how=DistillationConfig(
            6000,
            replace(_BOTH, batch_size=12, packed_rows=8, sources=mixtures.DISTILLED_QUESTIONS),
            replace(_BOTH, batch_size=20, packed_rows=None, sources=mixtures.DISTILLED_PROMPTS),
            OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup=50, b2=0.99, clip=1.0, ema=0.995),
        ),
    ),
    Train(
        "together", "distilled", 4000, seed=500, objective=_JOINT,
        optimizer=_SLOW, data=replace(_BOTH, sources=mixtures.TOGETHER),
    ),
    Train(
        "letters", "together", 3800, seed=600, objective=replace(_FLOW, shift=2.5),
        optimizer=replace(_BRIEF, learning_rate=6e-4, rates=ALL_BUT_VAE),
        data=replace(_DRAWN, sources=mixtures.LETTERS),
    ),
    Average("halfway2", before="together", after="letters"),
    Train(
        "together2", "halfway2", 1200, seed=700, objective=_JOINT,
        optimizer=replace(_SLOW, schedule="constant", ema=0.995),
        data=replace(_BOTH, sources=mixtures.TOGETHER_2_AND_3),
    ),
    Train(
        "places", "together2", 2000, seed=800, objective=_WORDS,
        optimizer=replace(_BRIEF, learning_rate=1.2e-3, rates=BACKBONE_ONLY),
        data=replace(_BOTH, batch_size=8, packed_rows=8, sources=mixtures.PLACES),
    ),
    Average("halfway3", before="together2", after="places"),
    Train(
        "together3", "halfway3", 3900, seed=900, objective=_JOINT,
        optimizer=_SLOW, data=replace(_BOTH, sources=mixtures.TOGETHER_2_AND_3),
    ),
    Train(
        "together4", "together3", 4500, seed=1000, objective=_JOINT,
        optimizer=replace(_SLOW, learning_rate=4e-4, ema=0.997),
        data=replace(_BOTH, batch_size=32, packed_rows=8, sources=mixtures.TOGETHER_4),
    ),
)  # fmt: skip
