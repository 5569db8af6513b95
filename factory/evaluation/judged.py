"""Scores of a judge for the answers of an evaluation, beside the style's markers."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from statistics import fmean
from typing import Any

from factory.errors import TeacherBusy, TeacherRefused
from factory.evaluation.spec import EvaluationSpec
from factory.pairs.styles import Style
from factory.teacher.client import Reply, Teacher
from factory.teacher.judge import judge_answer

# Scores the answers that a target model gave to questions: the figures, and what they cost in USD.
Scorer = Callable[[Sequence[str], Sequence[str]], tuple[dict[str, Any], float]]


def judge_answers(
    judge: Teacher, style: Style, questions: Sequence[str], answers: Sequence[str], *, max_concurrent: int
) -> tuple[dict[str, Any], float]:
    """Mean scores of the answers of a target model, from 0 to 100, and what their calls cost in USD.

    ``n``: answers with scores; ``unreadable``: answers without. An empty answer is not shown to the
    judge and has no score. Calls go on until the judge's ``deadline``; replies are kept.

    Raises:
        TeacherBusy, TeacherRefused: as for the teacher.
    """

    def ask(question: str, answer: str) -> tuple[dict[str, Any], Reply | None]:
        return _patiently(judge, style, question, answer) if answer.strip() else ({"unreadable": "empty"}, None)

    with ThreadPoolExecutor(max_concurrent, thread_name_prefix="judge-call") as pool:
        calls = [
            pool.submit(contextvars.copy_context().run, ask, question, answer)
            for question, answer in zip(questions, answers, strict=True)
        ]
    verdicts = [call.result() for call in calls]
    scores = [verdict for verdict, _ in verdicts if "unreadable" not in verdict]
    paid = [reply.cost_usd or 0.0 for _, reply in verdicts if reply and reply.paid_by == asdict(judge.payer)]
    means = {
        name: round(fmean(score[name] for score in scores), 2) if scores else None for name in ("style", "coherence")
    }
    return {"model": judge.spec.model, **means, "n": len(scores), "unreadable": len(verdicts) - len(scores)}, sum(paid)


def count_judged(spec: EvaluationSpec) -> int:
    """How many answers of one vector's evaluation a judge scores."""
    return sum(len(spec.questions_of(part)) for part in spec.parts)


def make_scorer(judge: Teacher, style: Style, *, max_concurrent: int) -> Scorer:
    """Scores by a judge. One that refuses leaves ``failed`` in the place of scores: the markers do without it."""

    def score(questions: Sequence[str], answers: Sequence[str]) -> tuple[dict[str, Any], float]:
        try:
            return judge_answers(judge, style, questions, answers, max_concurrent=max_concurrent)
        except TeacherRefused as error:
            return {"model": judge.spec.model, "failed": str(error)}, 0.0

    return score


def _patiently(judge: Teacher, style: Style, question: str, answer: str) -> tuple[dict[str, Any], Reply | None]:
    """Ask until there is an answer, or no time for another try."""
    while True:
        try:
            return judge_answer(judge, style, question, answer)
        except TeacherBusy as error:
            wait = max(1.0, error.retry_after or 0.0)
            if time.monotonic() + wait > judge.deadline:
                raise
            time.sleep(wait)
