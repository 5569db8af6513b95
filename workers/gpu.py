"""Queue ``gpu``: tasks that run the target model. It is loaded with the first and kept."""

from __future__ import annotations

import time

from celery import Task, shared_task

from factory.config import Settings
from factory.errors import StyleEnded, TeacherBusy
from factory.log import log
from factory.run.page import Page
from factory.steps.evaluate import evaluate_step, give_up_evaluation
from factory.steps.extract import extract_step
from factory.steps.learn import give_up_learning, learn_part_step
from workers.flow.task import LONGEST_TROUBLE, come_back, run_batch, run_guarded


@shared_task(bind=True)
def extract_batch(task: Task, run: str, style: str, number: int) -> None:
    """Read one batch of pairs and keep its differences."""
    run_batch(task, run, style, number, extract_step)


@shared_task(bind=True)
def learn_part(task: Task, run: str, style: str, place: int) -> None:
    """Read one part of a round of learning and keep its gradient. ``place``: 1000 x round + part."""

    def learn(page: Page, settings: Settings) -> None:
        learn_part_step(page, place, settings)

    run_guarded(task, run, style, learn, give_up_learning, number=place)


@shared_task(bind=True, max_retries=None)
def evaluate_part(task: Task, run: str, style: str, number: int, failing_since: float | None = None) -> None:
    """Do one part of the evaluation of a style's vector.

    ``failing_since``: since when the run's judge, if it has one, keeps this part waiting (Unix time).
    """
    since = failing_since or time.time()

    def examine(page: Page, settings: Settings) -> None:
        patient = time.time() - since < LONGEST_TROUBLE
        evaluate_step(page, number, settings, str(task.app.conf.broker_url), patient=patient)

    try:
        run_guarded(task, run, style, examine, give_up_evaluation, number=number)
    except StyleEnded:
        log.info("part %d: its style ended while its judge was asked", number)
    except TeacherBusy as error:
        come_back(task, max(1.0, error.retry_after or 0.0), error, since)
