"""A run's specification: what must be the same on every machine, frozen when the run is planned.

It travels by the run's id and decides every byte of the run's vectors. This module knows neither
the store, the queue nor the models.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from factory.errors import ConfigError
from factory.styles import Style


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TeacherSpec(_Frozen):
    """Who writes the pairs, and how they are asked."""

    model: str
    requested_model: str
    base_url: str | None = None
    temperature: float | None = None
    max_response_tokens: int = 800
    reasoning_effort: str | None = None
    judge_model: str | None = None
    seed: int = 0
    pricing: dict[str, float] | None = None
    calls_per_minute: float | None = None
    tokens_per_minute: float | None = None


class ExtractionSpec(_Frozen):
    """What the target model reads, and which states are taken."""

    target_model: str
    target_layers: str | int | list[int]
    recipe: str
    n_shots: int
    n_tokens: int | None = None
    max_sequence_length: int
    batch_tokens: int | None = None
    dtype: str = "auto"
    quantize: str | None = None


BASELINES = ("unsteered", "prompted")
CONTROLS = ("random", "negated")
CHECKS = ("steered", *CONTROLS, "capability")


class EvaluationSpec(_Frozen):
    """The held-out questions and the sweep.

    The setting is chosen on ``choice_questions`` and measured on ``questions``; none is in both.
    """

    questions: tuple[str, ...]
    choice_questions: tuple[str, ...]
    probe_questions: tuple[str, ...]
    cells: int = 6
    max_loops: float = 0.1
    strengths: tuple[float, ...]
    key_strengths: tuple[float, ...] = (0.0,)
    positions: tuple[int, ...]
    layer_sets: tuple[str, ...]
    max_new_tokens: int
    judge_model: str | None = None

    @property
    def first_parts(self) -> list[str]:
        """The parts of an evaluation that need no choice: baselines, and the settings that the gate found best."""
        n_settings = len(self.strengths) * len(self.positions) * len(self.layer_sets) * len(self.key_strengths)
        return [*BASELINES, *(f"cell-{rank}" for rank in range(min(self.cells, n_settings)))]

    @property
    def parts(self) -> list[str]:
        """Every part of an evaluation, in order; the checks of the chosen setting come last."""
        return [*self.first_parts, *CHECKS]

    def questions_of(self, part: str) -> tuple[str, ...]:
        """Which of them a part asks: a setting those for choosing, a control every second of the others."""
        if part == "capability":
            return ()  # it has its own, with known answers
        if part.startswith("cell-"):
            return self.choice_questions
        return self.questions[::2] if part in CONTROLS else self.questions


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    """One batch of a style: questions to be answered, or the store key of pairs that exist.

    Slots, as a worker holds all batches of a style.
    """

    number: int
    questions: tuple[str, ...] = ()
    pairs_key: str | None = None
    n_pairs: int


class StyleRun(_Frozen):
    """One style of a run. ``from_teacher``: some of its pairs are still to be written."""

    style: Style
    n_pairs: int
    n_batches: int
    from_teacher: bool
    dataset_metadata: dict[str, Any] = {}


class RunSpec(_Frozen):
    """Everything that decides the bytes of a run's vectors."""

    run_id: str
    styles: tuple[StyleRun, ...]
    extraction: ExtractionSpec
    teacher: TeacherSpec
    evaluation: EvaluationSpec | None = None
    max_failed_fraction: float
    min_pairs: int
    max_cost_usd: float | None = None
    keep_differences: bool = False
    gpu_queue: str = "gpu"

    def style_run(self, name: str) -> StyleRun:
        """The part of the run about one style.

        Raises:
            ConfigError: the run does not make that style.
        """
        for part in self.styles:
            if part.style.name == name:
                return part
        raise ConfigError(f"run {self.run_id} does not make style {name!r}")


def new_run_id() -> str:
    """A name for a run: when it was submitted, and four random letters."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)
