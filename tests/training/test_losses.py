"""The training loss against recorded losses and gradients of the released modules, and its own properties."""

import dataclasses
import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.engine import export
from converters.head import head_rules
from converters.vlm import vlm_rules
from internvlu_jax.checkpoints import loading
from internvlu_jax.config import Compute, ConfigError
from internvlu_jax.data.batch import Batch, ImageBatch, TextBatch
from internvlu_jax.models.internvlu import InternVLU
from internvlu_jax.processing.positions import msrope_positions
from internvlu_jax.training import losses
from internvlu_jax.training.config import ObjectiveConfig
from internvlu_jax.training.losses import Forward, NoiseSamples, Objective, token_loss
from tests.helpers.head import runs_of
from tests.helpers.measures import assert_close, channels_first, channels_last, relative_l2
from tests.models.test_qwen3 import left_padding

LOSS, NORM = 1e-5, 2e-5


@pytest.fixture(scope="module")
def model(golden):
    return loading.load(golden.checkpoint)


def objective_for(model, compute=Compute(), **settings) -> Objective:
    return Objective(InternVLU(model.config, (-1,) * 10, compute), ObjectiveConfig(**settings), chunk=8)


def recorded_pictures(recorded, cfg) -> tuple[list[Batch], list[NoiseSamples]]:
    """The two recorded rows as micro-batches of one: in `flow_grad_edit` only the first has a source picture."""
    dit, has_source = cfg.generation_decoder.decoder_config, recorded["condition"].size > 0
    batches, samples = [], []
    for row in range(2):
        length = int(recorded["context_mask"][row].sum())
        image = recorded["context_image_mask"][row, :length]
        sources = (channels_last(recorded["condition"]),) if has_source and row == 0 else ()
        positions = msrope_positions(
            (4, 5),
            runs_of(image),
            condition_grids=[(4, 5)] * len(sources),
            visual_grids=[(2, 2)] * int(image.any()),
            latent_scale=dit.video_position_scale_factor,
            visual_scale=dit.vlm_cond_position_scale_factor,
        )
        positions = np.pad(positions, ((0, 14 - length), (0, 0)))
        one = slice(row, row + 1)
        picture = ImageBatch(
            target=channels_last(recorded["clean"])[one],
            context_lengths=np.array([length], np.int32),
            positions=positions[None],
            weight=np.ones(1, np.float32),
            sources=sources,
            context=recorded["context"][one],
        )
        batches.append(Batch(np.array([row], np.int32), picture=picture))
        noise = jnp.asarray(channels_last(recorded["noise"])[one])
        samples.append(NoiseSamples(jnp.asarray(recorded["sigma"][one]), noise))
    return batches, samples


@pytest.fixture
def passes(monkeypatch):
    """Every pass over a micro-batch that an objective makes."""
    made: list[Forward] = []

    class Kept(Forward):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(losses, "Forward", Kept)
    return made


# What is kept for the backward pass changes nothing, so each is tested against recorded gradients. The parts of `mlp`
# that are used here differ in their sizes alone.
@pytest.mark.parametrize(
    ("golden", "name", "remat"),
    [
        pytest.param("base", "flow_grad_t2i", "none", marks=pytest.mark.slow),
        ("base", "flow_grad_edit", "dots"),
        pytest.param("mlp", "flow_grad_t2i", "full", marks=pytest.mark.slow),
        pytest.param("mlp", "flow_grad_edit", "none", marks=pytest.mark.slow),
    ],
    indirect=["golden"],
)
def test_flow_loss_and_gradients_equal_recorded(golden, model, name, remat, passes):
    recorded = golden.component(name)
    # The recorded context is that behind the projector.
    head = dataclasses.replace(model.config.generation_decoder, decoder_projector_type="identity")
    object.__setattr__(cfg := dataclasses.replace(model.config), "generation_decoder", head)
    objective = Objective(InternVLU(cfg, (-1,) * 10, Compute(remat=remat)), ObjectiveConfig((("flow", 1.0),)))
    totals = {"flow": jnp.asarray(2.0)}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, batch, noise):
        passes.clear()
        share = objective.loss(objective.means(objective.sums(params, batch, noise), totals))
        return share, passes[0].velocity

    params = {"head": model.params["head"]}
    rows = [run(params, *row) for row in zip(*recorded_pictures(recorded, cfg), strict=True)]
    assert_close(sum(share for (share, _), _ in rows), recorded["loss"], LOSS)
    velocity = np.concatenate([channels_first(velocity) for (_, velocity), _ in rows])
    assert_close(velocity, recorded["velocity"], LOSS, "velocity")
    gradient = jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), rows[0][1], rows[1][1])
    tensors = export(head_rules(model.config.generation_decoder), gradient["head"])
    check_norms(recorded, {name: tensor.read() for name, tensor in tensors.items()}, "decoder.")


def test_text_loss_and_gradients_equal_recorded(golden, model):
    recorded = golden.component("ntp_grad")
    positions, _ = left_padding(recorded["attention_mask"])
    labels = np.pad(recorded["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    text = TextBatch(
        ids=recorded["input_ids"].astype(np.int32),
        positions=np.asarray(positions, np.int32),
        segments=recorded["attention_mask"].astype(np.int32),
        targets=np.maximum(labels, 0).astype(np.int32),
        weights=(labels != -100).astype(np.float32),
    )
    objective, batch = objective_for(model, weights=(("text", 1.0),)), Batch(np.arange(2, dtype=np.int32), text=text)
    totals = objective.totals(batch)

    @jax.jit
    def loss(vlm):
        return objective.loss(objective.means(objective.sums({"vlm": vlm}, batch, None), totals))

    value, gradient = jax.value_and_grad(loss)(model.params["vlm"])
    assert_close(value, recorded["loss"], LOSS)
    tensors = export(vlm_rules(model.config.vlm), jax.device_get(gradient))
    released = {name.removeprefix("language_model."): tensor.read() for name, tensor in tensors.items()}
    check_norms(recorded, released, "")


def check_norms(recorded, released, prefix) -> None:
    """Compares every recorded norm, and every gradient recorded whole."""
    assert sum(key.startswith("norm/") for key in recorded) > 30
    for key, want in recorded.items():
        kind, _, tensor = key.partition("/")
        if kind == "norm":
            got = np.linalg.norm(released[prefix + tensor].astype(np.float64))
            np.testing.assert_allclose(got, want, rtol=NORM, atol=1e-9, err_msg=key)
        elif kind == "grad":
            assert_close(released[prefix + tensor], want, NORM, key)


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_chunks_leave_the_loss_and_its_gradient_alone(chunk):
    rng = np.random.default_rng(0)
    last, table = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 7, 5), (5, 11)))
    targets, weights = jnp.asarray(rng.integers(0, 11, (2, 7))), jnp.asarray(rng.uniform(size=(2, 7)), jnp.float32)

    def whole(last, table):
        log_p = jax.nn.log_softmax(last @ table)
        return -jnp.sum(weights * jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0])

    def chunked(last, table):
        return token_loss(lambda states: states @ table, last, targets, weights, chunk)

    want, got = (jax.value_and_grad(f, (0, 1))(last, table) for f in (whole, chunked))
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), got, want)


def test_no_array_holds_the_logits_of_all_tokens():
    """What XLA allocates for 2048 tokens and 20,000 words is far below their 164 MB of logits."""
    last, table = jnp.zeros((2, 1024, 16)), jnp.zeros((16, 20000))
    targets, weights = jnp.zeros((2, 1024), jnp.int32), jnp.ones((2, 1024))

    def loss(last, table):
        return token_loss(lambda states: states @ table, last, targets, weights, 64)

    memory = jax.jit(jax.grad(loss, (0, 1))).lower(last, table).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 40e6


def random_batch(objective, seed=0, rows=3) -> Batch:
    """Pictures as pixels with a source each, conditioned by rows of text with targets."""
    cfg, rng = objective.model.cfg, np.random.default_rng(seed)
    tile = cfg.vlm.vision_config.image_size
    visual = cfg.vlm.tokens_per_tile
    length = 12 + visual
    index = np.full((rows, length), -1, np.int32)
    index[:, 4 : 4 + visual] = np.arange(visual)
    positions = msrope_positions(
        (2, 3),
        [(False, 2), (True, visual), (False, 6)],
        condition_grids=[(2, 2)],
        visual_grids=[(cfg.vlm.tokens_per_side,) * 2],
    )
    positions = np.pad(positions, ((0, 2), (0, 0)))
    text = TextBatch(
        ids=rng.integers(0, 256, (rows, length)).astype(np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        tiles=rng.integers(0, 256, (rows, 1, tile, tile, 3)).astype(np.uint8),
        visual_index=index,
        targets=rng.integers(0, 256, (rows, length)).astype(np.int32),
        weights=(rng.uniform(size=(rows, length)) < 0.4).astype(np.float32),
    )
    factor = cfg.generation_decoder.pixel_multiple
    picture = ImageBatch(
        target=rng.integers(0, 256, (rows, 2 * factor, 3 * factor, 3)).astype(np.uint8),
        context_lengths=np.full(rows, 8 + visual, np.int32),
        positions=np.tile(positions, (rows, 1, 1)),
        weight=np.ones(rows, np.float32),
        sources=(rng.integers(0, 256, (rows, 2 * factor, 2 * factor, 3)).astype(np.uint8),),
        context_index=np.tile(np.arange(2, length, dtype=np.int32), (rows, 1)),
    )
    return Batch(np.arange(rows, dtype=np.int32), text, picture)


def with_latents(batch: Batch, seed=0) -> Batch:
    """The batch with random latents in place of pixels: it compiles faster without the VAE."""
    rng = np.random.default_rng(seed)

    def latents(pixels):
        rows, height, width, _ = pixels.shape
        return rng.normal(size=(rows, height // 8, width // 8, 16)).astype(np.float32)

    picture = batch.picture
    sources = tuple(latents(source) for source in picture.sources)
    return batch._replace(picture=picture._replace(target=latents(picture.target), sources=sources))


@pytest.fixture(scope="module")
def one(request):
    from tests.conftest import Golden

    return loading.load(Golden("base").checkpoint)


def test_a_row_of_weight_zero_counts_for_nothing(one):
    """Neither its own loss nor its share of the means."""
    objective = objective_for(one)
    batch = with_latents(random_batch(objective))
    keep = np.array([1, 0, 1], np.float32)
    without = batch._replace(
        text=batch.text._replace(weights=batch.text.weights * keep[:, None]),
        picture=batch.picture._replace(weight=keep),
    )
    two = jax.tree.map(lambda a: a[[0, 2]], batch)
    key = jax.random.key(0)

    @jax.jit
    def run(params, b):
        return objective.means(objective.sums(params, b, objective.draw(key, b)), objective.totals(b))

    alone = run(one.params, two)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), run(one.params, without), alone)
    assert relative_l2(run(one.params, batch)["flow"], alone["flow"]) > 1e-4


def test_random_numbers_belong_to_rows(one):
    """A row has the same noise whatever the batch around it, and different rows and keys have different noise."""
    objective = objective_for(one)
    batch, key = random_batch(objective), jax.random.key(3)
    whole = objective.draw(key, batch)
    for row in range(3):
        alone = objective.draw(key, jax.tree.map(lambda a, r=row: a[r : r + 1], batch))
        np.testing.assert_array_equal(alone.noise[0], whole.noise[row])
        np.testing.assert_array_equal(alone.sigma[0], whole.sigma[row])
    assert not np.allclose(whole.noise[0], whole.noise[1])
    assert not np.allclose(whole.sigma, objective.draw(jax.random.key(4), batch).sigma)


@pytest.mark.slow
def test_several_noises_of_a_picture_are_several_pictures(one):
    """Three noises of each row in one step: the loss of each row thrice, without its text being read thrice."""
    thrice, once = objective_for(one, noises_per_image=3), objective_for(one)
    batch, key = with_latents(random_batch(thrice)), jax.random.key(2)
    rows = batch._replace(index=np.array([0, 4, 9], np.int32))
    drawn = thrice.draw(key, rows)
    assert drawn.sigma.shape == (9,) and len(np.unique(drawn.sigma)) == 9

    run = jax.jit(once.sums)
    each = [run(one.params, rows, NoiseSamples(drawn.sigma[g::3], drawn.noise[g::3])) for g in range(3)]
    both = jax.jit(thrice.sums)(one.params, rows, drawn)
    assert_close(both["flow"], sum(sums["flow"] for sums in each) / 3, 1e-6)
    assert_close(both["text"], each[0]["text"], 1e-6)
    with pytest.raises(ConfigError, match=r"objective\.noises_per_image is 0"):
        ObjectiveConfig(noises_per_image=0)


def test_packed_equals_unpacked(one):
    """Three samples in one row with segments, and each in a row of its own."""
    objective, rng = objective_for(one), np.random.default_rng(1)
    lengths = [5, 3, 6]
    ids = [rng.integers(0, 256, n).astype(np.int32) for n in lengths]
    weights = [(rng.uniform(size=n) < 0.6).astype(np.float32) for n in lengths]
    bounds = [0, *np.cumsum(lengths)]

    def text(rows, segments):
        width = 16
        grid = {name: np.zeros((len(rows), width), np.int32) for name in ("ids", "positions", "segments", "targets")}
        loss = np.zeros((len(rows), width), np.float32)
        for r, members in enumerate(rows):
            start = 0
            for n, member in enumerate(members):
                span = slice(start, start + lengths[member])
                grid["ids"][r, span], grid["positions"][r, span] = ids[member], np.arange(lengths[member])
                grid["segments"][r, span], grid["targets"][r, span] = n + 1, np.roll(ids[member], -1)
                loss[r, span] = weights[member]
                start = span.stop
        return TextBatch(**{**grid, "segments": grid["segments"] if segments else None}, weights=loss)

    packed = Batch(np.zeros(1, np.int32), text([[0, 1, 2]], True))
    apart = Batch(np.arange(3, dtype=np.int32), text([[0], [1], [2]], False))
    run = jax.jit(lambda b: objective.sums(one.params, b, None)["text"])
    assert bounds[-1] < 16
    assert_close(run(packed), run(apart), 1e-6)
    mixed = packed._replace(text=packed.text._replace(segments=None))
    assert relative_l2(run(mixed), run(apart)) > 1e-4, "without segments the samples see one another"


def test_every_row_of_a_step_has_its_own_number(one):
    """Two micro-batches of one step with the same numbers would get the same noise: a batch carries its own."""
    objective = objective_for(one)
    first = random_batch(objective)
    second = first._replace(index=first.index + 3)
    sigmas = [objective.draw(jax.random.key(0), b).sigma for b in (first, second)]
    assert len(np.unique(np.concatenate(sigmas))) == 6
    for a, b in pairwise(sigmas):
        assert not np.allclose(a, b)
