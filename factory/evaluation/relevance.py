"""Relevance: whether answers stay on their questions.

A marker count is fooled by an answer that is in the style and about nothing. The unsteered model tells
them apart without a judge: an answer to a question is likelier after that question than after
another (pointwise mutual information of question and answer, per token). Stock sentences fit every
question equally well and gain nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from factory.evaluation.answers import losses
from factory.evaluation.surprise import Surprise
from factory.target.model import Target

N_OTHERS = 2  # other questions per answer: more cost a forward pass each and change the mean little
ROWS = 12  # texts per forward pass: their logits are held at once


def relevance(target: Target, questions: Sequence[str], answers: Sequence[str]) -> list[float | None]:
    """By how many nats per token each answer is likelier after its own question than after others.

    Around 0 and below: the answer says nothing about its question. None for an empty answer.

    Raises:
        ValueError: a single question, which has no others.
    """
    if len(questions) < 2:
        raise ValueError("relevance needs two questions or more: an answer is held against the questions of others")
    found = surprises_of(target, questions, answers)
    return [surprise.relevance if surprise else None for surprise in found]


def surprises_of(target: Target, questions: Sequence[str], answers: Sequence[str]) -> list[Surprise | None]:
    """How the unsteered model reads each answer, after its own question and after others; None for an empty one.

    The other questions are the next ones of the list, so that conditions are compared on the same.
    """
    shifts = range(min(N_OTHERS, max(0, len(questions) - 1)) + 1)
    asked = [questions[(at + shift) % len(questions)] for at in range(len(questions)) for shift in shifts]
    said = [answer for answer in answers for _ in shifts]
    found: list[float | None] = []
    for start in range(0, len(asked), ROWS):
        found += losses(target, asked[start : start + ROWS], said[start : start + ROWS])
    return [_surprise(found[at : at + len(shifts)]) for at in range(0, len(found), len(shifts))]


def _surprise(found: Sequence[float | None]) -> Surprise | None:
    """Of the losses after the answer's own question, which comes first, and after others."""
    known = [loss for loss in found if loss is not None]
    return Surprise(known[0], fmean(known[1:]) if known[1:] else None) if known else None
