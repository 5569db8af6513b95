"""A judge of the answers of an evaluation: its scores beside the style's markers, and which of two it prefers."""

from __future__ import annotations

import contextvars
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol, TypeVar

from factory.errors import TeacherBusy, TeacherPaced, TeacherRefused
from factory.evaluation.figures import JudgedAnswers, Preferences
from factory.evaluation.spec import EvaluationSpec
from factory.log import log
from factory.pairs.styles import Style
from factory.teacher.client import Reply, Teacher
from factory.teacher.judge import (
    Scores,
    Unreadable,
    ask_judge,
    comparison_prompt,
    judge_prompt,
    read_choice,
    read_scores,
)

TRIES = 4  # of an answer by a process that is alone: 7 s
ORDERS = 2  # in which two answers are shown
Heard = TypeVar("Heard")
Given = TypeVar("Given", JudgedAnswers, Preferences)


class Scorer(Protocol):
    """Who judges answers that a target model gave to questions. Both give their figures, and the cost in USD."""

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> tuple[JudgedAnswers, float]:
        """Style and coherence of each answer."""

    def prefer(
        self, questions: Sequence[str], steered: Sequence[str], prompted: Sequence[str]
    ) -> tuple[Preferences, float]:
        """Which of two answers to each question is better in the style."""


@dataclass(frozen=True)
class Silent:
    """No judge, and why."""

    model: str
    why: str

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> tuple[JudgedAnswers, float]:
        """No scores."""
        return JudgedAnswers(model=self.model, failed=self.why), 0.0

    def prefer(
        self, questions: Sequence[str], steered: Sequence[str], prompted: Sequence[str]
    ) -> tuple[Preferences, float]:
        """No preference."""
        return Preferences(model=self.model, failed=self.why), 0.0


def count_judged(spec: EvaluationSpec) -> int:
    """How many answers of one vector's evaluation a judge scores."""
    return sum(len(spec.questions_of(part)) for part in spec.parts)


def count_compared(spec: EvaluationSpec) -> int:
    """How often a judge compares two answers in one vector's evaluation: those to a question, in both orders."""
    return ORDERS * len(spec.questions_of("steered"))


@dataclass
class AnswerJudge:
    """A judge at the teacher's endpoint, for answers in one style.

    ``may_go_on`` is asked before each call and raises to stop. One that refuses is ``given_up``, with the
    reason: the markers do without it. So is one without a deadline, asked by a process that is
    alone, at the first part for which it is not there; else TeacherBusy is raised. Replies are kept, so that a part
    that is done again pays nothing twice.
    """

    judge: Teacher
    style: Style
    max_concurrent: int
    may_go_on: Callable[[], None] = lambda: None
    given_up: str | None = None

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> tuple[JudgedAnswers, float]:
        """Scores of the answers, each seen alone. An empty one is not shown and has none."""
        return self._unless_given_up(lambda: self._score(questions, answers), JudgedAnswers)

    def prefer(
        self, questions: Sequence[str], steered: Sequence[str], prompted: Sequence[str]
    ) -> tuple[Preferences, float]:
        """Which of two answers to each question is better, shown without their origin in both orders.

        Equal answers are not shown, nor is an empty one: it loses against one that is not.
        """
        return self._unless_given_up(lambda: self._prefer(questions, steered, prompted), Preferences)

    def _unless_given_up(self, hear: Callable[[], tuple[Given, float]], kind: type[Given]) -> tuple[Given, float]:
        if self.given_up is None:
            try:
                return hear()
            except TeacherRefused as error:
                self.given_up = str(error)
            except TeacherBusy as error:
                if math.isfinite(self.judge.deadline):
                    raise
                self.given_up = str(error)
            log.error("the judge is given up: %s", self.given_up)
        return kind(model=self.judge.spec.model, failed=self.given_up), 0.0

    def _score(self, questions: Sequence[str], answers: Sequence[str]) -> tuple[JudgedAnswers, float]:
        prompts = [
            judge_prompt(self.style, question, answer) if answer.strip() else None
            for question, answer in zip(questions, answers, strict=True)
        ]
        heard, cost = self._hear(prompts, read_scores)
        scores = [one for one in heard if isinstance(one, Scores)]
        means = JudgedAnswers(
            model=self.judge.spec.model,
            style=round(fmean(score.style for score in scores), 2) if scores else None,
            coherence=round(fmean(score.coherence for score in scores), 2) if scores else None,
            n=len(scores),
            unreadable=len(heard) - len(scores),
            styles=tuple(one.style if isinstance(one, Scores) else None for one in heard),
        )
        return means, cost

    def _prefer(
        self, questions: Sequence[str], steered: Sequence[str], prompted: Sequence[str]
    ) -> tuple[Preferences, float]:
        from factory.evaluation.bootstrap import gain_interval  # needs numpy, which a teacher's machine may lack

        rows = list(zip(questions, steered, prompted, strict=True))
        shown = [
            comparison_prompt(self.style, question, *order) if _known(after, before) is None else None
            for question, after, before in rows
            for order in ((after, before), (before, after))
        ]
        heard, cost = self._hear(shown, read_choice)  # [n_questions * ORDERS]
        replies = zip(heard[::ORDERS], heard[1::ORDERS], strict=True)
        said = [_known(after, before) or weigh(*reply) for (_, after, before), reply in zip(rows, replies, strict=True)]
        counts = {kind: said.count(kind) for kind in ("won", "lost", "tied", "split")}
        n = sum(counts.values())
        interval = gain_interval(counts["won"], counts["lost"], n) if n else None
        model = self.judge.spec.model
        return Preferences(model=model, n=n, interval=interval, unreadable=len(said) - n, **counts), cost

    def _hear(
        self, prompts: Sequence[str | None], read: Callable[[str], Heard | None]
    ) -> tuple[list[Heard | Unreadable], float]:
        """What the judge says to each prompt (None: nothing to be asked), and what the calls cost in USD."""

        def ask(prompt: str | None) -> tuple[Heard | Unreadable, Reply | None]:
            self.may_go_on()
            return _patiently(self.judge, prompt, read) if prompt else (Unreadable(unreadable="empty"), None)

        with ThreadPoolExecutor(self.max_concurrent, thread_name_prefix="judge-call") as pool:
            calls = [pool.submit(contextvars.copy_context().run, ask, prompt) for prompt in prompts]
        verdicts = [call.result() for call in calls]
        payer = self.judge.payer
        paid = [reply.cost_usd or 0.0 for _, reply in verdicts if reply and reply.paid_by == payer]
        return [said for said, _ in verdicts], sum(paid)


def weigh(first: str | Unreadable, swapped: str | Unreadable) -> str:
    """What two replies about a pair say of the steered answer, which is A in the ``first`` and B in the ``swapped``."""
    if isinstance(first, Unreadable) or isinstance(swapped, Unreadable):
        return "unreadable"
    outcomes = {("A", "B"): "won", ("B", "A"): "lost", ("A", "A"): "split", ("B", "B"): "split"}
    return outcomes.get((first, swapped), "tied")


def _known(steered: str, prompted: str) -> str | None:
    """What needs no judge: two equal answers are tied, and an empty one loses; else None."""
    if steered.strip() == prompted.strip():
        return "tied"
    if steered.strip() and prompted.strip():
        return None
    return "won" if steered.strip() else "lost"


def _patiently(
    judge: Teacher, prompt: str, read: Callable[[str], Heard | None]
) -> tuple[Heard | Unreadable, Reply | None]:
    """Ask until there is an answer, or no time for another try.

    A process that is alone has all the time: it tries :data:`TRIES` times, and never again where a
    call may have been paid, as nobody counts its money.
    """
    alone, tries = math.isinf(judge.deadline), 0
    while True:
        try:
            return ask_judge(judge, prompt, read)
        except TeacherBusy as error:
            tries += not isinstance(error, TeacherPaced)
            if alone and (error.may_be_paid or tries >= TRIES):
                raise
            wait = max(float(2 ** max(0, tries - 1)) if alone else 1.0, error.retry_after or 0.0)
            if time.monotonic() + wait > judge.deadline:
                raise
            time.sleep(wait)
