"""Replies by hand, the odd ones included."""

import pytest

from internvlu_jax.evaluation.rules import ocrbench
from internvlu_jax.evaluation.scores import share

WORDS, FORMULAS = "Regular Text Recognition", ocrbench.FORMULAS


@pytest.mark.parametrize(
    "reply, answers, kind, right",
    [
        ("It says PRIVATE.", ["private"], WORDS, True),
        ("privat", ["private"], WORDS, False),
        (" Main\nStreet ", ["main street"], WORDS, True),
        ("main  street", ["main street"], WORDS, False),  # two spaces stay two
        ("$7.50", ["7.5", "$7.50"], WORDS, True),
        ("seventeen", ["teen"], WORDS, True),  # contained is enough
        ("", ["a"], WORDS, False),
        ("anything", [""], WORDS, True),
        (r"\frac { a } { b }", [r"\frac{a}{b}"], FORMULAS, True),
        (r"\frac { A } { b }", [r"\frac{a}{b}"], FORMULAS, False),
        ("a +\nb", ["a+b"], FORMULAS, True),
    ],
)
def test_what_is_right(reply, answers, kind, right):
    assert ocrbench.right(reply, answers, kind) is right


def test_kinds_count_in_groups():
    verdicts = [("Handwriting Recognition", True), ("Digit String Recognition", False), (FORMULAS, True)]
    verdicts += [("Doc-oriented VQA", True)] * 1
    found = ocrbench.summary(verdicts)
    assert list(found) == ["overall", "Text Recognition", "Doc-oriented VQA", FORMULAS]
    assert [score.value for score in found.values()] == [75.0, 50.0, 100.0, 100.0]
    wilson = share([True, True, True, False])
    assert (found["overall"].low, found["overall"].high) == pytest.approx((100 * wilson.low, 100 * wilson.high))


def test_a_thousand_questions_count_a_tenth_each():
    found = ocrbench.summary([(WORDS, number < 839) for number in range(1000)])
    assert found["overall"].value == pytest.approx(83.9) and found["overall"].count == 1000


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match=r"kind 'VQA'; expected one of Regular"):
        ocrbench.right("a", ["a"], "VQA")
