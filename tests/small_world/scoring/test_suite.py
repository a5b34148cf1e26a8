"""Whole scores: a model that is always right gets 1, one that is always wrong 0; batches."""

import numpy as np
import pytest
from PIL import Image

from internvlu_jax.inference.pipeline import InternVLUPipeline, PipelineOutput
from internvlu_jax.presets import debug_config
from internvlu_jax.small_world import SMALL
from internvlu_jax.small_world.scoring import suite
from internvlu_jax.small_world.scoring.cases import NAMES
from internvlu_jax.small_world.scoring.responder import PipelineResponder, SamplingOptions
from internvlu_jax.small_world.scoring.sheet import outcome_sheet
from internvlu_jax.small_world.scoring.suite import KEYS, Query, Reply, run
from tests.helpers.knowing import BLANK, COUNT, Knowing, world_of


@pytest.mark.parametrize("name", [name for name in NAMES if name != "reasoning"])
def test_right_is_one_and_wrong_is_nothing(name):
    good, bad = (run(world_of(name), name, COUNT, Knowing(name, *rights)) for rights in ((), ((),)))
    key = KEYS[name][0]
    assert tuple(good.reports) == tuple(bad.reports) == KEYS[name]
    assert good.reports[key].score.value == 1.0 and bad.reports[key].score.value == 0.0
    assert good.reports[key].score.count == bad.reports[key].score.count == COUNT
    assert all(part.value == 1.0 for part in good.reports[key].parts.values()) and not good.reports[key].reasons
    assert sum(bad.reports[key].reasons.values()) == COUNT
    assert all(outcome.verdict.right for outcome in good.outcomes)


def test_untouched_psnr_of_copies_and_of_blanks():
    copied = run(SMALL, "edits", COUNT, Knowing("edits", ())).reports
    blank = run(SMALL, "edits", COUNT, lambda queries: [Reply(BLANK) for _ in queries]).reports
    assert copied["edit_untouched_psnr"].score.value == 60
    assert 5 < blank["edit_untouched_psnr"].score.value < 25


@pytest.mark.parametrize(
    "modes, gain, before, after",
    [(("image", "text_image"), 0, 1, 1), (("text_image",), 1, 0, 1), (("image",), -1, 1, 0), ((), 0, 0, 0)],
)
def test_gain_from_reasoning_is_paired(modes, gain, before, after):
    model = Knowing("reasoning", modes)
    report = run(SMALL, "reasoning", COUNT, model).reports["reasoning_gain"]
    assert (report.score.value, report.parts["without"].value, report.parts["with"].value) == (gain, before, after)
    assert report.parts["reasoning as expected"].value == after
    first, second = model.queries[:COUNT], model.queries[COUNT:]
    assert [(r.number, r.prompt) for r in first] == [(r.number, r.prompt) for r in second]
    assert {r.mode for r in first} == {"image"} and {r.mode for r in second} == {"text_image"}


@pytest.mark.parametrize("name", ["geneval_seen", "edits", "questions", "reasoning"])
def test_what_will_be_asked_is_told_without_a_model(name):
    model = Knowing(name)
    run(SMALL, name, COUNT, model)
    calls = suite.queries(SMALL, name, COUNT)
    assert [len(queries) for queries in calls] == [COUNT] * (2 if name == "reasoning" else 1)
    told = [query for queries in calls for query in queries]
    for query, asked in zip(told, model.queries, strict=True):
        assert (query.number, query.mode, query.prompt) == (asked.number, asked.mode, asked.prompt)
        assert np.array_equal(query.source, asked.source)


def test_half_right_is_half():
    right = Knowing("geneval_seen")

    def model(queries):
        return [right.reply(r) if r.number % 2 else Reply(BLANK) for r in queries]

    report = run(SMALL, "geneval_seen", COUNT, model).reports["geneval_seen"]
    assert report.score.value == 0.5 and report.score.low < 0.5 < report.score.high
    assert {name: part.value for name, part in report.parts.items()} == {
        "single": 0, "two": 1, "counting": 0, "colours": 1, "position": 0, "attribution": 1,
    }  # fmt: skip
    assert report.reasons == {"count": COUNT // 2}


def test_a_model_that_draws_nothing_is_told_so():
    with pytest.raises(ValueError, match="0 pictures came back for 8 prompts"):
        run(SMALL, "words", 8, lambda queries: [Reply() for _ in queries])
    with pytest.raises(ValueError, match="count is 0"):
        run(SMALL, "words", 0, Knowing("words"))


def test_sheets_show_successes_and_failures():
    outcomes = run(SMALL, "edits", COUNT, Knowing("edits")).outcomes
    failed = run(SMALL, "edits", COUNT, Knowing("edits", ())).outcomes
    only, both = outcome_sheet(outcomes), outcome_sheet(outcomes + failed)
    assert both.width == only.width and both.height > 1.8 * only.height
    small = outcome_sheet(outcomes, most=4)
    assert small.height < only.height


class Recorded(InternVLUPipeline):
    """Notes what it is called with, and draws the lengths of the prompts."""

    def __init__(self) -> None:
        self.config, self.calls = debug_config(), []

    def __call__(self, prompts, images, mode, **settings):
        self.calls.append((prompts, images, mode, settings))
        pictures = [Image.new("RGB", (64, 64), (len(prompt), 0, 0)) for prompt in prompts]
        return PipelineOutput(None if mode == "image" else [p.upper() for p in prompts], None,
                              None if mode == "text" else pictures)  # fmt: skip


def queries(count: int, mode="image", source=None) -> list[Query]:
    return [Query(n, mode, "x" * (n + 1), source) for n in range(count)]


def test_batches_have_one_size_and_noise_is_of_the_case():
    pipe, done = Recorded(), []
    replies = PipelineResponder(pipe, SamplingOptions(batch=4, side=64, steps=3), done.append)(queries(10))
    assert [int(reply.picture[0, 0, 0]) for reply in replies] == list(range(1, 11)) and done == [4, 4, 2]
    assert [len(prompts) for prompts, *_ in pipe.calls] == [4, 4, 4]
    noise = [call[3]["latents"] for call in pipe.calls]
    assert {n.dtype for n in noise} == {np.dtype(np.float32)} and {n.shape[0] for n in noise} == {4}
    again = Recorded()
    PipelineResponder(again, SamplingOptions(batch=10, side=64))(queries(10, "text_image"))
    np.testing.assert_array_equal(again.calls[0][3]["latents"], np.concatenate(noise)[:10])
    assert abs(np.std(noise[0]) - 1) < 0.1 and not np.array_equal(noise[0][0], noise[0][1])
    PipelineResponder(again, SamplingOptions(side=64))(queries(3))
    assert len(again.calls[-1][0]) == 3


def test_settings_reach_the_pipeline():
    pipe = Recorded()
    model = PipelineResponder(pipe, SamplingOptions(steps=7, side=64, all_cfg_scale=2.5, flow_shift=1.5))
    model(queries(2, "text", BLANK))
    model(queries(2))
    model(queries(2, "text_image"))
    (_, images, _, asked), (_, without, _, drawn), (*_, reasoned) = pipe.calls
    assert asked == {"max_new_tokens": 24} and np.array_equal(np.asarray(images[0]), BLANK) and without == [None] * 2
    assert {k: v for k, v in drawn.items() if k != "latents"} == {
        "max_new_tokens": None, "height": 64, "width": 64, "num_inference_steps": 7, "all_cfg_scale": 2.5,
        "flow_shift": 1.5,
    }  # fmt: skip
    assert reasoned["max_new_tokens"] == 96
    assert model(queries(2, "text"))[1].text == "XX"
    assert SamplingOptions().guidance() == {"image": (4.5, 2.0), "text_image": (3.5, 1.5)}
    assert SamplingOptions(part_cfg_scale=1.0).guidance() == {"image": (4.5, 1.0), "text_image": (3.5, 1.0)}
