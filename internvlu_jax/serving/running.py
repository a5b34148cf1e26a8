"""Jobs to calls of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from internvlu_jax.inference.pipeline import InternVLUPipeline, PipelineOutput
from internvlu_jax.inference.stream import TextStream, before_stop, pieces_before_stop
from internvlu_jax.serving.jobs import Answer, Call, Conversation, Drawn, Event, Job, Step

Report = Callable[[Event], None]


class Abandoned(Exception):
    """Nobody waits for this any more."""


def run(pipe: InternVLUPipeline, jobs: Sequence[Job], report: Report) -> list[Drawn | Answer]:
    """Does jobs of one kind together; gives what comes of each.

    Args:
        report: hears of every step, and of every piece of text that is streamed; may raise `Abandoned`.

    Raises:
        ValueError: the pipeline's, of its arguments.
        Abandoned: as `report` does.
    """
    first = jobs[0]
    if isinstance(first, Conversation):
        return [_converse(pipe, first, report)]
    calls = [job for job in jobs if isinstance(job, Call)]
    return [_stream(pipe, first, report)] if first.streamed else _together(pipe, calls, report)


def check(pipe: InternVLUPipeline, call: Call) -> int:
    """How many tokens the prompt of a call has.

    Raises:
        ValueError: the pipeline would refuse the prompt or its pictures.
    """
    settings = dict(call.settings)
    (processed,) = pipe.processor.process(
        call.prompt, [list(call.pictures)], call.mode, system_prompt=settings.get("system_prompt"),
        negative_prompt=settings.get("negative_prompt"),
    )  # fmt: skip
    return len(processed.cond)


def _together(pipe: InternVLUPipeline, calls: Sequence[Call], report: Report) -> list[Drawn | Answer]:
    first = calls[0]
    out = pipe(
        [call.prompt for call in calls],
        image=[list(call.pictures) or None for call in calls],
        generation_mode=first.mode,
        seed=[call.seed for call in calls],
        **dict(first.settings),
        **_steps(first, report),
    )
    return [_result(pipe, call, out, n) for n, call in enumerate(calls)]


def _stream(pipe: InternVLUPipeline, call: Call, report: Report) -> Drawn | Answer:
    stream = pipe.stream(
        call.prompt, [list(call.pictures) or None], call.mode, seed=call.seed,
        **dict(call.settings), **_steps(call, report),
    )  # fmt: skip
    return _result(pipe, call, _told(stream, report, _stops(call)), 0)


def _converse(pipe: InternVLUPipeline, job: Conversation, report: Report) -> Answer:
    stream = pipe.stream_chat(list(job.messages), seed=job.seed, **dict(job.settings))
    out = _told(stream, report, _stops(job))
    return Answer(before_stop(out.text, _stops(job)), len(out.tokens), out.ended, job.seed, out.prompt_tokens)


def _stops(job: Job) -> tuple[str, ...]:
    """The texts that end an answer. They are no part of it, as at OpenAI, but their tokens are counted."""
    return dict(job.settings).get("stop_strings", ())


def _told(stream: TextStream, report: Report, stops: Sequence[str]) -> Any:
    """The result of a stream, whose pieces are reported as far as the first stop."""
    try:
        for piece in pieces_before_stop(stream, stops):
            report(piece)
        return stream.result()
    finally:
        stream.close()


def _steps(call: Call, report: Report) -> dict[str, Any]:
    if call.mode == "text":
        return {}
    return {"callback": lambda step, total, latents: report(Step(step, total))}


def _result(pipe: InternVLUPipeline, call: Call, out: PipelineOutput, n: int) -> Drawn | Answer:
    text = out.text[n] if out.text else None
    if call.mode != "text":
        return Drawn(out.images[n], text, call.seed)
    assert out.tokens is not None and text is not None  # of every call in this mode
    tokens, said = out.tokens[n], before_stop(text, _stops(call))
    ended = said != text or (len(tokens) > 0 and int(tokens[-1]) in pipe.processor.tokenizer.stop_ids)
    return Answer(said, len(tokens), ended, call.seed)
