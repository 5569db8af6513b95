"""Thoughts of reasoning models: told apart from the answer behind them.

Some chat templates end the generation prompt inside an opened thought (DeepSeek-R1: ``<think>``), others let
the model open one itself. What is judged is the answer behind the thought. A thought that the token
limit cut off has no answer, which is counted apart from a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Answer:
    """What a model said: its ``thought`` (maybe empty) and its ``text``; ``cut``: the thought never ended."""

    text: str
    thought: str = ""
    cut: bool = False


def split_thought(said: str) -> Answer:
    """Split what a model said, a thought that its prompt had opened included."""
    before, closed, behind = said.partition(CLOSE)
    if closed:
        return Answer(behind.strip(), thought=before.replace(OPEN, "", 1).strip())
    if said.lstrip().startswith(OPEN):
        return Answer("", thought=said.replace(OPEN, "", 1).strip(), cut=True)
    return Answer(said.strip())


def answers_of(said: Sequence[str]) -> list[str]:
    """What is judged of what a model said: the answers without their thoughts."""
    return [split_thought(text).text for text in said]


def thoughts_cut(said: Sequence[str]) -> int:
    """How many of a model's texts are thoughts that never came to an answer."""
    return sum(split_thought(text).cut for text in said)
