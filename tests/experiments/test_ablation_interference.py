"""Interference of two losses: by hand, on gradients that are made up."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.ablations import interference as module
from experiments.ablations.interference import LOOKS, curves, endpoints, interference, looks, told
from experiments.ablations.together import Member
from internvlu_jax.training.config import OptimizerConfig
from internvlu_jax.training.step import TrainState

MEMBERS = (Member(3), Member(4, 1e-3))
STEP = SimpleNamespace(
    objective=SimpleNamespace(weights={"text": 1.0, "flow": 5.0}), optimizer=OptimizerConfig(), steps=10
)


STATES = TrainState(np.full(2, 4), {}, {}, None, None)


@pytest.fixture
def made_up(monkeypatch):
    """Gradients [member, layer, entries] by (loss, batch); others, which are not shared, would spoil every cosine.

    Each batch has to have the noise of its own step.
    """
    rng = np.random.default_rng(0)
    vectors = {(term, n): rng.normal(size=(2, 3, 7)) for term in ("text", "flow") for n in (4, 5)}

    def gradients(step, states, batches, knobs):
        (term,) = [name for name, weight in knobs.weights.items() if np.all(weight == 1)]
        assert all(np.all(weight == 0) for name, weight in knobs.weights.items() if name != term)
        np.testing.assert_array_equal(states.step, [batches] * 2)
        vector = vectors[term, batches]
        layers = {"a": {"kernel": vector[..., :4].reshape(2, 3, 2, 2)}, "b": {"scale": vector[..., 4:]}}
        rest = rng.normal(size=(2, 5)) * 1e3
        return SimpleNamespace(of={"vlm": {"llm": {"layers": layers, "norm": rest}}, "head": {"x": rest}})

    monkeypatch.setattr(module, "gradients_together", gradients)
    return vectors


def cosine(a, b) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_means_over_layers_and_pairs_of_batches(made_up):
    both = interference(STEP, STATES, lambda number: number, 4, MEMBERS)
    for member, one in enumerate(both):
        text, flow = ([made_up[term, n][member] for n in (4, 5)] for term in ("text", "flow"))
        each = [np.mean([cosine(t[layer], f[layer]) for t in text for f in flow]) for layer in range(3)]
        noise = [(cosine(text[0][k], text[1][k]) + cosine(flow[0][k], flow[1][k])) / 2 for k in range(3)]
        ratios = [
            np.linalg.norm(f[k]) / np.linalg.norm(t[k]) for t, f in zip(text, flow, strict=True) for k in range(3)
        ]
        assert one["interference_cosine"] == pytest.approx(np.mean(each))
        assert one["layers"]["cosine"] == pytest.approx(each) and one["layers"]["noise"] == pytest.approx(noise)
        assert one["interference_noise"] == pytest.approx(np.mean(noise))
        assert one["interference_norms"] == pytest.approx(np.exp(np.mean(np.log(ratios))))


def test_checkpoints_are_even_and_the_last_is_the_end(made_up, tmp_path):
    path = tmp_path / "interference.jsonl"
    when = looks(STEP, lambda number: 4 + number % 2, 20, MEMBERS, path)
    assert sorted(when) == [4, 8, 12, 16, 20] and len(when) == LOOKS
    for number in (4, 20, 20):  # a run that was stopped before it saved comes by again
        when[number](STATES)
    assert len(path.read_text().splitlines()) == 3
    own = told(path, 1)
    assert sorted(own) == [4, 20]
    assert endpoints(own) == {name: own[20][name] for name in module.NAMES}
    assert curves(own, 10.0)["interference_noise"] == tuple((10.0 * n, own[n]["interference_noise"]) for n in (4, 20))


def test_nothing_measured_gives_nothing(tmp_path):
    assert endpoints(told(tmp_path / "none.jsonl", 0)) == {} == curves({}, 1.0)
    assert sorted(looks(STEP, int, 2, MEMBERS, tmp_path / "none.jsonl")) == [1, 2]
