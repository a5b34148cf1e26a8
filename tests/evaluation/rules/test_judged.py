"""What given judgements, detections and answers add up to, by hand."""

import json
import math

import pytest

from internvlu_jax.evaluation.rules import dpg, gedit, geneval, imgedit, risebench, textedit, wise
from internvlu_jax.evaluation.rules.risebench import Judged
from internvlu_jax.evaluation.scores import overall, share


def _picture(tag, prompt, correct):
    return {"tag": tag, "metadata": json.dumps({"tag": tag, "prompt": prompt}), "correct": correct, "filename": "a"}


def test_geneval_counts_tasks_alike():
    rows = [_picture("counting", "two cats", right) for right in (True, True, False, False)]
    rows += [_picture("counting", "two dogs", right) for right in (False, False, False, False)]
    rows += [_picture("colors", "a red cat", right) for right in (True, True, True, False)]
    found = geneval.summary(rows)
    assert list(found) == ["counting", "colors", "overall", "pictures", "prompts"]
    assert [score.value for score in found.values()] == pytest.approx([2 / 8, 3 / 4, 1 / 2, 5 / 12, 2 / 3])
    assert found["counting"] == share([True] * 2 + [False] * 6)
    assert found["overall"] == overall({name: found[name] for name in ("counting", "colors")})


def test_geneval_names_rows_of_others():
    with pytest.raises(ValueError, match="line 2 has no metadata, tag; expected what GenEval's"):
        geneval.summary([_picture("colors", "a", True), {"correct": True}])
    with pytest.raises(ValueError, match="nothing to score"):
        geneval.summary([])


QUESTIONS = [
    dpg.Question(1, (0,), "entity - whole", "Is there a cat?"),
    dpg.Question(2, (1,), "attribute - color", "Is the cat red?"),
    dpg.Question(3, (2,), "attribute - color", "Is the red bright?"),
    dpg.Question(4, (0,), "global - style", "Is it a photo?"),
]


@pytest.mark.parametrize(
    "answers, value",
    [
        (("yes", "yes", "yes", "yes"), 1.0),
        (("no", "yes", "yes", "yes"), 0.25),  # and so the third, whose parent fails by its parent
        (("yes", "no", "yes", "no"), 0.25),
        (("Yes", "yes", "yes", "yes"), 0.25),  # exactly "yes"
        (("no", "no", "no", "no"), 0.0),
    ],
)
def test_dpg_questions_fall_with_their_parents(answers, value):
    assert dpg.tile(QUESTIONS, dict(enumerate(answers, start=1))) == value


def test_dpg_parents_that_stand_later_count_as_they_were_answered():
    turned = [QUESTIONS[2], QUESTIONS[1], QUESTIONS[0]]
    assert dpg.tile(turned, {1: "no", 2: "yes", 3: "yes"}) == pytest.approx(1 / 3)


def test_dpg_means_over_tiles_then_prompts():
    whole, broken = dict.fromkeys(range(1, 5), "yes"), {1: "no", 2: "yes", 3: "yes", 4: "yes"}
    found = dpg.summary({"0": QUESTIONS, "1": QUESTIONS[:1]}, {"0": [whole, broken], "1": [{1: "no"}]})
    assert found["overall"].value == pytest.approx(100 * ((1 + 0.25) / 2 + 0) / 2)
    assert {name: score.value for name, score in found.items() if name != "overall"} == {
        "attribute": 100.0,  # the last tile's answers, whatever their parents
        "entity": 0.0,
        "global": 100.0,
    }
    with pytest.raises(ValueError, match="no questions for '2'; expected one of 1 prompts"):
        dpg.summary({"0": QUESTIONS}, {"2": [whole]})
    with pytest.raises(ValueError, match=r"question 2 \('Is the cat red\?'\) has no answer"):
        dpg.tile(QUESTIONS, {1: "yes"})
    with pytest.raises(ValueError, match="question 2 depends on question 1, which is not there"):
        dpg.tile(QUESTIONS[1:2], {2: "yes"})


@pytest.mark.parametrize("number, field", [(1, "culture"), (400, "culture"), (401, "time"), (567, "time")])
def test_wise_fields(number, field):
    assert wise.field(number) == field
    assert [wise.field(n) for n in (568, 700, 701, 800, 801, 900, 901, 1000)] == [
        *("space", "space", "biology", "biology", "physics", "physics", "chemistry", "chemistry")
    ]


def _judged(number, *values):
    return {"prompt_id": number, **dict(zip(("consistency", "realism", "aesthetic_quality"), values, strict=True))}


def test_wise_weights():
    assert wise.one(2, 2, 2) == pytest.approx(1) and wise.one(1, 0, 2) == pytest.approx((0.7 + 0.2) / 2)
    rows = [_judged(1, 2, 2, 2), _judged(2, 0, 0, 0), _judged(500, 2, 0, 0)]
    rows += [_judged(600, 0, 2, 0), _judged(750, 0, 0, 2), _judged(850, 1, 1, 1), _judged(1000, 0, 0, 0)]
    found = wise.summary(rows)
    parts = {"culture": 0.5, "time": 0.7, "space": 0.2, "biology": 0.1, "physics": 0.5, "chemistry": 0.0}
    assert {name: found[name].value for name in parts} == pytest.approx(parts)
    assert found["overall"].value == pytest.approx(0.2 + 0.167 * 0.7 + 0.133 * 0.2 + 0.01 + 0.05)
    assert list(wise.summary(rows[:3])) == ["culture", "time"]  # no whole without all fields


def test_wise_names_what_is_wrong():
    for rows, said in [
        ([_judged(1, 1, 1, 1)] * 2, "prompt_id 1 is judged twice"),
        ([_judged(1001, 1, 1, 1)], "1001 is none of WISE's"),
        ([_judged(1, 1, 1, None)], "is no judgement; expected prompt_id and numbers"),
        ([], "there is no judgement"),
    ]:
        with pytest.raises(ValueError, match=said):
            wise.summary(rows)


JUDGEMENT = "Brief reasoning: fine\nPrompt Compliance: 5\nVisual Naturalness: 4\n Physical Integrity: 4 \nTotal: 4.5"


def test_imgedit_reads_numbers_at_ends_of_lines():
    assert imgedit.numbers(JUDGEMENT) == [5, 4, 4]
    assert imgedit.one(JUDGEMENT) == 4.33
    assert imgedit.numbers("Score: 4 of 5\nA: b: 3\nScore:4\nScore: -1") == []
    assert imgedit.one("no number") is None


def test_imgedit_means_over_kinds():
    kinds = {"1": "add", "2": "add", "3": "style", "4": "style"}
    found, silent = imgedit.summary({"1": "A: 5", "2": "A: 2", "3": "A: 1", "4": "sorry"}, kinds)
    assert {name: score.value for name, score in found.items()} == {"overall": 2.25, "add": 3.5, "style": 1.0}
    assert silent == 1 and found["style"].json()["low"] is None
    with pytest.raises(ValueError, match="'9' is judged but is no edit"):
        imgedit.summary({"9": "A: 1"}, kinds)
    with pytest.raises(ValueError, match="none of 1 judgements has a number"):
        imgedit.summary({"1": "sorry"}, kinds)


def _edit(kind, semantics, quality, language="en"):
    return {
        "kind": kind,
        "instruction_language": language,
        "sementics_score": semantics,
        "quality_score": quality,
    }


def test_gedit_roots_and_kinds():
    rows = [_edit("ps_human", 4, 9), _edit("ps_human", 0, 9), _edit("text_change", 8, 2), _edit("ps_human", 1, 1, "cn")]
    found = gedit.summary(rows)
    assert found["ps_human"].value == 3.0 and found["text_change"].value == 4.0
    assert found["overall"].value == 3.5 and found["semantics"].value == 5.0 and found["quality"].value == 5.5
    assert gedit.summary(rows, "cn")["overall"].value == 1.0
    with pytest.raises(ValueError, match="no edit was judged in language 'fr'"):
        gedit.summary(rows, "fr")
    with pytest.raises(ValueError, match=r"scores 11.0, 1.0 of add; expected 0 to 10"):
        gedit.summary([_edit("add", 11, 1)])


@pytest.mark.parametrize(
    "judged, value, complete",
    [
        (Judged("temporal_reasoning", 5, 5, 5), 5.0, True),
        (Judged("causal_reasoning", 3, 5, 4), 0.3 * 5 + 0.5 * 3 + 0.2 * 4, False),
        (Judged("spatial_reasoning", 4, None, 5), 0.8 * 4 + 0.2 * 5, False),
        (Judged("spatial_reasoning", 5, None, 5), 5.0, True),
        (Judged("logical_reasoning", 5, 5, None), 5.0, True),
        (Judged("logical_reasoning", 2, 5, None), 0.3 * 5 + 0.7 * 2, False),
        (Judged("temporal_reasoning", 1, 5, 5), (1.5 + 0.5 + 1) / 2, False),  # reasoning of 1 halves
        (Judged("logical_reasoning", 1, 1, None), 1.0, False),  # but never below 1
    ],
)
def test_risebench_weights(judged, value, complete):
    assert risebench.one(judged) == pytest.approx(value) and risebench.complete(judged) is complete


def test_risebench_accuracy_and_score():
    rows = [Judged("temporal_reasoning", 5, 5, 5), Judged("logical_reasoning", 1, 1, None)]
    rows += [Judged("temporal_reasoning", 3, 3, 3)] * 2
    found = risebench.summary(rows)
    assert {name: score.value for name, score in found.items()} == pytest.approx(
        {"accuracy": 25.0, "score": (100 + 0 + 50 + 50) / 4, "temporal_reasoning": 100 / 3, "logical_reasoning": 0.0}
    )
    for judged, said in [
        (Judged("magic", 5, 5, 5), "category 'magic'; expected one of temporal_reasoning"),
        (Judged("logical_reasoning", 5, None, None), "logic needs consistency"),
        (Judged("causal_reasoning", 5, 5, None), "causal_reasoning needs plausibility"),
        (Judged("causal_reasoning", 5, 0, 5), "0 is not within 1 to 5"),
    ]:
        with pytest.raises(ValueError, match=said):
            risebench.summary([judged])


def test_textedit_splits():
    found = textedit.summary([("1.1.1", 1.0), ("1.4.4", 0.5), ("2.7", 0.25), ("2.1", 0.75)])
    assert {name: score.value for name, score in found.items()} == {"real": 0.5, "virtual": 0.75}
    assert all(math.isfinite(score.low) for score in found.values())
    with pytest.raises(ValueError, match=r"category '3.1'; expected 1\.x\.x"):
        textedit.summary([("3.1", 1.0)])
