"""Replies read by hand as the official parser reads them."""

import random

import pytest

from internvlu_jax.evaluation.rules import mmmu

OPTIONS = ["red", "dark green", "blue", "none of these"]


@pytest.mark.parametrize(
    "reply, letter",
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("'D'", "D"),
        ("The answer is B", "B"),
        ("Either A or B", "B"),  # the last one
        ("(B) is better than (A), so (B)", "B"),
        ("(A) is worse. B is right", "A"),  # brackets win
        ("(D), not (C)", "C"),
        ("A red one is what I see", "A"),  # an article is a letter
        ("I believe that it is Dark Green overall", "B"),
        ("it may be red but looks more like blue", "C"),
        ("one of red or dark green or blue is red", "A"),
    ],
)
def test_letters(reply, letter):
    assert mmmu.choice(reply, OPTIONS, mmmu.guesses()) == mmmu.Choice(letter)


def test_options_at_one_place_give_the_first():
    assert mmmu.choice("it is clearly the same as before", ["same", "same"], mmmu.guesses()).letter == "A"


@pytest.mark.parametrize("reply", ["", "E", "b", "dark green", "B,C", "I do not know at all what"])
def test_what_says_nothing_is_guessed(reply):
    """Lower-case letters, letters that no option has, options in replies of five words or fewer."""
    random.seed(42)  # as the official script: one stream for all questions
    wanted = [random.choice(["A", "B", "C", "D"]) for _ in range(3)]
    source = mmmu.guesses()
    found = [mmmu.choice(reply, OPTIONS, source) for _ in range(3)]
    assert [choice.letter for choice in found] == wanted and all(choice.guessed for choice in found)


def test_guesses_follow_each_other_in_the_order_of_questions():
    """What is found draws nothing."""
    source = mmmu.guesses()
    letters = [mmmu.choice(reply, OPTIONS, source).letter for reply in ("?", "A", "?")]
    plain = random.Random(42)
    assert letters == [plain.choice(list("ABCD")), "A", plain.choice(list("ABCD"))]


@pytest.mark.parametrize(
    "text, values",
    [
        (" 1,234.567 ", [1234.57]),
        ("Seven", ["seven"]),
        ("x", [" x", "x "]),
        ("1e3", [1000.0]),
        ("5%", ["5%"]),
        ("5", [5.0]),
    ],
)
def test_normal_forms(text, values):
    assert mmmu.normal(text) == values


@pytest.mark.parametrize(
    "reply, findings",
    [
        ("The answer is 12.", ["12", 12.0]),
        ("So the total is 1,200 dollars", ["1,200 dollars", 1200.0, 200.0]),  # numbers behind commas are found again
        ("twenty", ["twenty"]),
        ("x = 4", [4.0]),
        ("x = 4\nhence the result is 5", [5.0]),  # "=" counts in the last line alone
        ("The result is", ["is"]),  # a key needs the space behind it
        ("The answer is :", ["the answer is :"]),  # marks alone are no finding
        ("It is 3. It could be 7.5", [7.5]),  # the lower-case text is one line, and its shortest tail counts
    ],
)
def test_findings_in_open_replies(reply, findings):
    wanted = [value for value in findings if isinstance(value, float) or not value.replace(".", "").isdigit()]
    assert mmmu.findings(reply) == wanted


@pytest.mark.parametrize(
    "reply, answers, right",
    [
        ("The answer is 12.004", "12", True),  # to two decimals
        ("The answer is 12.006", "12", False),
        ("about 12", "12", True),
        ("it is 112", "12", False),
        ("The process is photosynthesis", "photosynthesis", True),
        ("The process is photosynthesis in plants", "photosynthesis", False),  # "is " ends a word, too
        ("osmosis", ["diffusion", "Osmosis"], True),
        ("the variable is x", "x", True),
        ("maximum", "x", False),  # one letter: " x" or "x " must be found
        ("so x and y", "x", True),
        ("", "x", False),
        ("-5", "5", False),
    ],
)
def test_open_answers(reply, answers, right):
    assert mmmu.right_open(reply, answers) is right


def test_subjects_and_the_whole():
    found = mmmu.summary([("Math", True), ("Art", False), ("Math", False), ("Math", True)])
    assert list(found) == ["overall", "Art", "Math"]
    assert [score.value for score in found.values()] == pytest.approx([50.0, 0.0, 200 / 3])
