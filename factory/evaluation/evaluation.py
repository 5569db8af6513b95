"""An evaluation: what was found out about one vector, as it lies in the vector's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import Field

from factory.evaluation.cell import Cell
from factory.evaluation.figures import (
    Agreement,
    Capability,
    CellFigures,
    Check,
    Interval,
    JudgeScores,
    Preferences,
    Reading,
    RightAnswers,
    Scope,
    StateFigures,
)
from factory.frozen import Record

KEY = "evaluation"  # in the metadata
TASKS = "tasks"  # there too: what the setting of the evaluation does to right answers


class Evaluation(Record):
    """What was found out about one vector.

    ``effect`` is the gain, over the unsteered model, in the share of answers in the style;
    ``interval`` its 95 % interval; ``marker_gain`` the gain in markers per answer.
    ``verdict`` is in five words at most, ``reason`` says why, ``checks`` are the rules that it follows.
    ``dose``: norm of what is added over that of the values that it is added to, the mean of the layers;
    ``moved``: KL divergence (nats) of the next token that it causes.
    ``measured`` holds the figures of each state of the model, for a learned vector also those of the mean that
    it was learned from, added as ``mean_setting`` says; ``cells`` those of the cells that
    answered, ``gate`` what the probe read of every cell; ``right_answers`` what steering does to those of
    each task, where the evaluation had tasks, and ``capability`` to twelve exact questions; ``specificity`` the
    share of steered answers by style's markers; ``judged`` a judge's scores of each state, if one was asked,
    ``preferred`` whether it prefers the steered or the prompted answers, and ``agreement`` how far its scores
    agree with the style's markers.
    """

    style: str
    setting: Cell
    layers: tuple[int, ...]
    effect: float
    interval: Interval
    marker_gain: float
    marker_interval: Interval
    verdict: str
    reason: str = ""
    advice: str
    checks: tuple[Check, ...] = ()
    dose: float | None = None
    moved: float | None = None
    measured: dict[str, StateFigures]
    mean_setting: Cell | None = None
    cells: tuple[CellFigures, ...]
    gate: tuple[Reading, ...]
    capability: Capability
    right_answers: tuple[RightAnswers, ...] = ()
    specificity: dict[str, float]
    settings: Scope
    judged: dict[str, JudgeScores] = Field(default_factory=dict)
    preferred: Preferences | None = None
    agreement: Agreement | None = None

    @classmethod
    def read(cls, metadata: Mapping[str, object]) -> Self | None:
        """The evaluation in a vector's ``metadata``; None where there is none.

        Raises:
            VectorError: it is damaged.
        """
        return cls.within(metadata, KEY, "'svf evaluate' measures anew")
