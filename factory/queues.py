"""The queues: their names, how many tasks a worker of each takes at a time, and the broker they lie in by default."""

from __future__ import annotations

import re

# Calls to the teacher wait for answers, a target model does one thing at a time, and a reduction reads files.
CONCURRENCY = {"teacher": 32, "gpu": 1, "reduce": 2}
QUEUES = tuple(CONCURRENCY)
DEFAULT_BROKER = "redis://127.0.0.1:6379/0"


def model_queue(model: str) -> str:
    """The queue of a target model's own workers: ``gpu.`` and its name as far as a queue's name can hold it."""
    return "gpu." + re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[-60:]
