"""Beam search, and what repetition costs: against searches done by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.decode.beam import search
from internvlu_jax.decode.model import prefill
from tests.helpers.toy_text import (
    PAD,
    PROMPTS,
    STOPS,
    Toy,
    pad_prompts,
    texts,
    toy_log_probs,
    toy_logits,
    toy_params,
    write,
)


def beam_by_hand(params, prompt, num_beams, limit, penalty=1.0):
    """The rules in `decode.beam`'s docstring on lists of (score, text), for one row and without a cache."""
    running, finished = [(0.0, [])], []
    for count in range(1, limit + 1):
        longer = [
            (score + step, [*text, token])
            for score, text in running
            for token, step in enumerate(penalised_by_hand(toy_log_probs(params, prompt + text), text, penalty))
        ]
        longer = sorted(longer, key=lambda item: -item[0])[: 3 * num_beams]
        ends = [text[-1] in STOPS or count == limit for _, text in longer]
        new = [(s / count, text) for (s, text), end in list(zip(longer, ends, strict=True))[:num_beams] if end]
        finished = sorted(finished + new, key=lambda item: -item[0])[:num_beams]
        running = [item for item, end in zip(longer, ends, strict=True) if not end][:num_beams]
        if not running or (len(finished) == num_beams and running[0][0] / count <= finished[-1][0]):
            break
    return finished[0][1]


@pytest.mark.parametrize("num_beams", [2, 4])
def test_beam_search_follows_its_rules(num_beams):
    model, seen = Toy(), set()
    for seed in range(12):
        params = toy_params(seed)
        got = texts(write(model, params, PROMPTS, num_beams=num_beams))
        assert got == [beam_by_hand(params, prompt, num_beams, 6) for prompt in PROMPTS], seed
        seen.update(map(len, got))
    assert len(seen) > 2  # stops and the limit both end texts
    assert len(model.traced[0]) <= 3  # traced once for the prompt and once for the loop


def penalised_by_hand(scores, text, penalty):
    return [(s / penalty if s > 0 else s * penalty) if token in text else s for token, s in enumerate(scores)]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_repetition_costs_what_it_should(num_beams):
    """Greedily on what the output layer gives, in beam search on log probabilities; tokens of the prompt are free."""
    model, changed = Toy(), 0
    for seed in range(8):
        params = toy_params(seed)
        got = texts(write(model, params, PROMPTS, num_beams=num_beams, repetition_penalty=1.7))
        for prompt, text in zip(PROMPTS, got, strict=True):
            if num_beams > 1:
                want = beam_by_hand(params, prompt, num_beams, 6, 1.7)
            else:
                want = []
                while len(want) < 6 and not set(want) & set(STOPS):
                    want.append(int(np.argmax(penalised_by_hand(toy_logits(params, prompt + want), want, 1.7))))
            assert text == want, seed
        changed += got != texts(write(model, params, PROMPTS, num_beams=num_beams))
    assert changed > 2


def test_enough_beams_search_everything():
    """With a beam for every beginning, the best text of all is found: none longer than 3, two stops, 5 tokens."""
    model, params = Toy(), toy_params(3, vocabulary=5)
    free = [token for token in range(5) if token not in STOPS]
    got = texts(write(model, params, [[3, 4], [2]], max_new_tokens=3, num_beams=64))

    def mean(prompt, text):
        return np.mean([toy_log_probs(params, prompt + text[:i])[text[i]] for i in range(len(text))])

    for prompt, text in zip([[3, 4], [2]], got, strict=True):
        everything = [[*head, stop] for n in (0, 1, 2) for head in itertools.product(free, repeat=n) for stop in STOPS]
        everything += [list(head) for head in itertools.product(free, repeat=3)]
        assert text == max(everything, key=lambda t: mean(prompt, t))


def test_one_beam_is_greedy():
    model = Toy()
    search_jitted = jax.jit(search, static_argnums=(0, 8, 9))
    for seed in range(5):
        params = toy_params(seed)
        ids, lengths = pad_prompts(PROMPTS)
        prompt = prefill(model, params, model.embed(params, ids), lengths, capacity=16)
        end = (jnp.asarray(STOPS), jnp.int32(PAD), jnp.int32(6))
        found = search_jitted(model, params, prompt.cache, prompt.lengths, prompt.logits, *end, 8, 1)
        assert texts(found) == texts(write(model, params, PROMPTS))
