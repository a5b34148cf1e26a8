"""Scores of a model: the fixed cases are put to it, what comes back is judged, and the verdicts become shares.

A model is anything that replies to queries; `responder.PipelineResponder` is the real one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from internvlu_jax.evaluation.scores import Score, by_category, gain, mean, overall, share
from internvlu_jax.small_world.scenes.render import Picture
from internvlu_jax.small_world.scenes.world import WORDS, World
from internvlu_jax.small_world.scoring import answers, edits, geneval, words
from internvlu_jax.small_world.scoring.cases import cases
from internvlu_jax.small_world.scoring.geneval import Verdict
from internvlu_jax.small_world.scoring.reader import read
from internvlu_jax.small_world.tasks.captions import plain
from internvlu_jax.small_world.tasks.example import Example

Mode = Literal["text", "image", "text_image"]


@dataclass(frozen=True, eq=False)
class Query:
    """One prompt in one mode of the pipeline. number: of the case, so that its noise can be the same in both modes."""

    number: int
    mode: Mode
    prompt: str
    source: Picture | None = None


@dataclass(frozen=True, eq=False)
class Reply:
    """picture: None in mode "text"."""

    picture: Picture | None = None
    text: str = ""


Responder = Callable[[Sequence[Query]], Sequence[Reply]]
"""Replies in the order of the queries, all of which have one mode and either all or none a source."""


@dataclass(frozen=True)
class Report:
    """A score, the scores of its parts, and how often each reason made a case wrong."""

    score: Score
    parts: Mapping[str, Score] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        parts = {name: score.json() for name, score in self.parts.items()}
        return {**self.score.json(), "parts": parts, "reasons": dict(self.reasons)}


@dataclass(frozen=True, eq=False)
class Outcome:
    """One case as it went. panels: pictures with the texts below them, for a sheet."""

    categories: tuple[str, ...]
    verdict: Verdict
    panels: tuple[tuple[Picture, str], ...]


@dataclass(frozen=True)
class Result:
    """Reports by their keys, and every case."""

    reports: dict[str, Report]
    outcomes: list[Outcome]


KEYS: Mapping[str, tuple[str, ...]] = {
    "geneval_seen": ("geneval_seen",),
    "geneval_heldout": ("geneval_heldout",),
    "questions": ("questions",),
    "domain_questions": ("domain_questions",),
    "edits": ("edits_done", "edit_untouched_psnr"),
    "words": ("words",),
    "reasoning": ("reasoning_gain",),
    "transfer_pictures": ("transfer_pictures",),
    "transfer_questions": ("transfer_questions",),
}
"""The keys of the reports of every set of cases."""

_QUESTIONS = ("questions", "domain_questions", "transfer_questions")
_READ = ("reading", "top", "bottom")  # topics of questions after words: of a picture, and of the lines of a meme


def run(world: World, name: str, count: int, model: Responder, side: int = 64, seed: int = 0) -> Result:
    """Puts so many cases of one set to the model.

    Args:
        name: one of `cases.NAMES`.
        side: pixels of the pictures that the model is shown.

    Raises:
        ValueError: there is no such set, or count is under 1.
    """
    examples, asked = _asked(world, name, count, side, seed)
    replies = [model(queries) for queries in asked]
    if name == "reasoning":
        return _reasoning(world, examples, *replies)
    if name == "edits":
        return _edits(world, examples, asked[0], replies[0])
    if name in _QUESTIONS:
        return _questions(name, examples, asked[0], replies[0])
    return _words(world, examples, replies[0]) if name == "words" else _geneval(name, world, examples, replies[0])


def queries(world: World, name: str, count: int, side: int = 64, seed: int = 0) -> list[list[Query]]:
    """What `run` asks the model, call by call: so its replies can be had in one place and judged in another.

    Raises:
        ValueError: as `run` does.
    """
    return _asked(world, name, count, side, seed)[1]


def _asked(world: World, name: str, count: int, side: int, seed: int) -> tuple[list[Example], list[list[Query]]]:
    """The cases, and the queries of every call of the model."""
    if count < 1:
        raise ValueError(f"count is {count}; expected at least 1")
    examples = cases(world, name, count, seed)
    modes: tuple[Mode, ...] = ("text",) if name in _QUESTIONS else ("image",)
    if name == "reasoning":
        modes = ("image", "text_image")
    return examples, [_queries(examples, mode, side) for mode in modes]


def _queries(examples: Sequence[Example], mode: Mode, side: int) -> list[Query]:
    sources = [None if case.source is None else case.source.draw(side) for case in examples]
    return [Query(n, mode, case.prompt, source) for n, (case, source) in enumerate(zip(examples, sources, strict=True))]


def _drawn(replies: Sequence[Reply]) -> list[Picture]:
    pictures = [reply.picture for reply in replies if reply.picture is not None]
    if len(pictures) < len(replies):
        raise ValueError(f"{len(pictures)} pictures came back for {len(replies)} prompts; expected one for each")
    return pictures


def _report(outcomes: Sequence[Outcome], whole: Score | None = None) -> Report:
    """The share that is right, or another score of the whole, and the shares of the categories."""
    rights = [outcome.verdict.right for outcome in outcomes]
    parts = by_category((category, o.verdict.right) for o in outcomes for category in o.categories)
    return Report(whole or share(rights), parts, _reasons(o.verdict for o in outcomes))


def _reasons(verdicts: Iterable[Verdict]) -> dict[str, int]:
    return dict(Counter(verdict.reason for verdict in verdicts if not verdict.right).most_common())


def _geneval(name: str, world: World, examples: Sequence[Example], replies: Sequence[Reply]) -> Result:
    outcomes = []
    for case, picture in zip(examples, _drawn(replies), strict=True):
        verdict = geneval.score(world, case.truth, picture)
        outcomes.append(Outcome((case.topic,), verdict, ((picture, _below(case, verdict)),)))
    report = _report(outcomes)
    return Result({name: Report(overall(report.parts), report.parts, report.reasons)}, outcomes)


def _words(world: World, examples: Sequence[Example], replies: Sequence[Reply]) -> Result:
    outcomes, whole = [], []
    for case, picture in zip(examples, _drawn(replies), strict=True):
        reading, text = read(picture, world.kinds), case.truth.word
        verdict = words.judge(case.truth, reading)
        length = f"{len(text)} letter{'s' if len(text) > 1 else ''}"
        categories = (length, case.topic, "listed" if text in WORDS else "any letters")
        outcomes.append(Outcome(categories, verdict, ((picture, _below(case, verdict)),)))
        whole.append(geneval.judge(case.truth, reading).right)
    report = _report(outcomes)
    parts = {**dict(sorted(report.parts.items())), "whole picture": share(whole)}
    return Result({"words": Report(report.score, parts, report.reasons)}, outcomes)


def _questions(name: str, examples: Sequence[Example], asked: Sequence[Query], replies: Sequence[Reply]) -> Result:
    outcomes = []
    for case, query, reply in zip(examples, asked, replies, strict=True):
        right = answers.right(case.answer, reply.text, reading=case.topic in _READ)
        verdict = Verdict(right, "" if right else "answer")
        text = f"{_ascii(case.prompt)} {_ascii(reply.text)!r}" + ("" if right else f", not {case.answer!r}")
        assert query.source is not None
        outcomes.append(Outcome((case.topic,), verdict, ((query.source, text),)))
    return Result({name: _report(outcomes)}, outcomes)


def _edits(world: World, examples: Sequence[Example], asked: Sequence[Query], replies: Sequence[Reply]) -> Result:
    outcomes, kept = [], []
    for case, query, picture in zip(examples, asked, _drawn(replies), strict=True):
        verdict, untouched = edits.score(world, case.truth, picture)
        kept += [] if untouched is None else [(case.topic, untouched)]
        rest = "" if untouched is None else f", untouched {untouched:.0f} dB"
        assert query.source is not None
        panels = ((query.source, _ascii(case.prompt)), (picture, _verdict(verdict) + rest))
        outcomes.append(Outcome((case.topic,), verdict, panels))
    means = {
        kind: mean([value for other, value in kept if other == kind]) for kind in dict.fromkeys(k for k, _ in kept)
    }
    psnr = Report(mean([value for _, value in kept]), means)
    return Result({"edits_done": _report(outcomes), "edit_untouched_psnr": psnr}, outcomes)


def _reasoning(world: World, examples: Sequence[Example], without: Sequence[Reply], replies: Sequence[Reply]) -> Result:
    """The same prompts without and with the reasoning that the model writes; an outcome is that with it."""
    outcomes, before = [], []
    for case, first, reply, second in zip(examples, _drawn(without), replies, _drawn(replies), strict=True):
        verdicts = [geneval.score(world, case.truth, picture) for picture in (first, second)]
        before.append(verdicts[0].right)
        panels = ((first, _below(case, verdicts[0])), (second, f"{_ascii(reply.text)} [{_verdict(verdicts[1])}]"))
        outcomes.append(Outcome((case.topic,), verdicts[1], panels))
    after = [outcome.verdict.right for outcome in outcomes]
    written = [reply.text.strip() == case.reasoning for case, reply in zip(examples, replies, strict=True)]
    parts = {"with": share(after), "without": share(before), "reasoning as expected": share(written)}
    for kind in dict.fromkeys(case.topic for case in examples):
        chosen = [n for n, case in enumerate(examples) if case.topic == kind]
        parts[f"gain {kind}"] = gain([after[n] for n in chosen], [before[n] for n in chosen])
    reasons = _reasons(outcome.verdict for outcome in outcomes)
    return Result({"reasoning_gain": Report(gain(after, before), parts, reasons)}, outcomes)


def _verdict(verdict: Verdict) -> str:
    return "right" if verdict.right else f"wrong: {verdict.reason}"


def _below(case: Example, verdict: Verdict) -> str:
    """The text below a drawn picture, a Chinese prompt told in English."""
    prompt = case.prompt if case.prompt.isascii() else f"(Chinese) {plain(case.truth)}"
    return f"{prompt} [{_verdict(verdict)}]"


def _ascii(text: str) -> str:
    """What Pillow's own font can show."""
    return re.sub(r"[^\x00-\x7f]+", " .. ", text).strip()
