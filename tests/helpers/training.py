"""A run that is as small as a run can be: the recorded checkpoint's head on the toy pictures, one shape of batch."""

import dataclasses

import numpy as np

from experiments.configs.debug import TOY
from experiments.configs.stage1 import HEAD_ONLY
from internvlu_jax.checkpoints.loading import LoadedModel
from internvlu_jax.config import InternVLUConfig, VAEConfig
from internvlu_jax.data.config import DataConfig
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig, TrainConfig
from tests.conftest import GOLDENS

CHECKPOINT = GOLDENS / "base/checkpoint"

TINY = TrainConfig(
    name="tiny",
    steps=4,
    start=str(CHECKPOINT),
    data=DataConfig(
        sources=((str(TOY / "t2i.jsonl"), 1.0),), batch_size=4, sides=(32,), text_lengths=(160,), text_targets=False,
        threads=1, prefetch=1, max_broken=0.5,
    ),
    objective=ObjectiveConfig((("flow", 1.0),)),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=2, rates=HEAD_ONLY),
    executor="single",
    save_every=2,
)  # fmt: skip


def with_data(cfg: TrainConfig, **data) -> TrainConfig:
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, **data))


def smaller(cfg: InternVLUConfig) -> InternVLUConfig:
    """The model with few layers to compile: one block of the head, and an autoencoder of patches."""
    vae = VAEConfig(base_dim=8, patch_size=4, dim_mult=(1, 2), num_res_blocks=1, temperal_downsample=(False,))
    head = cfg.generation_decoder
    dit = dataclasses.replace(head.decoder_config, num_layers=1)
    return dataclasses.replace(cfg, vae=vae, generation_decoder=dataclasses.replace(head, decoder_config=dit))


def one_block(model: LoadedModel) -> LoadedModel:
    """The model with the last block of its head alone: a step of it compiles in half the time."""
    head = model.config.generation_decoder
    short = dataclasses.replace(head, decoder_config=dataclasses.replace(head.decoder_config, num_layers=1))
    mmdit = {name: leaves for name, leaves in model.params["head"]["mmdit"].items() if name != "blocks"}
    params = {**model.params, "head": {**model.params["head"], "mmdit": mmdit}}
    config = dataclasses.replace(model.config, generation_decoder=short)
    return dataclasses.replace(model, config=config, params=params)


def leaves_equal(first, second) -> None:
    """Bit for bit."""
    import jax

    a, b = jax.tree.leaves_with_path(first), jax.tree.leaves_with_path(second)
    assert [path for path, _ in a] == [path for path, _ in b]
    for (path, x), (_, y) in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))
