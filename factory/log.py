"""The factory's log: one line per event, with time, level, run, style and task id.

A library adds no handler; programs call :func:`start_logging`. Lines of every process of a run go
to one file, named by ``FACTORY_LOG``: each is written whole.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

log = logging.getLogger("factory")

FORMAT = "%(asctime)s %(levelname)-7s run=%(run)s style=%(style)s task=%(task)s %(message)s"
_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def about(run: str, style: str = "-", task: str = "-") -> Iterator[None]:
    """Say in every line logged inside which run, style and task it is about."""
    token = _about.set({"run": run, "style": style, "task": task})
    try:
        yield
    finally:
        _about.reset(token)


class _AddContext(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        known = _about.get() or {}
        for name in ("run", "style", "task"):
            setattr(record, name, known.get(name, "-"))
        return True


def start_logging(level: int = logging.WARNING, *, terminal: bool = True) -> None:
    """Write events to the terminal's error stream, and to the file ``FACTORY_LOG`` if it is set.

    The factory's own events are written from INFO on, those of libraries from ``level`` on.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)] if terminal else []
    file = os.environ.get("FACTORY_LOG")
    if file:
        os.makedirs(os.path.dirname(os.path.abspath(file)), exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    root = logging.getLogger()
    root.setLevel(level)
    log.setLevel(min(level, logging.INFO))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT))
        handler.addFilter(_AddContext())
        root.addHandler(handler)
    for noisy in ("httpx", "httpx2", "httpcore2", "transformers", "celery.redirected"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
