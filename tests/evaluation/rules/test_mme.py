"""Verdicts and points by hand."""

import pytest

from internvlu_jax.evaluation.rules import mme


@pytest.mark.parametrize(
    "reply, verdict",
    [
        ("Yes", "yes"),
        ("yes, there is", "yes"),
        (" No.", "no"),
        ("Not really", "no"),
        ("None", "no"),
        ("Eyes are blue", "yes"),
        ("know", "no"),
        ("I know", "other"),  # "i kn"
        ("The answer is yes", "other"),
        ("", "other"),
        ("1", "other"),
        ("noyes", "no"),  # the fifth letter does not count
        ("yeno", "no"),
    ],
)
def test_verdicts_come_from_four_letters(reply, verdict):
    assert mme.verdict(reply) == verdict


@pytest.mark.parametrize(
    "replies, points",
    [(("Yes", "No"), 200), (("Yes", "Yes"), 50), (("No", "No"), 50), (("No", "Yes"), 0), (("maybe", "No"), 50)],
)
def test_points_of_a_picture(replies, points):
    assert mme.picture(("Yes", "No"), replies) == points


def test_tasks_and_their_sums():
    """Of four pictures one has both right, two have one, one has none: accuracy 4 / 8 and accuracy-plus 1 / 4."""
    tasks = {name: [200.0, 50.0, 50.0, 0.0] for name in mme.PERCEPTION}
    found = mme.summary(tasks)
    assert found["count"].value == pytest.approx(100 * 4 / 8 + 100 * 1 / 4)
    assert found["perception"].value == pytest.approx(750) and found["perception"].count == 40
    assert "cognition" not in found
    assert list(mme.summary({"count": [200.0, 200.0]})) == ["count"]  # no sum where tasks are missing
    full = mme.summary({name: [200.0] * 3 for name in mme.TASKS})
    assert (full["perception"].value, full["cognition"].value) == (pytest.approx(2000), pytest.approx(800))


def test_what_is_not_of_mme_is_named():
    with pytest.raises(ValueError, match="'maybe' is neither Yes nor No"):
        mme.picture(("Yes", "maybe"), ("Yes", "No"))
    with pytest.raises(ValueError, match="dogs: no task of MME; they are existence, count"):
        mme.summary({"dogs": [200.0]})
    with pytest.raises(ValueError, match="no task to score"):
        mme.summary({})
