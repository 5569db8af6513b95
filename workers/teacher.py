"""Queue ``teacher``: tasks that wait for the teacher API. No torch here."""

from __future__ import annotations

from celery import Task, shared_task
from celery.utils.time import get_exponential_backoff_interval

from factory.errors import TeacherBusy
from factory.steps import write_step
from workers.step import run_batch

LONGEST_WAIT = 60  # s; well below the visibility timeout, or the message would be delivered twice
MAX_RETRIES = 30


@shared_task(bind=True, max_retries=MAX_RETRIES)
def write_pairs(task: Task, run: str, style: str, number: int) -> None:
    """Have the teacher write the pairs of one batch."""
    try:
        run_batch(task, run, style, number, write_step)
    except TeacherBusy as error:
        waited = get_exponential_backoff_interval(2, task.request.retries, LONGEST_WAIT, full_jitter=True)
        wait = min(LONGEST_WAIT, max(waited, error.retry_after or 0))
        raise task.retry(countdown=wait, exc=error) from None
