"""A task in a vector's certificate: what tells its items, and the same items found again."""

from __future__ import annotations

from factory.benchmark.item import Task
from factory.benchmark.outcome import PROMPTED, RANDOM, STEERED, UNSTEERED, TaskResult
from factory.benchmark.sources import load_task
from factory.errors import BenchmarkError
from factory.evaluation.certificate import CertifiedTask, question_hash

AGAIN = (UNSTEERED, PROMPTED, RANDOM, STEERED)  # conditions that need nothing but the vector's file


def certify_task(task: Task, result: TaskResult) -> CertifiedTask:
    """What a certificate says of a task that was put to the model."""
    return CertifiedTask(
        name=task.name,
        limit=len(task.items) + task.left_out,
        items=tuple(question_hash(item.prompt) for item in task.items),
        right={outcome.role: outcome.accuracy.count for outcome in result.outcomes if outcome.role in AGAIN},
    )


def find_again(certified: CertifiedTask, source: str, *, seed: int) -> Task:
    """The task with the very items of ``certified``, made or read from ``source`` anew.

    Raises:
        BenchmarkError: the source is unknown, or some items are not among its own.
        MissingExtra: the package with that task is not installed.
    """
    found = load_task(source, limit=certified.limit, seed=seed)
    items = {question_hash(item.prompt): item for item in found.items}
    missing = sum(digest not in items for digest in certified.items)
    if missing:
        raise BenchmarkError(f"{missing} of its {len(certified.items)} items are not in {source!r}")
    return Task(name=certified.name, items=tuple(items[digest] for digest in certified.items))
