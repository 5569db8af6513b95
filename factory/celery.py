"""The Celery app: ``celery -A factory worker -Q teacher|gpu|reduce``.

Settings are in celeryconfig.py, tasks in ``workers/``. Here a worker gets what fits its queues:
how many tasks at a time, and log lines that say which run and style they are about. Both are taken
from where the factory lies: the folder where somebody starts a worker decides nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery, bootsteps
from celery.loaders.app import AppLoader
from celery.signals import before_task_publish, celeryd_init, setup_logging

from factory.log import start_logging
from factory.queues import CONCURRENCY

HOME = Path(__file__).parents[1]  # where factory/ and workers/ lie side by side


def leave_current_folder() -> None:
    """Import nothing from the current folder, which ``celery -A`` puts first, unless the factory lies there."""
    here = Path.cwd()
    if here != HOME:
        sys.path[:] = [folder for folder in sys.path if Path(folder or here) != here]


class Loader(AppLoader):
    """Celery's loader, without its look into the current folder."""

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> Any:
        """Import a module as Python does."""
        return self.import_module(module, package)


leave_current_folder()
TASKS = ["workers.teacher", "workers.gpu", "workers.reduce", "workers.flow.guard", "workers.flow.shared_store"]
app = Celery("factory", loader=Loader, include=TASKS)
app.config_from_object("factory.celeryconfig")


class Departure(bootsteps.StartStopStep):
    """Ends a worker that is stopping, at the latest when its tasks are handed to others.

    A broker that went away made kombu raise while it closed a connection (1 of 100 runs of the
    chaos suite): such a worker takes no more work, and never ended by itself either.
    """

    def close(self, worker: Any) -> None:
        """The worker begins to stop."""
        timer = threading.Timer(app.conf.visibility_timeout, os._exit, (1,))
        timer.daemon = True
        timer.start()


app.steps["worker"].add(Departure)


@celeryd_init.connect
def fit_to_queues(conf: Any, options: Mapping[str, object], **_: Any) -> None:
    """Without ``-c``, take as many tasks at a time as the narrowest of the worker's queues bears."""
    queues: Any = options.get("queues") or list(CONCURRENCY)
    names = queues.split(",") if isinstance(queues, str) else queues
    unknown = [name for name in names if name not in CONCURRENCY and not name.startswith("gpu.")]
    if unknown:
        sys.exit(f"factory: no queue {', '.join(unknown)}: there are {', '.join(CONCURRENCY)} and gpu.<model>")
    conf.worker_concurrency = min(CONCURRENCY.get(name.split(".")[0], 1) for name in names)
    chosen = options.get("concurrency") or conf.worker_concurrency
    crowded = int(str(chosen)) > 1 or bool(options.get("autoscale"))
    if crowded and any(name.split(".")[0] == "gpu" for name in names):
        sys.exit("factory: a worker's one target model does one task at a time: leave -c out, and start more workers")
    how = "chosen by -c" if options.get("concurrency") else "fits the queues; -c changes it"
    # Logging is not set up yet, and a person should see it whatever the log level.
    print(f"factory: queues {','.join(names)}: {chosen} at a time ({how}), prefetch 1", file=sys.stderr)


@before_task_publish.connect
def stamp(headers: dict[str, object], **_: Any) -> None:
    """Write into each message when it was sent, so that a queue's age can be told; arguments stay out of events."""
    headers.setdefault("sent_at", time.time())


@setup_logging.connect
def use_our_log(loglevel: int = logging.WARNING, **_: Any) -> None:
    """One line per event, on the terminal and in FACTORY_LOG."""
    start_logging(loglevel)
