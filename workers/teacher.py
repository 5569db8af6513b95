"""Queue ``teacher``: tasks that wait for the teacher API. No torch here."""

from __future__ import annotations

import random
import time
from typing import NoReturn

from celery import Task, shared_task
from celery.exceptions import Ignore

from factory.cluster import pause_run
from factory.config import Settings
from factory.errors import FactoryError, RunPaused, TeacherBusy, TeacherPaced
from factory.ledger import Ledger
from factory.steps import write_step
from workers.step import machine_settings, run_batch, step_of

LONGEST_WAIT = 120.0  # s, and a third of the visibility timeout, beyond which the message would be delivered twice
TROUBLE = "svf:teacher"  # Redis hash: kind of trouble -> count
LONGEST_TROUBLE = 1800.0  # s that a batch meets nothing but errors; then a person must look


@shared_task(bind=True, max_retries=None)
def write_pairs(task: Task, run: str, style: str, number: int, failing_since: float | None = None) -> None:
    """Have the teacher write the pairs of one batch.

    ``failing_since``: when the errors began that this task has met at every try (Unix time).
    """

    def write(ledger: Ledger, style: str, number: int, settings: Settings) -> None:
        write_step(ledger, style, number, settings, str(task.app.conf.broker_url))

    try:
        run_batch(task, run, style, number, write)
    except TeacherPaced as error:
        # Back before those who wait in their threads are through, or the allowance goes unused.
        come_back(task, (error.retry_after or 1.0) * random.uniform(0.3, 0.7), error, None)
    except TeacherBusy as error:
        count_trouble(task, "rate_limited" if error.retry_after else "error")
        since = failing_since or time.time()
        trouble = time.time() - since
        if trouble > LONGEST_TROUBLE:
            with step_of(task, run, style) as (ledger, _):
                pause_run(ledger, "deadline", f"no call of a batch succeeded for {trouble / 60:.0f} minutes: {error}")
            raise Ignore from None
        # Twice as long in trouble, twice as long until the next try; the jitter keeps workers apart.
        wait = max(1.0, min(trouble, 60.0)) * random.uniform(0.5, 1.0)
        come_back(task, max(wait, (error.retry_after or 0.0) + random.uniform(0.1, 1.0)), error, since)
    except RunPaused:
        raise Ignore from None  # neither done nor failed: 'svf resume' sends it again


def count_trouble(task: Task, kind: str) -> None:
    """Count that the teacher set a batch back, for ``svf metrics``."""
    task.app.backend.client.hincrby(TROUBLE, kind, 1)


def come_back(task: Task, wait: float, error: FactoryError, failing_since: float | None) -> NoReturn:
    """Free the slot and try again in ``wait`` seconds."""
    named = {**task.request.kwargs, "failing_since": failing_since}
    task.request.retries = -1  # a wait is no failure: the count is for a store or broker that is away
    raise task.retry(
        kwargs=named, countdown=min(wait, LONGEST_WAIT, machine_settings().visibility_timeout / 3), exc=error
    ) from None
