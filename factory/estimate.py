"""What a run will take before it starts: calls, tokens and money, without a network.

Low is what answers of the usual length cost, high is every answer at ``max_response_tokens``.
What the store already holds costs nothing. Regenerations of answers that fail a gate come on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.config import Settings
from factory.judge import judge_prompt
from factory.plan import plan_pairs, plan_teacher
from factory.run import TeacherSpec
from factory.spending import likely_tokens, price_of, price_source
from factory.store import Store
from factory.styles import Style
from factory.teacher import build_request, request_key, stored_reply

USUAL_WORDS = 120  # of an answer; the built-in styles ask for 60 to 90
SCORE_TOKENS = 16  # of a judge's reply


@dataclass(frozen=True)
class StyleEstimate:
    """What one style will take. USD are None where no price is known.

    ``pairs``: in all; ``to_write``: of them by the teacher; ``calls``: to be paid; ``cached_calls``:
    answered already; ``target_tokens``: about what the target model will read, by one answer a side.
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
    """What a run will take."""

    teacher_model: str
    requested_model: str
    price_source: str
    minutes_by_rate: float | None
    styles: list[StyleEstimate]

    @property
    def usd(self) -> tuple[float, float] | None:
        """Low and high of the whole run, or None where a price is not known."""
        pairs = [(part.usd_low, part.usd_high) for part in self.styles]
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
    spec = plan_teacher(settings)
    planned = plan_pairs(settings, output, limit=limit)
    styles = [_estimate_style(spec, store, style, choice.missing, len(choice.pairs)) for style, choice in planned]
    calls = sum(part.calls for part in styles)
    rate = settings.calls_per_minute
    minutes = round(calls / rate, 1) if rate and calls else None
    return Estimate(spec.model, spec.requested_model, price_source(spec), minutes, styles)


def _estimate_style(
    spec: TeacherSpec, store: Store, style: Style, questions: Sequence[str], existing: int
) -> StyleEstimate:
    usual = min(spec.max_response_tokens, likely_tokens("x" * 6 * USUAL_WORDS))
    calls: list[_Call] = []
    cached = 0
    for question in questions:
        for prompt in style.prompts_for(question):
            reply = stored_reply(store, request_key(spec, build_request(spec, prompt)))
            cached += reply is not None
            if reply is None:
                calls.append(_Call(spec.model, likely_tokens(prompt), usual, spec.max_response_tokens))
            if spec.judge_model:
                asked = likely_tokens(judge_prompt(style, question, "x" * 6 * USUAL_WORDS))
                calls.append(_Call(spec.judge_model, asked, SCORE_TOKENS, spec.max_response_tokens))
    pairs = existing + len(questions)
    return StyleEstimate(
        style=style.name,
        pairs=pairs,
        to_write=len(questions),
        calls=len(calls),
        cached_calls=cached,
        input_tokens=sum(call.input_tokens for call in calls),
        output_tokens_low=sum(call.usual for call in calls),
        output_tokens_high=sum(call.most for call in calls),
        target_tokens=2 * pairs * usual,
        usd_low=_total([price_of(spec, call.model, call.input_tokens, call.usual) for call in calls]),
        usd_high=_total([price_of(spec, call.model, call.input_tokens, call.most) for call in calls]),
    )


def _total(prices: Sequence[float | None]) -> float | None:
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) else None
