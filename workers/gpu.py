"""Queue ``gpu``: tasks that run the target model. It is loaded with the first and kept."""

from __future__ import annotations

from celery import Task, shared_task

from factory.evaluation_steps import evaluate_step
from factory.steps import extract_step
from workers.step import run_batch, step_of


@shared_task(bind=True)
def extract_batch(task: Task, run: str, style: str, number: int) -> None:
    """Read one batch of pairs and keep its differences."""
    run_batch(task, run, style, number, extract_step)


@shared_task(bind=True)
def evaluate_part(task: Task, run: str, style: str, number: int) -> None:
    """Do one part of the evaluation of a style's vector."""
    with step_of(task, run, style) as (ledger, settings):
        evaluate_step(ledger, style, number, settings)
