"""The page: four modes, whose jobs wait in the same queue as all others."""

from __future__ import annotations

import hmac
import html
import os
import queue
import time
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # the page tells nobody of its use

import gradio as gr
from fastapi import FastAPI
from PIL import Image

from internvlu_jax.serving.errors import Refused
from internvlu_jax.serving.jobs import Answer, Call, Drawn, Event, Job, Settings, Step
from internvlu_jax.serving.limits import Limits
from internvlu_jax.serving.pictures import encoded
from internvlu_jax.serving.running import Abandoned
from internvlu_jax.serving.worker import Worker
from internvlu_jax.utils.seeds import LARGEST_SEED, any_seed

_KEPT = 12  # pictures of the history
_PROGRESS = gr.Progress()  # as a default it asks for a bar; every call has its own
_CSS = """
.drawn img {width: 100%; max-width: 512px; image-rendering: auto; border-radius: 8px}
.history {display: flex; flex-wrap: wrap; gap: 12px}
.history figure {width: 128px; margin: 0}
.history img {width: 128px; border-radius: 6px}
.history figcaption {font-size: 12px; line-height: 1.3}
"""


def with_page(app: FastAPI, worker: Worker, limits: Limits, key: str | None) -> FastAPI:
    """The application with the page at "/". Who needs a key logs in with any name, and the key as the password."""
    auth = None if key is None else (lambda name, word: hmac.compare_digest(word.encode(), key.encode()))
    return gr.mount_gradio_app(
        app, _page(worker, limits), path="/", auth=auth, css=_CSS, show_error=False,
        max_file_size=limits.max_body << 20, footer_links=[], run_history=False, ssr_mode=False,
        enable_monitoring=False,
    )  # fmt: skip


def _page(worker: Worker, limits: Limits) -> gr.Blocks:
    def write(prompt: str, picture: Image.Image | None, seed: float | None) -> Iterator[tuple[str, str]]:
        own, text = _seed(seed), ""
        for heard in _heard(worker, _call(limits, "text", prompt, picture, own), limits):
            text = text + heard if isinstance(heard, str) else heard.text if isinstance(heard, Answer) else text
            yield text, f"seed {own}"

    def draw(
        prompt: str,
        picture: Image.Image | None,
        seed: float | None,
        steps: float,
        history: list[str],
        mode: str,
        progress: gr.Progress,
    ) -> Iterator[tuple[str, str, str, list[str], str]]:
        own, text = _seed(seed), ""
        call = _call(limits, mode, prompt, picture, own, (("num_inference_steps", int(steps)),))
        progress(0, desc="waiting")
        for heard in _heard(worker, call, limits):
            if isinstance(heard, Step):
                progress((heard.step, heard.total), desc="drawing", unit="steps")
            elif isinstance(heard, str):
                text += heard
                yield "", text, f"seed {own}", history, _shown(history)
            elif isinstance(heard, Drawn):
                tag = _tag(heard.picture, prompt)
                said = f"{html.escape(prompt[:80])}<br>seed {own}"
                history = [f"<figure>{tag}<figcaption>{said}</figcaption></figure>", *history][:_KEPT]
                yield f'<div class="drawn">{tag}</div>', heard.text or "", f"seed {own}", history, _shown(history)

    def draw_alone(
        prompt: str, seed: float | None, steps: float, history: list[str], progress: gr.Progress = _PROGRESS
    ) -> Iterator[tuple[Any, ...]]:
        for picture, _, *rest in draw(prompt, None, seed, steps, history, "image", progress):
            yield picture, *rest

    def edit(
        prompt: str,
        picture: Image.Image | None,
        seed: float | None,
        steps: float,
        history: list[str],
        progress: gr.Progress = _PROGRESS,
    ) -> Iterator[tuple[Any, ...]]:
        if picture is None:
            raise _told("there is no picture to change; put one into the field")
        for drawn, _, *rest in draw(prompt, picture, seed, steps, history, "image", progress):
            yield drawn, *rest

    def reason(
        prompt: str,
        picture: Image.Image | None,
        seed: float | None,
        steps: float,
        history: list[str],
        progress: gr.Progress = _PROGRESS,
    ) -> Iterator[tuple[Any, ...]]:
        yield from draw(prompt, picture, seed, steps, history, "text_image", progress)

    with gr.Blocks(title="InternVL-U", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# InternVL-U")
        kept = gr.State([])
        with gr.Tabs():
            with gr.Tab("Draw"):
                prompt, seed, steps, button = _inputs("two red circles left of a blue square")
                outs = _outputs()
                shown: list[tuple[Any, ...]] = [(button, draw_alone, [prompt, seed, steps, kept], outs)]
            with gr.Tab("Edit"):
                source = _source()
                prompt, seed, steps, button = _inputs("make the blue square green")
                outs = _outputs()
                shown.append((button, edit, [prompt, source, seed, steps, kept], outs))
            with gr.Tab("Ask"):
                source = _source()
                prompt, seed, _, button = _inputs("How many circles are there?", steps=False)
                answer, used = gr.Textbox(label="Answer", lines=3), gr.Markdown()
                button.click(write, [prompt, source, seed], [answer, used], concurrency_limit=None)
            with gr.Tab("Reason and draw"):
                source = _source()
                prompt, seed, steps, button = _inputs("as many triangles as a square has corners")
                thought = gr.Textbox(label="Reasoning", lines=3)
                picture, used = _outputs()
                shown.append((button, reason, [prompt, source, seed, steps, kept], (picture, thought, used)))
        gr.Markdown("### History")
        history = gr.HTML()
        for button, work, inputs, outputs in shown:
            button.click(work, inputs, [*outputs, kept, history], concurrency_limit=None)
    page.queue(max_size=limits.max_queue, api_open=False)
    return page


def _inputs(example: str, steps: bool = True) -> tuple[Any, ...]:
    prompt = gr.Textbox(label="Prompt", value=example, lines=2)
    with gr.Row():
        seed = gr.Number(label="Seed (empty: a new one)", value=None, precision=0, minimum=0, maximum=LARGEST_SEED)
        count = gr.Slider(1, 100, value=20, step=1, label="Steps", visible=steps)
    return prompt, seed, count, gr.Button("Go", variant="primary")


def _source() -> gr.Image:
    return gr.Image(label="Picture", type="pil", image_mode="RGB", sources=["upload", "clipboard"], height=240)


def _outputs() -> tuple[gr.HTML, gr.Markdown]:
    return gr.HTML(min_height=160), gr.Markdown()


def _call(
    limits: Limits, mode: str, prompt: str, picture: Image.Image | None, seed: int, settings: Settings = ()
) -> Call:
    """Text is streamed, and so is the reasoning before a picture."""
    if not prompt.strip():
        raise _told("the prompt is empty; write what you want")
    if picture is not None and picture.width * picture.height > limits.max_pixels * 1_000_000:
        raise _told(f"the picture has over {limits.max_pixels} million pixels; make it smaller")
    return Call(mode, prompt, () if picture is None else (picture,), seed, settings, streamed=mode != "image")


def _told(said: str) -> gr.Error:
    """An error as a sentence. Gradio reads its text as HTML."""
    return gr.Error(html.escape(said[:1].upper() + said[1:] + "."), print_exception=False)


def _seed(given: float | None) -> int:
    return any_seed() if given is None else int(given)


def _heard(worker: Worker, job: Job, limits: Limits) -> Iterator[Event | Drawn | Answer]:
    """What is reported of a job, and its result. Whoever stops asking frees its place."""
    told: queue.Queue[Event | None] = queue.Queue()
    until = time.monotonic() + limits.max_seconds
    tickets: Sequence[Any] = ()
    try:
        tickets = worker.submit([job], told.put)
        (ticket,) = tickets
        ticket.future.add_done_callback(lambda future: told.put(None))
        while (event := told.get(timeout=max(until - time.monotonic(), 0))) is not None:
            yield event
        yield ticket.future.result()
    except Refused as refused:
        raise _told(refused.message) from refused
    except (queue.Empty, Abandoned) as error:
        raise _told(f"this was not done within {limits.max_seconds:g} s; try again later") from error
    finally:
        worker.leave(tickets)


def _tag(picture: Image.Image, prompt: str) -> str:
    """The picture in the page itself, so that no file is left behind."""
    return f'<img alt="{html.escape(prompt[:200], quote=True)}" src="data:image/png;base64,{encoded(picture, "png")}">'


def _shown(history: Sequence[str]) -> str:
    return f'<div class="history">{"".join(history)}</div>'
