"""What a benchmark found, as it is written down: outcomes of conditions and how they compare. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import TypeAdapter, ValidationError

from factory.errors import VectorError
from factory.evaluation.evaluation import TASKS
from factory.evaluation.figures import RightAnswers
from factory.evaluation.spec import MEAN
from factory.frozen import Frozen, Record, first_fault

UNSTEERED = "unsteered"
PROMPTED = "prompted"
FEW_SHOT = "few-shot"
RANDOM = "random"
STEERED = "steered"
# What a condition is held against, by role.
BASES: dict[str, tuple[str, ...]] = {
    UNSTEERED: (),
    PROMPTED: (UNSTEERED,),
    FEW_SHOT: (UNSTEERED, PROMPTED),
    RANDOM: (UNSTEERED, PROMPTED),
    STEERED: (UNSTEERED, PROMPTED, RANDOM),
}
# The same in a run that learns: the learned vector is held against the mean from which it was learned.
WITH_MEAN: dict[str, tuple[str, ...]] = {
    **BASES,
    MEAN: (UNSTEERED, PROMPTED),
    STEERED: (*BASES[STEERED], MEAN),
}
SIGNIFICANT = 0.05  # McNemar's p below which two conditions are told apart


class Share(Frozen):
    """``count`` of ``n`` items, as a share with its 95 % interval."""

    count: int
    n: int
    share: float
    low: float
    high: float


class Comparison(Frozen):
    """A condition held against ``base`` on the same items.

    ``won``: items right only under the condition, ``lost``: only under the base. ``gain`` is the
    difference of their shares with its 95 % interval, ``p`` McNemar's exact two-sided p-value.
    """

    base: str
    won: int
    lost: int
    gain: float
    low: float
    high: float
    p: float


class Outcome(Record):
    """What one condition did on one task.

    ``right`` by item, 0 or 1; ``by_likelihood`` is the accuracy of choosing the likeliest letter,
    where items have choices and the model does not think first. ``unextracted`` answers had no result to be
    found, ``thoughts_cut`` never came to an answer; both count as wrong. ``prompt_tokens`` are read and
    ``mean_tokens`` generated per item. ``tokens_per_right``: None where nothing was right.
    """

    condition: str
    role: str
    accuracy: Share
    by_likelihood: Share | None = None
    unextracted: int
    thoughts_cut: int = 0
    prompt_tokens: float
    mean_tokens: float
    tokens_per_right: float | None
    right: tuple[int, ...]
    comparisons: tuple[Comparison, ...] = ()


class TaskResult(Record):
    """One task under all conditions. ``items_sha256`` tells which items in which order.

    ``left_out``: how many of the task's items a vector was made from, which were not asked.
    """

    task: str
    n_items: int
    left_out: int = 0
    items_sha256: str
    outcomes: tuple[Outcome, ...]

    def outcome(self, condition: str) -> Outcome:
        """What ``condition`` did.

        Raises:
            KeyError: it was not among the conditions.
        """
        for outcome in self.outcomes:
            if outcome.condition == condition:
                return outcome
        raise KeyError(condition)

    def comparison(self, condition: str, role: str) -> Comparison | None:
        """``condition`` held against the bare, the prompted or the random one, by its role; None if it was not."""
        for comparison in self.outcome(condition).comparisons:
            if self.outcome(comparison.base).role == role:
                return comparison
        return None


def right_answers_of(results: Iterable[TaskResult]) -> list[RightAnswers]:
    """What a vector does to the right answers of each task, as the verdict weighs it."""
    found = [(result, result.comparison(STEERED, UNSTEERED)) for result in results]
    return [
        RightAnswers(task=result.task, n=result.n_items, won=held.won, lost=held.lost) for result, held in found if held
    ]


def read_tasks(metadata: Mapping[str, object]) -> list[TaskResult]:
    """The tasks in a vector's ``metadata``; none where its evaluation had none.

    Raises:
        VectorError: they are damaged.
    """
    try:
        return _Results.validate_python(metadata.get(TASKS, []))
    except ValidationError as error:
        raise VectorError(f"metadata {TASKS!r}: {first_fault(error)}; evaluate the vector anew") from None


_Results = TypeAdapter(list[TaskResult])
