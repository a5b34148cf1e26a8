"""The arms of the study: what they have in common, what they freeze, and that each is trained, saved and loaded."""

import math
import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.ablations.arms import ARMS, TINY, XS, Arm, S, arms_of, check_frozen_parts, shift_for, with_frozen_parts
from experiments.ablations.matching import Sizes, batch_shapes, parity
from experiments.ablations.studies import BUDGETS
from experiments.costs import vae_encode
from internvlu_jax.checkpoints.model_directory import load_model, save_model
from internvlu_jax.config import (
    CodeVision,
    Compute,
    ConfigError,
    InternVLUConfig,
    LatentVision,
    QuantizedCodec,
    SemanticCodec,
    VAEConfig,
    VisionConfig,
)
from internvlu_jax.config_files import check_released
from internvlu_jax.data.batch import Batch
from internvlu_jax.models.internvlu import InternVLU, init_params, param_shapes
from internvlu_jax.models.vlm import NUM_SPECIAL_TOKENS
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig
from internvlu_jax.training.losses import Objective
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.step import Step
from internvlu_jax.utils.tree import merge, paths
from tests.helpers.unchecked import unchecked

ENCODERS = ("decoupled", "shared-latent", "shared-semantic")
HEADED = tuple(name for name in ARMS if name != "shared-discrete")


def test_the_arms():
    kinds = {name: (type(a.config.vlm.vision_config), type(a.config.vae), a.vision, a.twin) for name, a in ARMS.items()}
    assert kinds == {
        "decoupled": (VisionConfig, VAEConfig, "trained", False),
        "shared-latent": (LatentVision, VAEConfig, "trained", False),
        "shared-semantic": (VisionConfig, SemanticCodec, "beforehand", False),
        "twin": (LatentVision, VAEConfig, "trained", True),
        "random-semantic": (VisionConfig, SemanticCodec, "random", False),
        "shared-discrete": (CodeVision, QuantizedCodec, "trained", False),
    }
    discrete, headed = ARMS["shared-discrete"].config, [ARMS[name] for name in HEADED]
    assert len({arm.config.processor.image_processor_kwargs for arm in ARMS.values()}) == 1
    assert len({arm.config.vlm.llm_config for arm in headed}) == 1
    assert discrete.generation_decoder.codes == 8 and discrete.vae.entries == 625
    for arm in headed:
        dit, vae = arm.config.generation_decoder.decoder_config, arm.config.vae
        assert (dit.num_layers, dit.hidden_size) == (4, 96) and dit.hidden_size >= vae.z_dim
        assert (dit.in_channels, dit.out_channels) == (vae.z_dim * dit.patch_size**2, vae.z_dim)


@pytest.fixture(scope="module")
def rows():
    return {row.arm: row for row in unchecked(parity, [ARMS[name] for name in ENCODERS])}


@pytest.mark.slow
def test_the_arms_match(rows):
    """Against what is known by hand of the differences: the rest is the same in all arms."""
    decoupled, latent, semantic = (rows[name] for name in ENCODERS)
    assert all(row.tokens == (16, 16) for row in rows.values())
    assert all(1e6 < row.learned < 2e6 for row in rows.values())
    # Patches of 3 x 16 x 16 pixels or 8 x 2 x 2 latents; two MLPs of 128 or 272.
    assert decoupled.learned - latent.learned == 64 * (768 - 32) - 2 * (272 - 128) * (2 * 64 + 1)
    # The head embeds and gives 64 channels in place of 4 x 8.
    assert semantic.learned - decoupled.learned == 96 * (64 - 32) * 2 + (64 - 32)
    vision = sum(math.prod(s.shape) for s in jax.tree.leaves(param_shapes(ARMS["decoupled"].config)["vlm"]["vit"]))
    assert semantic.copies == semantic.learned - semantic.trained == vision
    assert latent.copies == latent.encoder == decoupled.encoder and semantic.encoder == decoupled.copies == 0
    for row in rows.values():
        assert abs(row.learned / decoupled.learned - 1) <= 0.01 and abs(row.decoder / decoupled.decoder - 1) <= 0.01
        assert abs(row.mean / decoupled.mean - 1) <= 0.02
        kinds = [row.operations[kind] for kind in ("pictures", "edits", "questions")]
        np.testing.assert_allclose(row.mean, np.average(kinds, weights=[4, 4, 1]))


@pytest.mark.slow
def test_operations_differ_by_the_encoders(rows):
    """By hand, for a tile on 17 tokens and two layers: forward, and twice that backward where it is trained."""
    decoupled, latent, semantic = (rows[name].operations for name in ENCODERS)

    def blocks(mlp: int) -> int:
        return 2 * (2 * 17 * 4 * 64 * 64 + 4 * 17 * 17 * 64 + 2 * 2 * 17 * 64 * mlp)

    pixels, latents = (2 * 16 * size * 64 for size in (768, 32))  # of patches, which need no gradient themselves
    encoding = latent["edits"] - decoupled["edits"] - 3 * (blocks(272) - blocks(128)) - 2 * (latents - pixels)
    assert encoding == vae_encode(ARMS["decoupled"].config.vae, 64, 64)
    assert latent["questions"] - decoupled["questions"] == 4 * (latent["edits"] - decoupled["edits"])
    assert latent["pictures"] == decoupled["pictures"]
    # A frozen encoder runs forward alone; the head's 16 tokens are read of 64 channels for 32, and given as many.
    frozen = 2 * blocks(128) + pixels
    assert decoupled["questions"] - semantic["questions"] == 4 * frozen
    noisy, source = (2 * 16 * 32 * 96 * times for times in (2 + 3, 2))
    assert semantic["pictures"] - decoupled["pictures"] == 4 * noisy
    assert semantic["edits"] - decoupled["edits"] == 4 * (noisy + source) - frozen


@pytest.mark.slow
def test_an_arm_that_does_not_match_is_named(rows):
    latent, decoupled = (round(rows[name].operations["questions"]) for name in ("shared-latent", "decoupled"))
    said = f"shared-latent has {latent:,} operations of a mean row, decoupled {decoupled:,}"
    with pytest.raises(ValueError, match=said):
        unchecked(parity, [ARMS["decoupled"], ARMS["shared-latent"]], {"questions": 1.0})
    llm = replace(ARMS["twin"].config.vlm.llm_config, intermediate_size=320)
    wide = Arm("wide", replace(ARMS["twin"].config, vlm=replace(ARMS["twin"].config.vlm, llm_config=llm)))
    with pytest.raises(
        ValueError, match=r"wide has 1,941,920 learned parameters, decoupled 1,915,008: \+1.4%, where 1%"
    ):
        unchecked(parity, [ARMS["decoupled"], wide], {"questions": 1.0})


@pytest.mark.slow
def test_controls_have_the_numbers_of_their_arms(rows):
    """They differ in what their frozen parts hold, so a study of theirs starts only where the others match."""
    twin, random = unchecked(parity, [ARMS["twin"], ARMS["random-semantic"]])
    assert replace(twin, arm="") == replace(rows["shared-latent"], arm="")
    assert replace(random, arm="") == replace(rows["shared-semantic"], arm="")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "budget"), [(XS, "gpu"), (S, "gpu"), (TINY, "smoke")])
def test_the_discrete_arm_matches(size, budget):
    """In the mixture that is run: a language model that has a head's parameters costs more where questions are read."""
    assert {tuple(n / b.rows[-1][1] for _, n in b.rows) for b in BUDGETS.values() if b.size is None} == {(4, 2, 1)}
    arms, read = arms_of(size), BUDGETS[budget]
    both, sizes = [arms["decoupled"], arms["shared-discrete"]], Sizes(noises=read.noises)
    decoupled, discrete = unchecked(parity, both, dict(read.rows), sizes)
    assert abs(discrete.learned / decoupled.learned - 1) <= 0.01 and discrete.decoder == decoupled.decoder
    assert abs(discrete.mean / decoupled.mean - 1) <= 0.02 and discrete.tokens == (16, 16)
    assert discrete.copies == discrete.encoder == decoupled.encoder and discrete.trained == discrete.learned


@pytest.mark.slow
@pytest.mark.parametrize(("size", "parameters"), [(TINY, 0.93e6), (S, 9.9e6)])
def test_arms_of_other_sizes_match_as_well(size, parameters):
    arms = arms_of(size)
    assert arms.keys() == ARMS.keys() == arms_of(XS).keys()
    rows = unchecked(parity, [arms[name] for name in ENCODERS])
    for row in rows:
        assert row.learned == pytest.approx(parameters, rel=0.01) and row.tokens == (16, 16)
        assert abs(row.learned / rows[0].learned - 1) <= 0.01 and abs(row.decoder / rows[0].decoder - 1) <= 0.01
        assert abs(row.mean / rows[0].mean - 1) <= 0.02
    for name, arm in arms.items():
        own, other = arm.config, ARMS[name].config
        assert (arm.vision, arm.twin, arm.frozen) == (ARMS[name].vision, ARMS[name].twin, ARMS[name].frozen)
        if name not in HEADED:
            continue
        assert own.processor == other.processor and own.vlm.llm_config.vocab_size == other.vlm.llm_config.vocab_size
        dimensions = own.vae.z_dim * (64 // own.vae.downsample_factor) ** 2
        assert own.generation_decoder.flow_shift == pytest.approx(math.sqrt(dimensions / 512))


def test_more_dimensions_need_more_noise():
    """A shift by a on top of one by b is one by a b, for shifted t = s t / (1 + (s - 1) t)."""
    assert shift_for(4 * 512, 512, 1.5) == 3.0
    t = np.linspace(0, 1, 11)
    known = 1.5 * t / (1 + 0.5 * t)
    np.testing.assert_allclose(2 * known / (1 + known), 3 * t / (1 + 2 * t))
    shifts = {name: ARMS[name].config.generation_decoder.flow_shift for name in HEADED}
    assert shifts["decoupled"] == shifts["shared-latent"] == shifts["twin"] == 1.0
    # 16 tokens of 64 channels against 64 latents of 8.
    assert shifts["shared-semantic"] == shifts["random-semantic"] == math.sqrt(2)


@pytest.mark.parametrize("name", ["shared-latent", "shared-semantic", "shared-discrete"])
def test_saved_and_loaded_an_arm_is_what_it_was(name, tmp_path):
    cfg = ARMS[name].config
    params = jax.tree.map(lambda s: np.full(s.shape, 0.5, np.float32), param_shapes(cfg))
    save_model(tmp_path / "model", cfg, params, {})
    again, loaded, _ = load_model(tmp_path / "model", on_host=True)
    assert again == cfg
    assert type(again.vlm.vision_config) is type(cfg.vlm.vision_config) and type(again.vae) is type(cfg.vae)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    kind = {
        "shared-latent": "vision_config of type latent_vit", "shared-semantic": "vae of type semantic_codec",
        "shared-discrete": "vision_config of type code_vision and vae of type quantized_vae and generation_decoder",
    }[name]  # fmt: skip
    with pytest.raises(ConfigError, match=f"the released code does not know {kind}"):
        check_released(cfg)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("decoupled", ["vae/"]),
        ("shared-latent", ["vae/", "vlm/vit/codec/"]),
        ("shared-semantic", ["vae/", "vlm/vit/"]),
        ("twin", ["vae/", "vlm/vit/codec/"]),
        ("random-semantic", ["vae/", "vlm/vit/"]),
        ("shared-discrete", ["vae/", "vlm/vit/codec/"]),
    ],
)
def test_what_an_arm_freezes(name, frozen):
    shapes = param_shapes(ARMS[name].config)
    given = factors(shapes, OptimizerConfig(rates=ARMS[name].rates))
    assert all(given.is_trained(path) != path.startswith(tuple(frozen)) for path in paths(shapes))


def test_frozen_parts_of_an_arm():
    """A twin is an encoder from elsewhere, and no other arm has one."""

    def filled(value: float) -> dict:
        return jax.tree.map(lambda s: np.full(s.shape, value, np.float32), param_shapes(cfg))

    arm = ARMS["twin"]
    cfg = arm.config
    other = replace(cfg.vae, latents_std=(2.0,) * cfg.vae.z_dim)
    config, params = with_frozen_parts(arm, cfg, filled(1.0), (other, filled(2.0)["vae"]))
    check_frozen_parts(arm, config, params)
    assert config.vlm.vision_config.codec == other and config.vae == cfg.vae
    with pytest.raises(ValueError, match="shared-latent takes no second VAE"):
        with_frozen_parts(ARMS["shared-latent"], cfg, params, (other, params["vae"]))
    with pytest.raises(ValueError, match="twin takes a second VAE"):
        with_frozen_parts(arm, cfg, params)
    config, params = with_frozen_parts(ARMS["shared-latent"], cfg, params)
    check_frozen_parts(ARMS["shared-latent"], config, params)
    with pytest.raises(ValueError, match="twin: vlm/vit/codec is the encoder of vae; expected that of a second VAE"):
        check_frozen_parts(arm, config, params)


def sample(cfg: InternVLUConfig, kind: str) -> Batch:
    """Random rows of one kind, of a few tokens; all tokens but padding are targets."""
    rng = np.random.default_rng(0)
    batch = batch_shapes(cfg, kind, Sizes((8, 4), (24, 20), (24, 1), 1), rows=1)

    def filled(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if shape.dtype == np.float32:
            return rng.uniform(0.5, 1, shape.shape).astype(np.float32)
        return rng.integers(1, 200, shape.shape).astype(shape.dtype)

    batch = jax.tree.map(filled, batch)
    text = batch.text._replace(visual_index=np.arange(24, dtype=np.int32)[None] % 16, positions=np.arange(24)[None])
    lengths = np.array([batch.picture.context_index.shape[1]], np.int32)
    index = np.arange(lengths[0], dtype=np.int32)[None]
    picture = batch.picture._replace(context_lengths=lengths, context_index=index)
    return batch._replace(index=np.zeros(1, np.int32), text=text, picture=picture)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ENCODERS, "twin"])
def test_a_step_trains_all_but_what_is_frozen(name):
    """Edits have it all: a tile, a source, a picture to draw and tokens to predict."""
    arm = ARMS[name]
    config, params = arm.config, init_params(arm.config, jax.random.key(0))
    second = (config.vae, init_params(config, jax.random.key(1))["vae"]) if arm.twin else None
    config, params = with_frozen_parts(arm, config, params, second)
    check_frozen_parts(arm, config, params)
    optimizer = OptimizerConfig(warmup=1, rates=arm.rates, weight_decay=0.1)
    model = InternVLU(config, tuple(range(NUM_SPECIAL_TOKENS)), Compute(attention="xla"))
    step = Step(Objective(model, ObjectiveConfig()), optimizer, factors(params, optimizer), steps=1)
    state, metrics = jax.jit(step)(step.init(params), (sample(config, "edits"),), jax.random.key(0))
    assert metrics["finite"]
    after = merge(state.trained, state.frozen)
    check_frozen_parts(arm, config, after)
    before, after = paths(params), paths(after)
    same = {path for path in before if np.array_equal(before[path], after[path])}
    frozen = {path for path in before if any(re.fullmatch(pattern, path) for pattern in arm.frozen)}
    # Nothing depends on the padding token, and in the last block the context gives keys and values alone.
    unused = "head/padding_token|head/mmdit/last_block/text/(q|q_norm|out|mlp)/.*"
    idle = {path for path in before if re.fullmatch(unused, path)}
    assert same >= frozen and same - frozen <= idle
