"""Which pairs a round reads: a function of pair ids, seed and round alone, so that no worker needs to be told.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factory.files import sha256_of
from factory.learning.spec import Learning
from factory.pairs.pair import ContrastivePair

FEWEST = 6  # pairs below which all are learned from and none validates


@dataclass(frozen=True)
class Part:
    """Pairs that are read in one pass. A part that ``validates`` gives its loss only."""

    pairs: tuple[ContrastivePair, ...]
    validates: bool


@dataclass(frozen=True)
class Schedule:
    """The pairs of a style, cut into those that teach and those that validate."""

    learning: Learning
    taught: tuple[ContrastivePair, ...]
    validating: tuple[ContrastivePair, ...]

    @classmethod
    def of(cls, pairs: Sequence[ContrastivePair], learning: Learning) -> Schedule:
        """Cut ``pairs``; which ones validate does not depend on their order."""
        ordered = _shuffled(pairs, f"{learning.seed} validation")
        n_validating = _count_validating(len(pairs), learning)
        return cls(learning, tuple(ordered[n_validating:]), tuple(ordered[:n_validating]))

    def parts(self, number: int) -> list[Part]:
        """What round ``number`` reads, in the order in which its sums are added."""
        learning = self.learning
        parts = []
        if number < learning.rounds:
            parts += [Part(cut, validates=False) for cut in _cut(self._drawn(number), learning.pairs_per_part)]
        if number % learning.validate_every == 0 or number == learning.rounds:
            parts += [Part(cut, validates=True) for cut in _cut(self.validating, 2 * learning.pairs_per_part)]
        return parts

    def _drawn(self, number: int) -> tuple[ContrastivePair, ...]:
        """The pairs that round ``number`` learns from: all have their turn before one has its second."""
        count = min(self.learning.pairs_per_round, len(self.taught))
        places = range(number * count, (number + 1) * count)
        epochs = {place // len(self.taught) for place in places}
        order = {epoch: _shuffled(self.taught, f"{self.learning.seed} {epoch}") for epoch in epochs}
        return tuple(order[place // len(self.taught)][place % len(self.taught)] for place in places)


def count_passes(n_pairs: int, learning: Learning) -> tuple[int, int]:
    """How many passes over one pair learning takes at most: with a gradient, and to validate."""
    n_validating = _count_validating(n_pairs, learning)
    validations = learning.rounds // learning.validate_every + 1 + (learning.rounds % learning.validate_every > 0)
    return learning.rounds * min(learning.pairs_per_round, n_pairs - n_validating), validations * n_validating


def _count_validating(n_pairs: int, learning: Learning) -> int:
    if n_pairs < FEWEST:
        return 0
    return min(round(learning.validation_share * n_pairs), learning.validation_limit)


def _cut(pairs: Sequence[ContrastivePair], size: int) -> list[tuple[ContrastivePair, ...]]:
    return [tuple(pairs[start : start + size]) for start in range(0, len(pairs), size)]


def _shuffled(pairs: Sequence[ContrastivePair], seed: str) -> list[ContrastivePair]:
    return sorted(pairs, key=lambda pair: sha256_of(f"{seed}\n{pair.pair_id}"))
