"""Surprise: how likely the unsteered model finds an answer, after its own question and after others."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Surprise:
    """Mean loss (nats per token) of an answer after its ``own`` question, and after ``others`` on average."""

    own: float
    others: float | None

    @property
    def perplexity(self) -> float:
        """How many tokens the model was torn between, on average."""
        return round(math.exp(self.own), 3)

    @property
    def relevance(self) -> float | None:
        """By how much the answer is likelier after its own question; None where there was no other."""
        return None if self.others is None else round(self.others - self.own, 4)
