"""Relevance: whether answers stay on their questions.

A marker count is fooled by an answer that is in the style and about nothing. The unsteered model tells
them apart without a judge: an answer to a question is likelier after that question than after
another (pointwise mutual information of question and answer, per token). Stock sentences fit every
question equally well and gain nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch

from factory.evaluation.answers import losses
from factory.target.model import Target

N_OTHERS = 2  # other questions per answer: more cost a forward pass each and change the mean little
ROWS = 24  # texts per forward pass


def relevance(target: Target, questions: Sequence[str], answers: Sequence[str]) -> list[float | None]:
    """By how many nats per token each answer is likelier after its own question than after others.

    Around 0 and below: the answer says nothing about its question. None for an empty answer. The other
    questions are the next ones of the list, so that conditions are compared on the same.

    Raises:
        ValueError: a single question, which has no others.
    """
    if len(questions) < 2:
        raise ValueError("relevance needs two questions or more: an answer is held against the questions of others")
    n_others = min(N_OTHERS, len(questions) - 1)
    shifts = range(n_others + 1)
    asked = [questions[(at + shift) % len(questions)] for at in range(len(questions)) for shift in shifts]
    said = [answer for answer in answers for _ in shifts]
    found: list[float | None] = []
    for start in range(0, len(asked), ROWS):
        with torch.inference_mode():
            found += losses(target, asked[start : start + ROWS], said[start : start + ROWS])
    groups = [found[at : at + n_others + 1] for at in range(0, len(found), n_others + 1)]
    return [_gained(group) for group in groups]


def _gained(group: Sequence[float | None]) -> float | None:
    """The loss after other questions less that after the answer's own, which comes first."""
    known = [loss for loss in group if loss is not None]
    return round(fmean(known[1:]) - known[0], 4) if known else None
