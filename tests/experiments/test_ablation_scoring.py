"""Endpoints of one model: losses against unbatched loops, replies that nothing before them changes, judgements."""

import math
import subprocess
import sys
import zlib
from dataclasses import replace
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.ablations import losses_of_cases
from experiments.ablations.arms import ARMS
from experiments.ablations.endpoints import ENDPOINTS
from experiments.ablations.judging import SETS, judged
from experiments.ablations.losses_of_cases import LEVELS, AnswerLikelihood, FlowLoss, case_batch, levels
from experiments.ablations.results import Outcome
from experiments.ablations.scoring import LOSSES, Sampling, Scorer
from experiments.ablations.world import tokenizer
from internvlu_jax.config import Compute, ConfigError
from internvlu_jax.data.examples import DataError
from internvlu_jax.inference import programs
from internvlu_jax.models.internvlu import InternVLU, param_shapes
from internvlu_jax.processing.layout import layout
from internvlu_jax.processing.processor import Processor
from internvlu_jax.small_world import SMALL, XS
from internvlu_jax.small_world.scoring.cases import cases
from internvlu_jax.small_world.scoring.suite import Reply, run
from internvlu_jax.training.config import ObjectiveConfig
from internvlu_jax.training.losses import Objective

COUNT = 3


def shallow(name: str) -> InternVLU:
    """The model of an arm with one layer in its head, which compiles in less time."""
    config = ARMS[name].config
    head = config.generation_decoder
    head = replace(head, decoder_config=replace(head.decoder_config, num_layers=1), flow_shift=1.7)
    return InternVLU(
        replace(config, generation_decoder=head), tokenizer().special_table_ids, Compute(attention="xla")
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return shallow("decoupled")


@pytest.fixture(scope="module")
def members(model):
    """Two seeds, with no layer that starts at zero."""
    rng, shapes = np.random.default_rng(0), param_shapes(model.cfg)
    return [jax.tree.map(lambda leaf: _values(rng, leaf.shape), shapes) for _ in range(2)]


def _values(rng, shape):
    """Scales and biases about 0.5, weights about what keeps the size of what goes through."""
    values = rng.standard_normal(shape, np.float32)
    return jnp.asarray(0.5 + 0.1 * values if len(shape) < 2 else values / math.sqrt(math.prod(shape[:-1])))


@pytest.fixture(scope="module")
def scorer(model):
    """Losses of two cases at a time, so that the last part is filled up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses_of_cases, "_CHUNK", 2)
        scores = ("flow_loss", "flow_loss_seen", "answer_log_likelihood", "geneval_heldout", "questions")
        return Scorer(model, tokenizer(), "xs", count=COUNT, case_seed=1, scores=scores)


@pytest.fixture(scope="module")
def losses(scorer, members):
    return scorer.losses(members[0])


def test_losses_are_means_over_named_cases(losses):
    endpoints, of = losses
    assert set(endpoints) == set(of) == set(LOSSES) - {"code_loss"}, "which is of no model with a head"
    assert of["flow_loss"].name == "xs geneval_heldout 3 seed 1"
    assert of["flow_loss_seen"].name == "xs geneval_seen 3 seed 1"
    assert of["answer_log_likelihood"].name == "xs questions 3 seed 1"
    for name, value in endpoints.items():
        assert len(of[name].values) == COUNT and math.isclose(value, np.mean(of[name].values), rel_tol=1e-6)
    Outcome(1.0, 1, {}, endpoints, cases=of)


def test_likelihood_of_an_answer_alone(losses, model, members):
    """As the pipeline reads the question, with the answer behind it: one row, not padded, sums in float64."""
    n, words, params = 2, tokenizer(), members[0]
    case = cases(XS, "questions", COUNT, seed=1)[n]
    (asked,) = Processor(model.cfg.processor, words).process(case.prompt, Image.fromarray(case.source.draw(64)))
    answer = words.encode(f"{case.answer}<|im_end|>")
    assert len(answer) == 2
    ids = np.append(asked.cond, answer).astype(np.int32)[None]
    index = np.where(ids == words.img_context, np.cumsum(ids == words.img_context) - 1, -1)

    @jax.jit
    def read(params, ids, tiles, index):
        visual = model.visual_tokens(params, tiles)[0]
        return model.logits(params, model.read(params, model.embed(params, ids, visual, index)).last)[0]

    scores = np.asarray(read(params, ids, asked.tiles, index), np.float64)
    log_p = scores - np.log(np.sum(np.exp(scores), axis=1, keepdims=True))
    expected = sum(log_p[len(asked.cond) - 1 + k, token] for k, token in enumerate(answer))
    assert math.isclose(losses[1]["answer_log_likelihood"].values[n], expected, rel_tol=1e-5)


def quantile(k: int, shift: float) -> float:
    u = 1 / (1 + math.exp(-NormalDist().inv_cdf((k + 0.5) / LEVELS)))
    return shift * u / (1 + (shift - 1) * u)


def test_noise_levels_are_those_of_training(model):
    objective = Objective(model, ObjectiveConfig())
    np.testing.assert_allclose(levels(objective), [quantile(k, 1.7) for k in range(8)], rtol=1e-12)
    uniform = Objective(model, ObjectiveConfig(time="uniform", shift=1.0))
    np.testing.assert_allclose(levels(uniform), (np.arange(8) + 0.5) / 8, rtol=1e-12)


def test_flow_loss_of_a_picture_alone(losses, model, members):
    """As the pipeline conditions on the prompt: one row, one level after the other."""
    n, words, params = 2, tokenizer(), members[0]
    case = cases(XS, "geneval_heldout", COUNT, seed=1)[n]
    ids = Processor(model.cfg.processor, words).process(case.prompt, None, "image")[0].cond
    own = layout(model.cfg, words, ids, (), (8, 8))
    contexts = programs.contexts(model, params, ids[None], own.span[None])
    lengths, positions = np.array([len(own.span)], np.int32), own.positions(len(own.span))[None]
    condition = programs.condition(model, params, contexts, lengths, positions, ())
    clean = np.asarray(programs.encode(model, params, case.image.draw(64)[None]))
    noise = np.random.default_rng([1, zlib.crc32(b"flow_loss"), n]).standard_normal((8, 8, 8, 8), np.float32)
    velocity = jax.jit(model.velocity)
    errors = []
    for k in range(LEVELS):
        sigma = quantile(k, 1.7)
        noisy = (1 - sigma) * clean + sigma * noise[k]
        predicted = np.asarray(velocity(params, noisy, jnp.float32(1000 * sigma), condition), np.float64)
        errors.append(np.mean((predicted - (noise[k] - clean)) ** 2))
    assert math.isclose(losses[1]["flow_loss"].values[n], np.mean(errors), rel_tol=1e-4)


def test_other_arms_have_the_same_losses():
    """What differs between arms: features that are generated, and latents that are seen."""
    model = shallow("shared-semantic")
    flow = FlowLoss(model, tokenizer(), cases(XS, "geneval_heldout", 2), 0)
    program = losses_of_cases._flow_losses
    assert program.eval_shape(flow._objective, param_shapes(model.cfg), *flow._chunks[0]).shape == (2,)
    model = shallow("shared-latent")
    answers = AnswerLikelihood(model, tokenizer(), cases(XS, "questions", 2))
    program = losses_of_cases._log_likelihoods
    assert program.eval_shape(answers._objective, param_shapes(model.cfg), *answers._chunks[0]).shape == (2,)


def told(replies):
    return [(reply.text, None if reply.picture is None else reply.picture.tobytes()) for reply in replies]


@pytest.mark.slow
def test_replies_do_not_depend_on_what_was_asked_before(scorer, members):
    how = Sampling(guidance=2.0, steps=3)
    names = ("geneval_heldout", "questions")
    first = {name: told(scorer.replies(members[0], name, how)) for name in names}
    compiled = programs.draw._cache_size(), programs.contexts._cache_size()
    others = {name: told(scorer.replies(members[1], name, how)) for name in names}
    again = {name: told(scorer.replies(members[0], name, how)) for name in reversed(names)}
    assert again == first and all(others[name] != first[name] for name in names)
    for changed in (replace(how, shift=2.0), replace(how, guidance=1.0)):
        assert told(scorer.replies(members[0], "geneval_heldout", changed)) != first["geneval_heldout"]
    assert (programs.draw._cache_size(), programs.contexts._cache_size()) == compiled
    assert all(text == "" and len(picture) == 64 * 64 * 3 for text, picture in first["geneval_heldout"])
    assert all(picture is None for _, picture in first["questions"])


def test_what_cannot_be_scored(model):
    with pytest.raises(ConfigError, match=r"scores name 'colours'; expected some of geneval_seen, .*flow_loss"):
        Scorer(model, tokenizer(), "xs", count=1, case_seed=0, scores=("flow_loss", "colours"))
    with pytest.raises(DataError, match="2 cases have several shapes"):
        case_batch(model.cfg, tokenizer(), [*cases(XS, "questions", 1), *cases(XS, "edits", 1)])
    with pytest.raises(ValueError, match="the set of cases is 'domain_questions'; expected one of geneval_seen"):
        judged("small", "domain_questions", 1, 0, [Reply()])
    blank = Reply(np.full((64, 64, 3), 255, np.uint8))
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"{count} replies to 2 cases of geneval_seen"):
            judged("xs", "geneval_seen", 2, 0, [blank] * count)


# Judgements


def right(name: str, count: int, world=XS, seed: int = 0):
    """Replies that are right, from the truth of the cases."""
    made = [Reply(None if c.image is None else c.image.draw(64), c.answer) for c in cases(world, name, count, seed)]
    return made * 2 if name == "reasoning" else made


@pytest.mark.parametrize(
    "name, endpoints",
    [
        ("geneval_heldout", {"geneval_heldout": 1.0}),
        ("questions", {"questions": 1.0}),
        ("edits", {"edits_done": 1.0, "edit_untouched_psnr": 60.0}),
    ],
)
def test_perfect_replies_are_right(name, endpoints):
    measured, of = judged("xs", name, 9, 2, right(name, 9, seed=2))
    assert measured == endpoints and set(measured) <= set(ENDPOINTS)
    ((key, values),) = of.items()
    assert key == next(iter(endpoints)) and values.values == (1.0,) * 9 and values.name == f"xs {name} 9 seed 2"
    assert values.groups == ("abcdefabc" if name == "geneval_heldout" else "")


def test_judged_as_the_suite_judges():
    """Some right and some wrong, so many that categories differ in their number of cases."""
    for name in ("geneval_seen", "questions"):
        replies = right(name, 8)
        for n in (0, 1, 7):
            replies[n] = right(name, 12)[8 + n % 4]
        measured, of = judged("xs", name, 8, 0, replies)
        result = run(XS, name, 8, lambda queries, replies=replies: replies)
        assert measured == {name: result.reports[name].score.value} and 0 < measured[name] < 1
        assert of[name].values == tuple(float(o.verdict.right) for o in result.outcomes)
        Outcome(1.0, 1, {}, measured, cases=of)


def test_relations_are_a_part_of_the_questions():
    replies = right("questions", 10, SMALL)
    topics = [case.topic for case in cases(SMALL, "questions", 10)]
    replies[topics.index("relation")] = Reply(text="nothing")
    measured, _ = judged("small", "questions", 10, 0, replies)
    wrong = 1 / topics.count("relation")
    assert math.isclose(measured["relations"], 1 - wrong) and math.isclose(measured["questions"], 0.9)


def test_gain_from_reasoning_comes_with_both_shares_and_has_no_cases():
    replies = right("reasoning", 2, SMALL)
    shares = {"riddles": 1.0, "riddles_reasoned": 1.0}
    assert judged("small", "reasoning", 2, 0, replies) == ({"reasoning_gain": 0.0, **shares}, {})
    replies[0] = Reply(np.full_like(replies[0].picture, 255))  # the first without reasoning
    measured, _ = judged("small", "reasoning", 2, 0, replies)
    assert measured == {"reasoning_gain": 0.5, "riddles": 0.5, "riddles_reasoned": 1.0}


def test_judging_needs_no_jax():
    code = "import sys, experiments.ablations.judging; print(*sorted({'jax', 'flax'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "\n"


def test_sets_are_those_of_the_endpoints():
    assert set(SETS) == {
        "geneval_seen", "geneval_heldout", "questions", "edits", "words", "reasoning", "transfer_pictures",
        "transfer_questions",
    }  # fmt: skip
