"""A run's specification: what must be the same on every machine, frozen when the run is planned.

It travels by the run's id and decides every byte of the run's vectors. This module knows neither
the store, the queue nor the models.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from pydantic import Field, JsonValue

from factory.benchmark.item import Task
from factory.benchmark.outcome import BASES
from factory.errors import ConfigError
from factory.evaluation.spec import MEAN, EvaluationSpec
from factory.extraction.spec import ExtractionSpec
from factory.frozen import Frozen
from factory.learning.spec import Learning
from factory.pairs.styles import Style
from factory.teacher.spec import TeacherSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    """One batch of a style: questions to be answered, or the store key of pairs that exist.

    Slots, as a worker holds all batches of a style.
    """

    number: int
    questions: tuple[str, ...] = ()
    pairs_key: str | None = None
    n_pairs: int


class StyleRun(Frozen):
    """One style of a run. ``from_teacher``: some of its pairs are still to be written.

    ``replaces_dataset``: all of them, on purpose, in place of the dataset that there may be.
    """

    style: Style
    n_pairs: int
    n_batches: int
    from_teacher: bool
    replaces_dataset: bool = False  # also of runs that older versions planned: their pairs join the file
    dataset_metadata: dict[str, JsonValue] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskPart:
    """One part of an evaluation that puts a task to the model under one condition, by its role."""

    task: Task
    role: str


class RunSpec(Frozen):
    """Everything that decides the bytes of a run's vectors. ``learning``: None where the mean is the vector.

    ``tasks``: with checkable answers, put to the model at the end of each style's evaluation.
    """

    run_id: str
    styles: tuple[StyleRun, ...]
    extraction: ExtractionSpec
    teacher: TeacherSpec
    learning: Learning | None = None
    evaluation: EvaluationSpec | None = None
    tasks: tuple[Task, ...] = ()
    max_failed_fraction: float
    min_pairs: int
    max_cost_usd: float | None = None
    keep_differences: bool = False
    gpu_queue: str = "gpu"
    date: str | None = None

    @property
    def day(self) -> str:
        """The day that chat templates write into texts; runs of older versions have that of their submission."""
        return self.date or f"{self.run_id[:4]}-{self.run_id[4:6]}-{self.run_id[6:8]}"

    @property
    def task_parts(self) -> list[TaskPart]:
        """The parts of a style's evaluation that ask for right answers; they follow all others."""
        if self.evaluation is None:
            return []
        parts = [TaskPart(task, role) for task in self.tasks for role in BASES]
        return parts + [TaskPart(task, MEAN) for task in self.tasks if self.evaluation.mean]

    @property
    def n_parts(self) -> int:
        """Into how many parts a style's evaluation is cut."""
        return len(self.evaluation.parts) + len(self.task_parts) if self.evaluation else 0

    def style_run(self, name: str) -> StyleRun:
        """What the run does about one style.

        Raises:
            ConfigError: the run does not make that style.
        """
        for style_run in self.styles:
            if style_run.style.name == name:
                return style_run
        raise ConfigError(f"run {self.run_id} does not make style {name!r}")


def new_run_id() -> str:
    """A name for a run: when it was submitted, and four random letters."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)
