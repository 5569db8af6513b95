"""The capability check: a few questions with exact answers, so that the cost of steering is seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from factory.evaluation.figures import Capability


@dataclass(frozen=True)
class ExactQuestion:
    """A question, and a regular expression that a right answer matches."""

    question: str
    answer: str


EXACT_ANSWER_TOKENS = 40  # long enough to come to the point
EXACT_QUESTIONS = (
    ExactQuestion("What is 7 plus 5?", r"\b(?:12|twelve)\b"),
    ExactQuestion("What is 9 minus 4?", r"\b(?:5|five)\b"),
    ExactQuestion("What is 6 times 7?", r"\b(?:42|forty-two)\b"),
    ExactQuestion("What is half of 18?", r"\b(?:9|nine)\b"),
    ExactQuestion("What is 100 divided by 4?", r"\b(?:25|twenty-five)\b"),
    ExactQuestion("What is the capital of France?", r"\bParis\b"),
    ExactQuestion("What is the capital of Japan?", r"\bTokyo\b"),
    ExactQuestion("Which planet is known as the Red Planet?", r"\bMars\b"),
    ExactQuestion("How many days does a week have?", r"\b(?:7|seven)\b"),
    ExactQuestion("Who wrote the play Romeo and Juliet?", r"\bShakespeare\b"),
    ExactQuestion("What is the chemical formula of water?", r"H(?:2|₂)O\b"),
    ExactQuestion("Which ocean lies between Europe and North America?", r"\bAtlantic\b"),
)


def are_right(answers: Sequence[str]) -> list[bool]:
    """Which of the ``answers`` to :data:`EXACT_QUESTIONS` are right, in their order."""
    return [bool(re.search(exact.answer, said)) for exact, said in zip(EXACT_QUESTIONS, answers, strict=True)]


def compare_right(unsteered: Sequence[bool], steered: Sequence[bool]) -> Capability:
    """What steering does to right answers, question by question."""
    n = len(unsteered)
    return Capability(
        n=n,
        unsteered=round(sum(unsteered) / n, 4),
        steered=round(sum(steered) / n, 4),
        won=sum(after and not before for before, after in zip(unsteered, steered, strict=True)),
        lost=sum(before and not after for before, after in zip(unsteered, steered, strict=True)),
    )
