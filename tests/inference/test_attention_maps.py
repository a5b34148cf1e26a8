"""Where the head looks: against what its attention is given while the pipeline draws, in float64."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from internvlu_jax import InternVLUPipeline
from internvlu_jax.inference import drawing, programs
from internvlu_jax.inference.attention_maps import attention_maps
from internvlu_jax.models import mmdit

PAGE = Path(__file__).parents[2] / "internvlu_jax/inference/README.md"
PROMPT = "a large green star"


@pytest.fixture(scope="module")
def pipe():
    return InternVLUPipeline.from_pretrained()


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_shares_are_those_of_the_pipeline(pipe, monkeypatch):
    """What attention is given, layer by layer, for the condition that the pipeline draws from."""
    latents = np.random.default_rng(0).normal(size=(2, 8, 8, 8)).astype(np.float32)
    maps = attention_maps(pipe, PROMPT, latents, [500.0, 900.0])
    context = len(maps.tokens)
    assert maps.shares.shape == (2, 6, 6, 8, 8, context)
    given, real = [], mmdit.attention

    def keep(*arrays):
        given.append([np.asarray(array, np.float64) for array in arrays])
        return np.asarray(arrays[0])

    def attention(q, k, v, *, key_lengths, **options):
        kept = jax.pure_callback(keep, jax.ShapeDtypeStruct(q.shape, q.dtype), q, k, key_lengths)
        return real(kept, k, v, key_lengths=key_lengths, **options)

    monkeypatch.setattr(mmdit, "attention", attention)
    pictures = pipe.encode_prompt(PROMPT).pictures
    (group,) = drawing.groups(pipe.on, pipe.model, pipe.params, pictures, (8, 8))
    condition = jax.tree.map(lambda rows: rows[:, group.branches.index("cond")], group.condition)
    moment = pipe.on.put((latents[1:], np.float32([900])))
    jax.block_until_ready(jax.jit(pipe.model.velocity)(pipe.params, *moment, condition))
    assert len(given) == 6
    for layer, (q, k, lengths) in enumerate(given):
        seen = int(lengths[0])
        assert seen == 64 + context
        scores = np.einsum("inh,snh->nis", q[0, :64], k[0, :seen]) / np.sqrt(q.shape[-1])
        want = softmax(scores)[..., 64:].reshape(6, 8, 8, context)
        np.testing.assert_allclose(maps.shares[1, layer], want, atol=1e-5)


def test_tokens_are_the_prompt(pipe):
    maps = attention_maps(pipe, PROMPT, np.zeros((1, 8, 8, 8), np.float32), [1000.0])
    assert "user\nA large green star." in "".join(maps.tokens)  # as the processor writes it
    assert maps.tokens[0] == "<|im_start|>" and maps.tokens[-1] == "<img>"
    with pytest.raises(ValueError, match="2 timesteps for 1 latents"):
        attention_maps(pipe, PROMPT, np.zeros((1, 8, 8, 8), np.float32), [1000.0, 500.0])


def test_readme_looks_at_what_the_head_was_given(pipe, monkeypatch):
    """Its example, in few steps: latents and noise levels are together as they were while the picture was drawn."""
    section = PAGE.read_text(encoding="utf-8").partition("## Where the head looks\n")[2]
    (example,) = re.findall("```python\n(.*?)```", section, re.DOTALL)
    given, real = [], programs.draw_step

    def draw_step(model, params, state, step, *rest):
        given.append((float(step.timestep), np.asarray(state.x[0])))
        return real(model, params, state, step, *rest)

    def few_steps(prompt, **options):
        return InternVLUPipeline.__call__(pipe, prompt, num_inference_steps=3, output_type="latent", **options)

    looked_at = {}

    def maps(_, prompt, latents, timesteps):
        looked_at.update(latents=latents, timesteps=timesteps)
        return attention_maps(pipe, prompt, latents, timesteps)

    monkeypatch.setattr(programs, "draw_step", draw_step)
    monkeypatch.setattr("internvlu_jax.inference.attention_maps.attention_maps", maps)
    exec(example, {"np": np, "pipe": few_steps})
    times, latents = zip(*given[1:], strict=True)  # the first is noise
    assert list(looked_at["timesteps"]) == list(times)
    np.testing.assert_array_equal(looked_at["latents"], np.stack(latents))
