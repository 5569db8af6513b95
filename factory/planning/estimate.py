"""What a run will take before it starts: calls, tokens, money and reading time, without a network.

Low is what answers of the usual length cost, high is every answer at ``max_response_tokens``.
What the store already holds costs nothing. Regenerations of answers that will fail a gate come on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.config import Settings
from factory.evaluation.judged import count_compared, count_judged
from factory.evaluation.spec import EvaluationSpec
from factory.pairs.styles import Style
from factory.planning.learning_time import estimate_learning
from factory.planning.notices import describe_gaps, describe_starter, describe_tasks, merge_repeats
from factory.planning.reading_time import ReadingTime, estimate_reading, tokens_a_pair, usual_lengths
from factory.planning.specify import plan_evaluation, plan_extraction, plan_learning, plan_tasks, plan_teacher
from factory.planning.supply import Supply, asked_questions, find_supply, questions_of, request_style
from factory.store import Store
from factory.teacher.gates import check_answer
from factory.teacher.judge import comparison_prompt, judge_prompt, judge_spec
from factory.teacher.replies import stored_reply
from factory.teacher.request import build_request, request_key
from factory.teacher.spec import TeacherSpec
from factory.teacher.spending import likely_tokens, price_of, price_source
from factory.teacher.writing import ATTEMPTS

USUAL_WORDS = 120  # of an answer; the built-in styles ask for 60 to 90
USUAL_ANSWER = "x" * 6 * USUAL_WORDS
SCORE_TOKENS = 16  # of a judge's reply with two scores
CHOICE_TOKENS = 6  # of one that names the better text


@dataclass(frozen=True)
class StyleEstimate:
    """What one style will take. USD are None where no price is known.

    ``pairs``: in all; ``to_write``: of them by the teacher; ``calls``: to be paid, those of judges
    among them; ``cached_calls``: answered already; ``target_tokens``: about what the target model
    will read for the pairs.
    """

    style: str
    pairs: int
    to_write: int
    calls: int
    cached_calls: int
    input_tokens: int
    output_tokens_low: int
    output_tokens_high: int
    target_tokens: int
    usd_low: float | None
    usd_high: float | None


@dataclass(frozen=True)
class Estimate:
    """What a run will take, and in ``notes`` what a person should know beside the figures.

    ``reading``: seconds of one worker with the target model, without learning and evaluation;
    ``learning``: those of the rounds, None without any.
    """

    teacher_model: str
    requested_model: str
    price_source: str
    minutes_by_rate: float | None
    reading: ReadingTime
    learning: ReadingTime | None
    repeated_questions: dict[str, str]
    asked_questions: dict[str, str]
    notes: list[str]
    styles: list[StyleEstimate]

    @property
    def usd(self) -> tuple[float, float] | None:
        """Low and high of the whole run, or None where a price is not known."""
        pairs = [(style.usd_low, style.usd_high) for style in self.styles]
        if any(low is None for low, _ in pairs):
            return None
        return sum(low or 0.0 for low, _ in pairs), sum(high or 0.0 for _, high in pairs)


@dataclass(frozen=True)
class _Call:
    model: str
    input_tokens: int
    usual: int
    most: int


def estimate_run(settings: Settings, store: Store, output: Path, *, limit: int | None = None) -> Estimate:
    """Estimate the run that these settings would start. Starts, writes and asks nothing.

    Raises:
        ConfigError: as for planning the run, but no key is needed.
    """
    teacher, extraction, learning = plan_teacher(settings), plan_extraction(settings), plan_learning(settings)
    requests = [request_style(settings, name, limit) for name in settings.styles]
    supplies = [find_supply(settings, request, output) for request in requests]
    asked = asked_questions(settings, supplies)
    evaluation = plan_evaluation(settings, asked) if settings.output_config.generate_analysis_reports else None
    tasks = plan_tasks(settings, questions_of(supplies)) if evaluation else ()
    usual = min(teacher.max_response_tokens, likely_tokens(USUAL_ANSWER))
    styles, lessons = [], []
    for request, supply in zip(requests, supplies, strict=True):
        lengths = usual_lengths(supply.pairs, usual)
        read = tokens_a_pair(extraction, *lengths)
        lessons.append((len(supply.pairs) + len(supply.missing), lengths[1]))
        styles.append(_estimate_style(Asking(teacher, store, usual), request.style, supply, evaluation, read))
    calls = sum(style.calls for style in styles)
    rate = settings.calls_per_minute
    n_pairs, tokens = sum(style.pairs for style in styles), sum(style.target_tokens for style in styles)
    return Estimate(
        teacher_model=teacher.model,
        requested_model=teacher.requested_model,
        price_source=price_source(teacher),
        minutes_by_rate=round(calls / rate, 1) if rate and calls else None,
        learning=estimate_learning(settings, extraction, learning, store, lessons) if learning else None,
        reading=estimate_reading(settings, extraction, store, n_pairs=n_pairs, tokens=tokens),
        repeated_questions=merge_repeats(supplies),
        asked_questions=asked,
        notes=[
            *describe_starter(settings, supplies),
            *describe_gaps(settings, supplies, asked),
            *describe_tasks(tasks, len(styles), evaluation),
        ],
        styles=styles,
    )


@dataclass(frozen=True)
class Asking:
    """Who would be asked, and what the store knows already. ``usual``: tokens of an answer."""

    spec: TeacherSpec
    store: Store
    usual: int

    def answers(self, style: Style, question: str) -> tuple[list[_Call], int]:
        """The calls for a question's pair that are still to be paid, and how many need not be."""
        calls: list[_Call] = []
        n_cached = 0
        for prompt, positive in zip(style.prompts_for(question), (True, False), strict=True):
            text, n_known = self._known(style, question, prompt, positive=positive)
            n_cached += n_known
            if text is None and n_known < len(ATTEMPTS):
                calls.append(_Call(self.spec.model, likely_tokens(prompt), self.usual, self.spec.max_response_tokens))
            if self.spec.judge_model:
                n_judged, call = self.judgement(self.spec.judge_model, style, question, text)
                n_cached += n_judged
                calls += call
        return calls, n_cached

    def _known(self, style: Style, question: str, prompt: str, *, positive: bool) -> tuple[str | None, int]:
        """The stored answer that will be taken, if there is one, and how many stored ones are looked at for it."""
        for attempt in ATTEMPTS:
            reply = stored_reply(self.store, request_key(self.spec, build_request(self.spec, prompt, attempt)))
            if reply is None:
                return None, attempt
            if not reply.bad and check_answer(reply.text, style, prompt, question, positive=positive).passed:
                return reply.text, attempt + 1
        return None, len(ATTEMPTS)

    def judgement(self, model: str, style: Style, question: str, text: str | None) -> tuple[int, list[_Call]]:
        """Whether a judge's verdict on ``text`` (None: not written yet) is stored, else the call for it."""
        asked = judge_spec(self.spec, model)
        prompt = judge_prompt(style, question, text or USUAL_ANSWER)
        if text and stored_reply(self.store, request_key(asked, build_request(asked, prompt))):
            return 1, []
        return 0, [_Call(model, likely_tokens(prompt), SCORE_TOKENS, self.spec.max_response_tokens)]

    def comparison(self, model: str, style: Style, question: str) -> _Call:
        """The call by which a judge compares two answers of the usual length."""
        prompt = comparison_prompt(style, question, USUAL_ANSWER, USUAL_ANSWER)
        return _Call(model, likely_tokens(prompt), CHOICE_TOKENS, self.spec.max_response_tokens)


def _estimate_style(
    asking: Asking, style: Style, supply: Supply, evaluation: EvaluationSpec | None, tokens_read: float
) -> StyleEstimate:
    calls: list[_Call] = []
    n_cached = 0
    for question in supply.missing:
        unpaid, n_known = asking.answers(style, question)
        calls += unpaid
        n_cached += n_known
    if evaluation and evaluation.judge_model:
        _, call = asking.judgement(evaluation.judge_model, style, evaluation.questions[0], None)
        calls += call * count_judged(evaluation)
        calls += [asking.comparison(evaluation.judge_model, style, evaluation.questions[0])] * count_compared(
            evaluation
        )
    pairs = len(supply.pairs) + len(supply.missing)
    spec = asking.spec
    return StyleEstimate(
        style=style.name,
        pairs=pairs,
        to_write=len(supply.missing),
        calls=len(calls),
        cached_calls=n_cached,
        input_tokens=sum(call.input_tokens for call in calls),
        output_tokens_low=sum(call.usual for call in calls),
        output_tokens_high=sum(call.most for call in calls),
        target_tokens=round(pairs * tokens_read),
        usd_low=_total([price_of(spec, call.model, call.input_tokens, call.usual) for call in calls]),
        usd_high=_total([price_of(spec, call.model, call.input_tokens, call.most) for call in calls]),
    )


def _total(prices: Sequence[float | None]) -> float | None:
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) else None
