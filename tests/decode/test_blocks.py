"""Text in blocks is the text of one program."""

import numpy as np
import pytest

from internvlu_jax.decode.blocks import write_in_blocks
from internvlu_jax.decode.model import prefill
from internvlu_jax.utils.seeds import numbered_keys
from tests.helpers.toy_text import PROMPTS, Toy, pad_prompts, texts, toy_params, toy_settings, write


def in_blocks(model, params, max_new_tokens, **options):
    """(what stood after each block, the result)."""
    ids, lengths = pad_prompts(PROMPTS)
    prompt = prefill(model, params, model.embed(params, ids), lengths, capacity=ids.shape[1] + 40)
    blocks = write_in_blocks(model, params, prompt, toy_settings(max_new_tokens, 40, **options))
    so_far = []
    while True:
        try:
            so_far.append(next(blocks))
        except StopIteration as end:
            return so_far, end.value


@pytest.mark.parametrize("limit", [1, 2, 40])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3, "top_p": 0.9, "temperature": 2.0, "top_k": 5}])
def test_blocks_are_the_text_of_one_program(limit, options):
    """Each is the start of what follows; captured states and cache are the same, too."""
    options = {"keys": numbered_keys(0, 4), **options} if options else {}
    model = Toy(capture=(0,))
    ended_early = 0
    for seed in range(4):
        so_far, got = in_blocks(model, toy_params(seed), limit, **options)
        want = write(model, toy_params(seed), PROMPTS, limit, 40, **options)
        assert texts(got) == texts(want) == texts(so_far[-1])
        lengths = np.stack([block.lengths for block in so_far])
        assert (np.diff(lengths, axis=0) >= 0).all() and (lengths[0] == 1).all()
        for block in so_far:
            for mine, whole in zip(texts(block), texts(want), strict=True):
                assert mine == whole[: len(mine)]
        for n, length in enumerate(np.asarray(want.lengths)):
            np.testing.assert_array_equal(got.captured[n, : length - 1], want.captured[n, : length - 1])
        ended_early += limit == 40 and int(np.max(want.lengths)) < 40
        assert int(got.steps) == int(want.steps)
    assert ended_early or limit < 40


def test_blocks_are_one_program():
    model = Toy()
    in_blocks(model, toy_params(0), 40)
    traced = len(model.traced[0])
    in_blocks(model, toy_params(1), 17)
    assert len(model.traced[0]) == traced
