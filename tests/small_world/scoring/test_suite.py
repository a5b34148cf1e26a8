"""Whole scores: a model that is always right gets 1, one that is always wrong 0; batches, resuming, the command."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from experiments.small_world import evaluate as script
from experiments.small_world.evaluate import SHIPPED, Arguments, evaluate
from internvlu_jax.inference.pipeline import InternVLUPipeline, PipelineOutput
from internvlu_jax.presets import debug_config
from internvlu_jax.small_world import SMALL, XS_TRANSFER, World
from internvlu_jax.small_world.scoring import suite
from internvlu_jax.small_world.scoring.cases import NAMES, cases
from internvlu_jax.small_world.scoring.responder import PipelineResponder, SamplingOptions
from internvlu_jax.small_world.scoring.sheet import outcome_sheet
from internvlu_jax.small_world.scoring.suite import KEYS, Query, Reply, run
from tests.conftest import GOLDENS

CHECKPOINT = GOLDENS / "base/checkpoint"
BLANK = np.full((64, 64, 3), 255, np.uint8)
COUNT = 24
HEADLINE = {
    "geneval_seen", "geneval_heldout", "questions", "edits_done", "edit_untouched_psnr", "words", "reasoning_gain",
}  # fmt: skip


def world_of(name: str) -> World:
    return XS_TRANSFER if name.startswith("transfer") else SMALL


class Knowing:
    """A model that knows the cases: right in some modes, and in the others wrong."""

    def __init__(self, name: str, right: tuple[str, ...] = ("text", "image", "text_image"), count: int = COUNT) -> None:
        self.cases, self.right, self.queries = cases(world_of(name), name, count), right, []

    def __call__(self, queries):
        self.queries += queries
        return [self.reply(query) for query in queries]

    def reply(self, query: Query) -> Reply:
        case = self.cases[query.number]
        assert query.prompt == case.prompt
        assert (query.source is None) == (case.source is None)
        if query.source is not None:
            assert np.array_equal(query.source, case.source.draw(64))
        if query.mode not in self.right:
            unchanged = BLANK if query.source is None else query.source
            return Reply(None if query.mode == "text" else unchanged, "nothing")
        text = {"text": case.answer, "text_image": f" {case.reasoning} "}.get(query.mode, "")
        return Reply(None if query.mode == "text" else case.image.draw(64), text)


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


def arguments(out, **changes) -> Arguments:
    return dataclasses.replace(Arguments(count=COUNT, out=out), **changes)


SETTINGS = {"count": COUNT, "parameters": "abc", "model": "somewhere"}


class TestScript:
    def scores(self, args, calls, settings=SETTINGS):
        """All scores by models that are right in everything but drawing without reasoning."""
        models = {name: Knowing(name, ("text", "text_image") if name == "reasoning" else ("text", "image"))
                  for name in SHIPPED}  # fmt: skip

        def begin(name):
            calls.append(name)

        return evaluate(args, lambda queries: models[calls[-1]](queries), 64, settings, begin)

    def test_every_score_with_its_interval(self, tmp_path):
        found = self.scores(arguments(tmp_path), calls := [])
        assert calls == list(SHIPPED) and set(found) == {*HEADLINE, "settings"}
        assert json.loads((tmp_path / "scores.json").read_text()) == found
        for key in HEADLINE:
            assert (
                found[key]["count"] >= COUNT * 3 / 4 and found[key]["low"] <= found[key]["value"] <= found[key]["high"]
            )
        assert found["edit_untouched_psnr"]["value"] == 60
        assert all(found[key]["value"] == 1.0 for key in HEADLINE - {"edit_untouched_psnr"})
        assert script.table(found).row_count == sum(1 + len(found[key]["parts"]) for key in HEADLINE)
        for name in SHIPPED:
            assert Image.open(tmp_path / f"{name}.png").width > 500

    def test_it_goes_on(self, tmp_path, capsys):
        first = self.scores(arguments(tmp_path, only=("words",)), calls := [])
        assert calls == ["words"] and set(first) == {"words", "settings"}
        both = self.scores(arguments(tmp_path, only=("words", "questions")), calls := [])
        assert calls == ["questions"] and both["words"] == first["words"]
        renamed = SETTINGS | {"model": "elsewhere"}
        self.scores(arguments(tmp_path, only=("words",)), calls := [], renamed)
        assert calls == [] and not capsys.readouterr().err
        other = self.scores(arguments(tmp_path, only=("words",)), calls := [], SETTINGS | {"parameters": "xyz"})
        assert calls == ["words"] and set(other) == {"words", "settings"}
        assert "other settings or parameters" in capsys.readouterr().err

    def test_a_file_that_is_no_scores(self, tmp_path):
        (tmp_path / "scores.json").write_text("[]")
        with pytest.raises(ValueError, match="not a file of scores"):
            self.scores(arguments(tmp_path), [])

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"count": 7}, "--count is 7; expected at least 8"),
            ({"steps": 0}, "--steps is 0"),
            ({"seed": -1}, "--seed is -1"),
            ({"batch": 0}, "--batch is 0"),
            ({"side": 32}, "--side is 32; expected at least 48"),
            ({"all_cfg_scale": float("nan")}, "--all-cfg-scale is nan"),
            ({"only": ()}, "--only names no score"),
            ({"model": "no/such/directory"}, "there is no directory no/such/directory"),
        ],
    )
    def test_what_cannot_be_is_said_before_anything_is_loaded(self, changes, message, tmp_path, capsys):
        assert script.main(arguments(tmp_path, **changes)) == 2
        assert message in capsys.readouterr().err and not any(tmp_path.iterdir())

    def test_out_is_a_file(self, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert script.main(arguments(tmp_path / "file")) == 2
        assert "is a file; expected a directory" in capsys.readouterr().err


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "names, keys",
    [
        (("questions", "edits"), {"questions", "edits_done", "edit_untouched_psnr"}),
        (("words", "reasoning"), {"words", "reasoning_gain"}),
    ],
)
def test_the_command_with_a_real_pipeline(names, keys, tmp_path, capsys):
    """Random parameters: nothing has to be right, but every mode runs, and everything is written."""
    args = Arguments(str(CHECKPOINT), 8, True, tmp_path / "out", steps=1, side=64, batch=4, only=names)
    assert script.main(args) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert set(found) == {*keys, "settings"}
    assert found["settings"]["guidance"]["image"] == {"all": 4.5, "part": 2.0} and found["settings"]["side"] == 64
    assert len(found["settings"]["parameters"]) == 16
    assert {path.name for path in args.out.iterdir()} == {"scores.json", *(f"{name}.png" for name in names)}
    assert script.main(dataclasses.replace(args, json=False)) == 0
    assert max(keys) in capsys.readouterr().out
