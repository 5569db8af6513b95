"""Queue ``reduce``: the end of each style, good or bad."""

from __future__ import annotations

from celery import Task, shared_task
from celery.result import AsyncResult

from factory.steps import reduce_step
from workers.step import step_of


@shared_task(bind=True)
def reduce_vector(task: Task, results: list[None], run: str, style: str) -> None:
    """Average a style's differences into its vector. ``results`` say only that the header is done."""
    with step_of(task, run, style) as (ledger, _):
        reduce_step(ledger, style)


@shared_task(bind=True)
def report_failure(task: Task, task_id: str, *, run: str, style: str) -> None:
    """Write down that a style ended without a vector. Takes the failed task's id alone."""
    with step_of(task, run, style) as (ledger, _):
        if not ledger.result(style):
            reason = " ".join(str(AsyncResult(task_id, app=task.app).result).split())[:500]
            ledger.finish(style, {"state": "failed", "message": reason})
