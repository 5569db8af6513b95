"""Queue ``teacher``: tasks that wait for the teacher API. No torch here."""

from __future__ import annotations

import random
import time

from celery import Task, shared_task
from celery.exceptions import Ignore

from factory.config import Settings
from factory.counters import TROUBLE
from factory.errors import RunPaused, TeacherBusy, TeacherPaced
from factory.run.page import Page
from factory.run.pause import pause_run
from factory.steps.write import write_step
from workers.flow.task import LONGEST_TROUBLE, come_back, run_batch, step_of


@shared_task(bind=True, max_retries=None)
def write_pairs(task: Task, run: str, style: str, number: int, failing_since: float | None = None) -> None:
    """Have the teacher write the pairs of one batch.

    ``failing_since``: when the errors began that this task has met at every try (Unix time).
    """

    def write(page: Page, number: int, settings: Settings) -> None:
        write_step(page, number, settings, str(task.app.conf.broker_url))

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
            with step_of(task, run, style) as (page, _):
                pause_run(
                    page.ledger, "deadline", f"no call of a batch succeeded for {trouble / 60:.0f} minutes: {error}"
                )
            raise Ignore from None
        # Twice as long in trouble, twice as long until the next try; the jitter keeps workers apart.
        wait = max(1.0, min(trouble, 60.0)) * random.uniform(0.5, 1.0)
        come_back(task, max(wait, (error.retry_after or 0.0) + random.uniform(0.1, 1.0)), error, since)
    except RunPaused:
        raise Ignore from None  # neither done nor failed: 'svf resume' sends it again


def count_trouble(task: Task, kind: str) -> None:
    """Count that the teacher set a batch back, for ``svf metrics``."""
    task.app.backend.client.hincrby(TROUBLE, kind, 1)
