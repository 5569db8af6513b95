"""What every task shares: its run's ledger, its settings, and log lines that say what it is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from celery import Task

from factory.config import Settings, load_settings
from factory.errors import ConfigError
from factory.log import about
from factory.run import Ledger
from factory.store import Store

DEFAULT_STORE = "runs"


@lru_cache(maxsize=1)
def machine_settings() -> Settings:
    """The settings of this worker's machine, read once."""
    return load_settings()


@contextmanager
def step_of(task: Task, run: str, style: str) -> Iterator[tuple[Ledger, Settings]]:
    """The ledger and settings for one task.

    Raises:
        ConfigError: the run is not in this machine's store, or does not make ``style``.
    """
    settings = machine_settings()
    if not all(isinstance(name, str) for name in (run, style)):
        raise ConfigError(f"task arguments should be names, found {run!r} and {style!r}")
    ledger = Ledger(Store(settings.store or DEFAULT_STORE), run)
    ledger.spec.style_run(style)
    with about(run, style, task.request.id or "-"):
        yield ledger, settings
