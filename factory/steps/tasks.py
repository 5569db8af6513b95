"""Tasks with checkable answers at the end of a style's evaluation: one part per task and condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from factory.benchmark.outcome import FEW_SHOT, WITH_MEAN, Outcome, TaskResult
from factory.evaluation.spec import MEAN
from factory.pairs.pair import ContrastivePair
from factory.run.artifacts import batch_of
from factory.run.page import Page
from factory.run.spec import TaskPart
from factory.steps.learn import mean_of

if TYPE_CHECKING:
    from factory.benchmark.condition import Condition
    from factory.target.model import Target
    from factory.vector.vector import SteeringVector


def do_task(page: Page, part: TaskPart, target: Target, vector: SteeringVector) -> Outcome:
    """Put a task to the model under one condition; a vector is added as the evaluation has chosen.

    Answers are kept in the store by batch, so that a part that is done again goes on where it stopped.
    """
    from factory.benchmark.run import Bench, Budget

    spec = page.ledger.spec.evaluation
    budget = Budget(thought=spec.thinking_tokens if spec else 0)
    return Bench(target, page.store, budget).examine(part.task, _condition(page, part, target, vector))


def _condition(page: Page, part: TaskPart, target: Target, vector: SteeringVector) -> Condition:
    from factory.benchmark.condition import Condition, baselines, steered
    from factory.evaluation.examiner import Examiner
    from factory.evaluation.probe import apply_cell
    from factory.evaluation.verdict import choose_cell

    spec = page.ledger.spec.evaluation
    if spec is None:
        raise ValueError("a run without an evaluation has no tasks")
    if part.role == MEAN:
        examiner = Examiner(target, vector, page.style, spec, page.store, mean=mean_of(page))
        return Condition(MEAN, MEAN, steering=examiner.mean_steering())
    shown = _examples(page) if part.role == FEW_SHOT else []
    steering = apply_cell(vector, choose_cell(page.evaluated().cells, spec).setting)
    conditions = [*baselines(page.style, shown), *steered(steering)]
    return next(condition for condition in conditions if condition.role == part.role)


def _examples(page: Page) -> list[ContrastivePair]:
    """Pairs to show: those of the first batch that has some."""
    return next((pairs for batch in page.batches if (pairs := batch_of(page, batch.number)[0])), [])


def task_results(page: Page) -> list[TaskResult]:
    """What each task of a style's evaluation came to, every condition held against its bases."""
    from factory.benchmark.paired import task_result

    return [task_result(task, page.outcomes(task), WITH_MEAN) for task in page.ledger.spec.tasks]
