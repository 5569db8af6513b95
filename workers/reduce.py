"""Queue ``reduce``: the end of each style, good or bad."""

from __future__ import annotations

from celery import Signature, Task, shared_task, states
from celery.exceptions import ChordError, Reject
from celery.result import AsyncResult
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from factory.config import Settings
from factory.log import log
from factory.run.entries import Ended
from factory.run.listing import RESULT_FILE, chord_file
from factory.run.page import Page
from factory.steps.evaluate import conclude_step, give_up_evaluation
from factory.steps.learn import give_up_learning, missing_places, next_round, take_round_step
from factory.steps.reduce import reduce_step
from workers.flow.chord import Chord, retire_chord, send_chord
from workers.flow.order import CHECKS, SWEEP, end_before_round, round_name
from workers.flow.task import run_guarded, step_of
from workers.gpu import evaluate_part, learn_part

# Celery rejects a task whose retry could not be sent, whatever the connection's end raised.
PASSING = (RedisError, KombuError, ConnectionError, TimeoutError, ChordError, Reject)


@shared_task(bind=True)
def reduce_vector(task: Task, results: list[None], run: str, style: str) -> None:
    """Average a style's differences into its mean. ``results`` say only that the header is done."""

    def reduce(page: Page, _: Settings) -> None:
        reduce_step(page)
        _go_on(page)

    run_guarded(task, run, style, reduce, _end_badly)


@shared_task(bind=True)
def take_round(task: Task, results: list[None], run: str, style: str, number: int) -> None:
    """Take the step of a round of learning, whose parts are read."""

    def take(page: Page, _: Settings) -> None:
        take_round_step(page, number)
        _go_on(page)

    run_guarded(task, run, style, take, _end_badly, number=number)


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
    if next_round(page) is None:
        give_up_evaluation(page, reason)
    else:
        give_up_learning(page, reason)
    if not page.result:
        page.finish(Ended(state="failed", message=reason))


def _go_on(page: Page) -> None:
    """Send what comes after a style's mean: the rounds of learning, one by one, then its evaluation."""
    if page.result:
        return
    run, style = page.ledger.run_id, page.name
    number = next_round(page)
    if number is not None:
        _send_round(page, number)
    elif page.ledger.spec.evaluation:
        body = check_choice.s(run, style).on_error(report_failure.s(run=run, style=style))
        _send_parts(page, body, checks=False)


def _send_round(page: Page, number: int) -> None:
    """Send the parts of a round that are not read yet, with its step behind them; the round before is forgotten.

    A body may run twice, and must not send a round that is under way: the guard looks after what is written down.
    """
    run, style, queue = page.ledger.run_id, page.name, page.ledger.spec.gpu_queue
    if page.chord(round_name(number)) is None:
        header = [learn_part.si(run, style, place).set(queue=queue) for place in missing_places(page, number)]
        body = take_round.s(run, style, number).on_error(report_failure.s(run=run, style=style))
        send_chord(page, Chord(round_name(number), header, body, end_before_round(page, number + 1)))
    if number:
        retire_chord(page, round_name(number - 1))


def _send_parts(page: Page, body: Signature, *, checks: bool) -> None:
    """Send the parts of an evaluation that are still to do, with ``body`` behind them."""
    numbers = page.missing_parts(checks=checks)
    queue = page.ledger.spec.gpu_queue
    header = [evaluate_part.si(page.ledger.run_id, page.name, number).set(queue=queue) for number in numbers]
    if checks:
        send_chord(page, Chord(CHECKS, header, body, (RESULT_FILE,)))
    else:
        send_chord(page, Chord(SWEEP, header, body, (chord_file(CHECKS),)))


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
