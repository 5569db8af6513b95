"""The Celery app: ``celery -A factory worker -Q teacher|gpu|reduce``.

Settings are in celeryconfig.py, tasks in ``workers/``. Here a worker gets what fits its queues:
how many tasks at a time, and log lines that say which run and style they are about.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import Celery
from celery.signals import before_task_publish, celeryd_init, setup_logging

from factory.log import log, start_logging

CONCURRENCY = {"teacher": 32, "gpu": 1, "reduce": 2}

app = Celery("factory", include=["workers.teacher", "workers.gpu", "workers.reduce", "workers.guard"])
app.config_from_object("celeryconfig")


@celeryd_init.connect
def fit_to_queues(conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Without ``-c``, take as many tasks at a time as the narrowest of the worker's queues bears."""
    queues = options.get("queues") or list(CONCURRENCY)
    names = queues.split(",") if isinstance(queues, str) else list(queues)
    conf.worker_concurrency = min(CONCURRENCY.get(name, 1) for name in names)
    if not options.get("concurrency"):
        log.info("queues %s: %d tasks at a time on threads", ",".join(names), conf.worker_concurrency)


@before_task_publish.connect
def stamp(headers: dict[str, Any], **_: Any) -> None:
    """Write into each message when it was sent, so that a queue's age can be told; arguments stay out of events."""
    headers.setdefault("sent_at", time.time())


@setup_logging.connect
def use_our_log(loglevel: int = logging.WARNING, **_: Any) -> None:
    """One line an event, on the terminal and in FACTORY_LOG."""
    start_logging(loglevel)
