"""Figures of an evaluation: one frozen type for each kind, written and read as plain data by these alone.

They lie in the ledger and in the vector's metadata (docs/format.md). No model and no torch here, so
that a machine without them can tell how far a run is.
"""

from __future__ import annotations

from factory.evaluation.cell import Cell
from factory.frozen import Record

Interval = tuple[float, float]  # of 95 %


class StateFigures(Record):
    """How a model answered in one state.

    ``share``: answers in the style, with its ``interval``; ``markers`` and ``words`` per answer;
    ``distinct_4grams`` (share of 4-grams of words said once) and ``loops`` (share of answers) tell
    fluency; ``perplexity``: the median under the unsteered model, where it was measured.
    """

    n: int
    share: float
    interval: Interval
    markers: float
    words: float
    distinct_4grams: float
    loops: float
    perplexity: float | None = None


class AnswerFigures(StateFigures):
    """Figures with their lists by answer: ``in_style`` 0 or 1, ``shown`` the count of markers."""

    in_style: tuple[int, ...]
    shown: tuple[int, ...]

    def summary(self) -> StateFigures:
        """The figures without their lists."""
        return StateFigures.model_validate(self.to_json())


class JudgeScores(Record):
    """Mean scores of a judge, from 0 to 100, of ``n`` answers; ``unreadable`` ones got none.

    ``style`` and ``coherence`` are None where no answer got a score. ``failed``: why the judge was not heard.
    """

    model: str
    style: float | None = None
    coherence: float | None = None
    n: int = 0
    unreadable: int = 0
    failed: str | None = None


class Reading(Record):
    """What the probe reads of one cell, averaged over questions.

    ``openings``: log-probability (nats) of the likeliest of the style's openings. ``moved``: KL
    divergence (nats) of the next token's distribution from the unsteered one.
    """

    setting: Cell
    openings: float
    moved: float


class Capability(Record):
    """Share of ``n`` exact questions that were answered right."""

    n: int
    unsteered: float
    steered: float


class CellFigures(Record):
    """One cell that answered: its ``setting``, the ``layers`` that it means, its figures and its reading.

    ``answers``: where they lie in the store.
    """

    setting: Cell
    layers: tuple[int, ...]
    figures: StateFigures
    judged: JudgeScores | None = None
    answers: str
    openings: float
    moved: float


class Scope(Record):
    """On how many questions an evaluation stands, and within which limits."""

    questions: int
    choice_questions: int
    max_new_tokens: int
    max_loops: float
