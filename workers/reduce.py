"""Queue ``reduce``: the end of each style, good or bad."""

from __future__ import annotations

from celery import Signature, Task, shared_task, states
from celery.exceptions import ChordError
from celery.result import AsyncResult
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from factory.config import Settings
from factory.log import log
from factory.run.entries import Ended
from factory.run.ledger import Page
from factory.steps.evaluate import conclude_step, give_up_evaluation
from factory.steps.reduce import reduce_step
from workers.flow.chord import Chord, send_chord
from workers.flow.task import run_guarded, step_of
from workers.gpu import evaluate_part

PASSING = (RedisError, KombuError, ConnectionError, TimeoutError, ChordError)


@shared_task(bind=True)
def reduce_vector(task: Task, results: list[None], run: str, style: str) -> None:
    """Average a style's differences into its vector. ``results`` say only that the header is done."""

    def reduce(page: Page, _: Settings) -> None:
        reduce_step(page)
        if page.ledger.spec.evaluation and not page.result:
            body = check_choice.s(run, style).on_error(report_failure.s(run=run, style=style))
            _send_parts(page, body, checks=False)

    run_guarded(task, run, style, reduce, _end_badly)


@shared_task(bind=True)
def check_choice(task: Task, results: list[None], run: str, style: str) -> None:
    """After the sweep of a style's settings, measure the one that was chosen."""

    def check(page: Page, _: Settings) -> None:
        body = conclude_evaluation.s(run, style).on_error(report_failure.s(run=run, style=style))
        _send_parts(page, body, checks=True)

    run_guarded(task, run, style, check, _end_badly)


@shared_task(bind=True)
def conclude_evaluation(task: Task, results: list[None], run: str, style: str) -> None:
    """Write a style's verdict into its vector."""

    def conclude(page: Page, _: Settings) -> None:
        conclude_step(page)

    run_guarded(task, run, style, conclude, _end_badly)


def _end_badly(page: Page, reason: str) -> None:
    """End a style for ``reason``: with its vector, if there is one, else as failed."""
    give_up_evaluation(page, reason)
    if not page.result:
        page.finish(Ended(state="failed", message=reason))


def _send_parts(page: Page, body: Signature, *, checks: bool) -> None:
    """Send the parts of an evaluation that are still to do, with ``body`` behind them."""
    numbers = page.missing_parts(checks=checks)
    queue = page.ledger.spec.gpu_queue
    header = [evaluate_part.si(page.ledger.run_id, page.name, number).set(queue=queue) for number in numbers]
    chord = Chord("checks", header, body) if checks else Chord("sweep", header, body, before="checks")
    send_chord(page, chord)


def _is_final(failed: AsyncResult) -> bool:
    """Whether a task failed by what it did.

    A broker that goes away between a task's end and its count makes a finished task a failure, and
    then its chord. Both are left to the guard: what is done stands in the ledger, and a task
    that truly fails, fails again.
    """
    return failed.state == states.FAILURE and not isinstance(failed.result, PASSING)


@shared_task(bind=True)
def report_failure(task: Task, task_id: str, *, run: str, style: str) -> None:
    """Write down that a style failed, or that only its evaluation did. Takes the failed task's id alone."""
    with step_of(task, run, style) as (page, _):
        failed = AsyncResult(task_id, app=task.app)
        if not _is_final(failed):
            log.warning("task %s: the guard looks after what it left (%s)", task_id, failed.state)
            return
        if not page.result:
            _end_badly(page, " ".join(str(failed.result).split())[:500])
