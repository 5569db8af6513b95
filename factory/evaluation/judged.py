"""Scores of a judge for the answers of an evaluation, beside the style's markers."""

from __future__ import annotations

import contextvars
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean

from factory.errors import TeacherBusy, TeacherPaced, TeacherRefused
from factory.evaluation.figures import JudgeScores
from factory.evaluation.spec import EvaluationSpec
from factory.log import log
from factory.pairs.styles import Style
from factory.teacher.client import Reply, Teacher
from factory.teacher.judge import Scores, Unreadable, judge_answer

TRIES = 4  # of an answer by a process that is alone: 7 s
# Scores the answers that a target model gave to questions: the figures, and what they cost in USD.
Scorer = Callable[[Sequence[str], Sequence[str]], tuple[JudgeScores, float]]


def judge_answers(
    judge: Teacher,
    style: Style,
    questions: Sequence[str],
    answers: Sequence[str],
    *,
    max_concurrent: int,
    may_go_on: Callable[[], None] = lambda: None,
) -> tuple[JudgeScores, float]:
    """Mean scores of the answers of a target model, and what their calls cost in USD.

    An empty answer is not shown to the
    judge and has no score. Calls go on until the judge's ``deadline``; replies are kept. ``may_go_on``
    is asked before each answer and raises to stop.

    Raises:
        TeacherBusy, TeacherRefused: as for the teacher.
    """

    def ask(question: str, answer: str) -> tuple[Scores | Unreadable, Reply | None]:
        may_go_on()
        return _patiently(judge, style, question, answer) if answer.strip() else (Unreadable(unreadable="empty"), None)

    with ThreadPoolExecutor(max_concurrent, thread_name_prefix="judge-call") as pool:
        calls = [
            pool.submit(contextvars.copy_context().run, ask, question, answer)
            for question, answer in zip(questions, answers, strict=True)
        ]
    verdicts = [call.result() for call in calls]
    scores = [verdict for verdict, _ in verdicts if isinstance(verdict, Scores)]
    paid = [reply.cost_usd or 0.0 for _, reply in verdicts if reply and reply.paid_by == judge.payer]
    means = JudgeScores(
        model=judge.spec.model,
        style=round(fmean(score.style for score in scores), 2) if scores else None,
        coherence=round(fmean(score.coherence for score in scores), 2) if scores else None,
        n=len(scores),
        unreadable=len(verdicts) - len(scores),
    )
    return means, sum(paid)


def count_judged(spec: EvaluationSpec) -> int:
    """How many answers of one vector's evaluation a judge scores."""
    return sum(len(spec.questions_of(part)) for part in spec.parts)


def make_scorer(
    judge: Teacher, style: Style, *, max_concurrent: int, may_go_on: Callable[[], None] = lambda: None
) -> Scorer:
    """Scores by a judge. One that refuses leaves ``failed`` in the place of scores: the markers do without it.

    One without a deadline, who is asked by a process that is alone, is given up at the first part
    for which it is not there.
    """
    failed: list[str] = []

    def score(questions: Sequence[str], answers: Sequence[str]) -> tuple[JudgeScores, float]:
        if not failed:
            try:
                return judge_answers(
                    judge, style, questions, answers, max_concurrent=max_concurrent, may_go_on=may_go_on
                )
            except TeacherRefused as error:
                failed.append(str(error))
            except TeacherBusy as error:
                if math.isfinite(judge.deadline):
                    raise
                failed.append(str(error))
            log.error("the judge is given up: %s", failed[0])
        return JudgeScores(model=judge.spec.model, failed=failed[0]), 0.0

    return score


def _patiently(judge: Teacher, style: Style, question: str, answer: str) -> tuple[Scores | Unreadable, Reply | None]:
    """Ask until there is an answer, or no time for another try.

    A process that is alone has all the time: it tries :data:`TRIES` times, and never again where a
    call may have been paid, as nobody counts its money.
    """
    alone, tries = math.isinf(judge.deadline), 0
    while True:
        try:
            return judge_answer(judge, style, question, answer)
        except TeacherBusy as error:
            tries += not isinstance(error, TeacherPaced)
            if alone and (error.may_be_paid or tries >= TRIES):
                raise
            wait = max(float(2 ** max(0, tries - 1)) if alone else 1.0, error.retry_after or 0.0)
            if time.monotonic() + wait > judge.deadline:
                raise
            time.sleep(wait)
