"""The server's figures in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Figures:
    """Counters of one server; ``vector`` is a vector's name, ``none``, or ``several``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "svf_serve_requests", "Requests by HTTP status", ["vector", "status"], registry=registry
        )
        self.prompt_tokens = Counter("svf_serve_prompt_tokens", "Tokens of prompts", ["vector"], registry=registry)
        self.answer_tokens = Counter("svf_serve_answer_tokens", "Tokens of answers", ["vector"], registry=registry)
        self.first_token = Histogram(
            "svf_serve_first_token_seconds",
            "Seconds to the first token",
            ["vector"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batch = Gauge("svf_serve_batch_rows", "Answers that are made now", registry=registry)
        self.queue = Gauge("svf_serve_queue_requests", "Requests that wait", registry=registry)

    def count_refused(self, status: int) -> None:
        """Count a request that was refused before anything of it was read."""
        self.requests.labels("none", str(status)).inc()
