"""A benchmark: the same items put to the model under every condition, and what each comparison says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from factory.benchmark.condition import PROMPTED, UNSTEERED, Condition
from factory.benchmark.extractor import extract, is_right
from factory.benchmark.item import Item, Task
from factory.benchmark.likelihood import likeliest_letters
from factory.benchmark.paired import Comparison, Share, compare, share_of
from factory.evaluation.answers import Questioning, ask
from factory.evaluation.thought import split_thought
from factory.frozen import Frozen
from factory.store import Store
from factory.target.model import Target

LETTER_TOKENS = 48  # of an answer that names a choice
WORKED_TOKENS = 256  # of one that works out a number
HELD_AGAINST = (UNSTEERED, PROMPTED)


class Outcome(Frozen):
    """What one condition did on one task.

    ``right`` by item, 0 or 1; ``by_likelihood`` is the accuracy of choosing the likeliest letter,
    where items have choices. ``unextracted`` answers had no result to be found, ``thoughts_cut`` never
    came to an answer; both count as wrong. ``tokens_per_right``: None where nothing was right.
    """

    condition: str
    accuracy: Share
    by_likelihood: Share | None = None
    unextracted: int
    thoughts_cut: int = 0
    mean_tokens: float
    tokens_per_right: float | None
    right: tuple[int, ...]
    comparisons: tuple[Comparison, ...] = ()


class TaskResult(Frozen):
    """One task under all conditions. ``items_sha256`` tells which items in which order."""

    task: str
    n_items: int
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


@dataclass(frozen=True)
class Budget:
    """Tokens that an answer may have (None: what the kind of item needs), and a thought before it."""

    answer: int | None = None
    thought: int = 0

    def for_answers_to(self, task: Task) -> int:
        """Tokens of an answer to an item of ``task``."""
        return self.answer or (LETTER_TOKENS if task.has_choices else WORKED_TOKENS)


def run_task(
    target: Target,
    task: Task,
    conditions: Sequence[Condition],
    store: Store,
    *,
    budget: Budget = Budget(),
    after: Callable[[str], None] = lambda condition: None,
) -> TaskResult:
    """Put a task to the model under each condition; answers are kept in ``store`` and asked once.

    ``after`` is told each condition that is done.
    """
    outcomes: dict[str, Outcome] = {}
    for condition in conditions:
        outcome = examine(target, task, condition, store, budget)
        outcomes[condition.name] = outcome.model_copy(update={"comparisons": _held_against(outcomes, outcome)})
        after(condition.name)
    return TaskResult(
        task=task.name, n_items=len(task.items), items_sha256=task.sha256, outcomes=tuple(outcomes.values())
    )


def examine(target: Target, task: Task, condition: Condition, store: Store, budget: Budget = Budget()) -> Outcome:
    """One condition on one task, without comparisons."""
    questioning = Questioning(
        tuple(item.prompt for item in task.items),
        budget.for_answers_to(task),
        condition.steering,
        condition.system,
        condition.examples,
        budget.thought,
    )
    said = ask(target, questioning, store)
    answers = [split_thought(text) for text in said]
    found = [extract(item, answer.text) for item, answer in zip(task.items, answers, strict=True)]
    right = tuple(int(is_right(item, one)) for item, one in zip(task.items, found, strict=True))
    n_tokens = [len(target.text_ids(text)) for text in said]
    return Outcome(
        condition=condition.name,
        accuracy=share_of([bool(one) for one in right]),
        by_likelihood=_by_likelihood(target, task.items, condition) if task.has_choices else None,
        unextracted=sum(one is None for one in found),
        thoughts_cut=sum(answer.cut for answer in answers),
        mean_tokens=round(sum(n_tokens) / len(n_tokens), 1),
        tokens_per_right=round(sum(n_tokens) / sum(right), 1) if any(right) else None,
        right=right,
    )


def _by_likelihood(target: Target, items: tuple[Item, ...], condition: Condition) -> Share:
    letters = likeliest_letters(target, items, condition)
    return share_of([letter == item.answer for letter, item in zip(letters, items, strict=True)])


def _held_against(known: Mapping[str, Outcome], outcome: Outcome) -> tuple[Comparison, ...]:
    """``outcome`` against those of the bare and of the prompted model that are known."""
    after = [bool(one) for one in outcome.right]
    bases = [base for name, base in known.items() if name.startswith(HELD_AGAINST)]
    return tuple(compare(base.condition, after, [bool(one) for one in base.right]) for base in bases)
