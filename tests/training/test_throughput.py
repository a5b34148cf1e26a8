"""How a run says how fast it goes."""

from internvlu_jax.training import throughput
from internvlu_jax.training.throughput import Waiting


def test_the_share_of_waiting_counts_from_the_first_wait(monkeypatch):
    clock = iter([10.0, 12.0, 18.0, 19.0, 20.0])  # waits of two seconds and one, asked after ten
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    waiting = Waiting()
    assert waiting.share() == 0.0
    for _ in range(2):
        with waiting:
            pass
    assert waiting.words() == "30% waiting for data"
