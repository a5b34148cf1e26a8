"""The arm that draws codes: where they stand in a row, what is lost, and drawing with a cache against whole rows."""

import math
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ablations import results
from experiments.ablations.arms import TINY, arms_of
from experiments.ablations.codes import (
    code_losses,
    drawing_term,
    in_rows,
    model_of,
    objective_of,
    prompt_lengths,
    with_codes,
)
from experiments.ablations.drawing_codes import CodeDrawing, Way, drawn_codes, guided, prompts
from experiments.ablations.endpoints import DRAWN
from experiments.ablations.losses_of_cases import case_batch
from experiments.ablations.matching import batch_shapes
from experiments.ablations.studies import STUDIES
from experiments.ablations.world import tokenizer
from internvlu_jax.config import Compute
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.models.code_model import CodeModel
from internvlu_jax.models.copies import with_copies
from internvlu_jax.models.internvlu import param_shapes
from internvlu_jax.processing.processor import Processor
from internvlu_jax.small_world import XS
from internvlu_jax.small_world.scoring.cases import cases
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig
from internvlu_jax.training.losses import Forward
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.step import Step
from internvlu_jax.utils.tree import merge, paths

ARM = arms_of(TINY)["shared-discrete"]
CFG, COUNT = ARM.config, 3
TOKENS, CODES, ENTRIES = 16, 8, 256


@pytest.fixture(scope="module")
def model():
    return model_of(CFG, tokenizer().special_table_ids, Compute(attention="xla"))


@pytest.fixture(scope="module")
def params():
    """Scores that differ by some units, so that what is drawn depends on what was read."""
    rng = np.random.default_rng(0)

    def values(leaf):
        drawn = rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(1 + 0.1 * drawn if len(leaf.shape) < 2 else 2 * drawn / math.sqrt(leaf.shape[-2]))

    return with_copies(CFG, jax.tree.map(values, param_shapes(CFG)))[1]


@pytest.fixture(scope="module")
def batches():
    """(cond, uncond) of edits, whose prompts differ in length and in whether they have a source."""
    examples = cases(XS, "edits", COUNT)
    return tuple(case_batch(CFG, tokenizer(), examples, branch) for branch in ("cond", "uncond"))


@pytest.fixture(scope="module")
def coded(batches, model, params):
    """The rows of training: the same cases with their pictures behind them."""
    return tuple(with_codes(in_rows(b, CFG, tokenizer().img_context), model, params) for b in batches)


def test_a_picture_stands_behind_its_prompt_and_is_predicted_from_the_place_before(batches):
    words = tokenizer()
    for batch in batches:
        row, lengths = in_rows(batch, CFG, words.img_context), prompt_lengths(batch)
        before = 0 if batch.text.tiles is None else 1
        for n, length in enumerate(lengths):
            assert batch.text.ids[n, length - 1] == words.img_start and (batch.text.ids[n, length:] == words.pad).all()
            np.testing.assert_array_equal(row.text.ids[n, :length], batch.text.ids[n, :length])
            assert (row.text.ids[n, length : length + TOKENS] == words.img_context).all()
            shown = row.text.visual_index[n]
            np.testing.assert_array_equal(shown[length : length + TOKENS], TOKENS * before + np.arange(TOKENS))
            assert sorted(shown[:length][shown[:length] >= 0]) == list(range(TOKENS * before))
            np.testing.assert_array_equal(row.picture.context_index[n], length - 1 + np.arange(TOKENS))
        assert row.text.tiles.shape[1] == before + 1 and row.picture.sources == ()
        np.testing.assert_array_equal(row.text.tiles[:, -1], batch.picture.target)
        assert not row.text.weights.any() and row.text.positions[0].tolist() == list(range(row.text.ids.shape[1]))
    assert len({int(n) for n in prompt_lengths(batches[0])}) > 1


def test_codes_take_the_place_of_pictures_in_the_shapes_that_are_counted(coded, batches, model, params):
    for batch, kind in zip(coded, ("edits", "pictures"), strict=True):
        counted = batch_shapes(CFG, kind, STUDIES["discrete"].sizes)
        assert jax.tree.map(lambda a: a.shape[1:], batch) == jax.tree.map(lambda a: a.shape[1:], counted), kind
        assert jax.tree.map(lambda a: a.dtype, batch) == jax.tree.map(lambda a: a.dtype, counted), kind
    want = model.codes(params, jnp.asarray(batches[0].picture.target))
    np.testing.assert_array_equal(coded[0].picture.target, want)
    np.testing.assert_array_equal(coded[0].text.tiles[:, 1], want)
    np.testing.assert_array_equal(
        coded[0].text.tiles[:, 0], model.codes(params, jnp.asarray(batches[0].text.tiles[:, 0]))
    )


def test_order_of_codes_within_tokens(model):
    """Row by row of tokens, and within a token row by row of latents."""
    numbers = jnp.arange(8 * 8 * 2).reshape(1, 8, 8, 2)
    by_token = model.by_token(numbers)
    assert by_token[0, 5].tolist() == [
        2 * (8 * row + column) + code for row in (2, 3) for column in (2, 3) for code in (0, 1)
    ]
    np.testing.assert_array_equal(model.by_latent(by_token, 4), numbers)


@pytest.fixture(scope="module")
def whole(coded, model, params):
    """Scores of the codes of both branches by one pass over whole rows, from codes [b, t, d]."""
    objective = objective_of(model, ObjectiveConfig((("codes", 1.0),)))

    @jax.jit
    def scores(params, batch, codes):
        return model.code_scores(params, Forward(objective, params, batch).context, codes)

    def of(batch, codes):
        grid = np.asarray(model.by_latent(jnp.asarray(codes), 4))
        tiles = np.concatenate([batch.text.tiles[:, :-1], grid[:, None]], axis=1)
        return np.asarray(scores(params, batch._replace(text=batch.text._replace(tiles=tiles)), codes), np.float64)

    return of


def test_the_loss_is_the_mean_of_minus_log_p_over_codes(coded, model, params, whole):
    """In float64 from the scores; ln of the number of codes where all of these are alike."""
    batch, objective = coded[0], objective_of(model, ObjectiveConfig((("text", 1.0), ("codes", 5.0))))
    codes = np.asarray(model.by_token(jnp.asarray(batch.picture.target)))
    scores = whole(batch, codes)
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    want = -np.log(np.take_along_axis(p, codes[..., None], -1)).mean(axis=(1, 2, 3))
    weighed = batch._replace(picture=batch.picture._replace(weight=np.array([1, 0, 1], np.float32)))
    sums = jax.jit(lambda params: objective.sums(params, weighed, objective.draw(jax.random.key(0), weighed)))(params)
    totals = objective.totals(weighed)
    assert float(totals["codes"]) == 2 and float(sums["text"]) == 0
    np.testing.assert_allclose(sums["codes"], want[0] + want[2], rtol=1e-5)
    assert float(objective.loss(objective.means(sums, totals))) == pytest.approx(5 * (want[0] + want[2]) / 2, rel=1e-5)
    flat = {**params, "head": {**params["head"], "out_kernel": jnp.zeros_like(params["head"]["out_kernel"])}}
    losses = jax.jit(lambda params: code_losses(Forward(objective, params, batch)))(flat)
    np.testing.assert_allclose(losses, math.log(ENTRIES), rtol=1e-5)


def test_drawing_with_a_cache_is_drawing_from_whole_rows(batches, coded, model, params, whole):
    """Every code is the best of guided logits plus the noise of its case, token and place, which `categorical` adds."""
    keys = jax.random.split(jax.random.key(3), COUNT)
    guidance, temperature = 2.0, 0.7
    rows = tuple(map(prompts, batches))
    draw = jax.jit(partial(drawn_codes, model))
    codes = np.asarray(draw(params, *rows, keys, jnp.float32(guidance), jnp.float32(temperature)))
    assert codes.shape == (COUNT, TOKENS, CODES) and len(np.unique(codes)) > 50
    cond, uncond = (whole(batch, codes) for batch in coded)
    logits = (uncond + guidance * (cond - uncond)) / temperature

    def noise(key, token, place):
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, token), place), (ENTRIES,))

    token, place = jnp.meshgrid(jnp.arange(TOKENS), jnp.arange(CODES), indexing="ij")
    each = jax.vmap(jax.vmap(jax.vmap(noise, (None, 0, 0)), (None, 0, 0)), (0, None, None))
    np.testing.assert_array_equal((logits + np.asarray(each(keys, token, place))).argmax(-1), codes)
    assert np.abs(cond - uncond).max() > 0.1, "the branches have read different things"
    cold = np.asarray(draw(params, *rows, keys, jnp.float32(1.0), jnp.float32(1e-6)))
    np.testing.assert_array_equal(whole(coded[0], cold).argmax(-1), cold)


def test_guidance_by_hand():
    cond, uncond = jnp.asarray([1.0, 2.0]), jnp.asarray([0.0, 4.0])
    np.testing.assert_array_equal(guided(cond, uncond, jnp.float32(1.0)), cond)
    np.testing.assert_array_equal(guided(cond, uncond, jnp.float32(0.0)), uncond)
    np.testing.assert_array_equal(guided(cond, uncond, jnp.float32(3.0)), [3.0, -2.0])


@pytest.mark.slow
def test_what_a_case_gets_does_not_depend_on_what_is_drawn_with_it(model, params):
    """The last batch is filled up: with three cases of four, and with two of five."""
    drawn = [
        CodeDrawing(model, tokenizer(), cases(XS, "geneval_seen", count), 1, COUNT)(params, Way(2.0, 0.8))
        for count in (4, 5)
    ]
    assert drawn[1].shape == (5, 64, 64, 3) and drawn[1].dtype == np.uint8
    np.testing.assert_array_equal(drawn[0], drawn[1][:4])
    assert all(not np.array_equal(drawn[1][0], picture) for picture in drawn[1][1:])


def test_a_pipeline_answers_and_refuses_to_draw(model, params):
    pipe = InternVLUPipeline(CFG, params, Processor(CFG.processor, tokenizer()), model.compute)
    with pytest.raises(ValueError, match="'image', and the checkpoint has no generation head: its language"):
        pipe("a circle", generation_mode="image")


@pytest.mark.slow
def test_a_step_trains_all_but_the_codec(coded, model, params):
    assert drawing_term(CFG) == "codes" and isinstance(model, CodeModel)
    optimizer = OptimizerConfig(warmup=1, rates=ARM.rates, weight_decay=0.1)
    objective = objective_of(model, ObjectiveConfig((("text", 1.0), ("codes", 1.0))))
    step = Step(objective, optimizer, factors(params, optimizer), steps=1)
    state, metrics = jax.jit(step)(step.init(params), (coded[0],), jax.random.key(0))
    assert metrics["finite"] and metrics["codes_loss"] > 0
    after = paths(merge(state.trained, state.frozen))
    same = {path for path, leaf in paths(params).items() if np.array_equal(leaf, after[path])}
    assert same == {path for path in after if path.startswith(("vae/", "vlm/vit/codec/"))}


@pytest.mark.slow
def test_a_smoke_run_is_a_whole_study(tmp_path):
    """Both arms are tuned, trained, sampled and scored, alike in size, with their ceilings in the report."""
    ask = [sys.executable, "-m", "experiments.ablations", "discrete", "--workdir", str(tmp_path)]
    subprocess.run(ask, check=True, timeout=600)
    assert {path.name for path in (tmp_path / "parts-tiny-xs-all").iterdir()} == {"vae0", "vae-quantized"}
    records = results.read(tmp_path / "results.jsonl").records
    counted = {record.run.arm: record for record in records if not record.run.tuning}
    assert {arm: record.status for arm, record in counted.items()} == {
        "decoupled": "finished", "shared-discrete": "finished",
    }  # fmt: skip
    headed, discrete = (counted[arm].outcome for arm in ("decoupled", "shared-discrete"))
    assert discrete.endpoints.keys() - headed.endpoints.keys() == {"code_loss"}
    assert headed.endpoints.keys() - discrete.endpoints.keys() == {"flow_loss", "flow_loss_seen"}
    assert abs(discrete.parity["parameters"] / headed.parity["parameters"] - 1) <= 0.01
    assert abs(discrete.parity["operations"] / headed.parity["operations"] - 1) <= 0.02
    assert set(discrete.curves) >= {"text_loss", "codes_loss"} and discrete.ceilings.keys() == {
        "reader",
        "psnr",
        *DRAWN,
    }
    settings = counted["shared-discrete"].run.settings
    assert settings["temperature"] == 1.0 and "shift" not in settings and "shift" in counted["decoupled"].run.settings
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "![shared-discrete](discrete-smoke-shared-discrete.png)" in report and "**over" not in report
