"""What is counted, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_JOBS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Requests by endpoint and status, jobs that wait, calls of the pipeline by how many jobs each was of."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        name = "internvlu_{}".format
        on: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter(name("requests"), "Requests answered.", ["endpoint", "status"], **on)
        self._seconds = Histogram(
            name("request_seconds"), "From arrival to answer.", ["endpoint"], buckets=_SECONDS, **on
        )
        self._waiting = Gauge(name("jobs_waiting"), "Pictures and answers that wait.", **on)
        self._jobs = Histogram(name("call_jobs"), "Pictures or answers of one call.", buckets=_JOBS, **on)
        self._calls = Histogram(name("call_seconds"), "Calls of the pipeline.", buckets=_SECONDS, **on)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """A request; endpoint is one of those that there are."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def called(self, jobs: int, seconds: float) -> None:
        """A call of the pipeline."""
        self._jobs.observe(jobs)
        self._calls.observe(seconds)

    def watch(self, waiting: Callable[[], float]) -> None:
        """Where the number of those that wait is to be had."""
        self._waiting.set_function(waiting)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
