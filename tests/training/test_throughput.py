"""How a run says how fast it goes."""

from types import SimpleNamespace

import numpy as np

from internvlu_jax.training import loop, throughput
from internvlu_jax.training.throughput import Waiting
from tests.helpers.training import TINY, with_data


def test_the_share_of_waiting_counts_from_the_first_wait(monkeypatch):
    clock = iter([10.0, 12.0, 18.0, 19.0, 20.0])  # waits of two seconds and one, asked after ten
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    waiting = Waiting()
    assert waiting.share() == 0.0
    for _ in range(2):
        with waiting:
            pass
    assert waiting.words() == "30% waiting for data"


def test_the_speed_is_that_of_all_processes(tmp_path, monkeypatch):
    """Each loads 6 of 24 rows: of 8 processes, say, of which two share each row and its work."""
    monkeypatch.setattr(throughput.time, "perf_counter", iter(range(10)).__next__)
    monkeypatch.setattr(loop, "Operations", lambda *_: SimpleNamespace(of=lambda batches: 5.0 * len(batches)))
    monkeypatch.setattr(throughput, "bfloat16_peak", lambda: 25.0)
    monkeypatch.setattr("jax.process_count", lambda: 8)
    executor = SimpleNamespace(device_count=4, rows=lambda rows: range(rows // 4), replica=lambda values: values)
    model, step = SimpleNamespace(shapes={}), SimpleNamespace(init=lambda shapes: shapes)
    run = loop._Run(with_data(TINY, batch_size=24), tmp_path, model, step, executor, None, None, None, True)
    said, batch = [], SimpleNamespace(picture=SimpleNamespace(weight=np.zeros(6)))
    records = SimpleNamespace(write=lambda step, values, speed: said.append(speed))
    for number in range(3):  # two seconds each, of two micro-batches
        run._record(records, loop._Ended(number, {"loss": 1.0, "finite": True}, (batch, batch), {}))
    assert said[-1].startswith("24 images/s") and said[-1].endswith("20% of peak")
