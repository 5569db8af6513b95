"""A benchmark: the same items put to the model under every condition, and what each comparison says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from factory.benchmark.condition import Condition
from factory.benchmark.extractor import extract, is_right
from factory.benchmark.item import Item, Task
from factory.benchmark.likelihood import likeliest_letters
from factory.benchmark.paired import Comparison, Share, compare, share_of
from factory.evaluation.answers import ANSWER_BATCH, Questioning, ask
from factory.evaluation.thought import OPEN, opens_thought, split_thought
from factory.frozen import Frozen
from factory.store import Store
from factory.target.model import Target

LETTER_TOKENS = 48  # of an answer that names a choice
WORKED_TOKENS = 256  # of one that works out a number


class Outcome(Frozen):
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


class TaskResult(Frozen):
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
    after: Callable[[int], None] = lambda n_items: None,
) -> TaskResult:
    """Put a task to the model under every condition, and hold each condition against its bases.

    Answers are kept in the store, so that a benchmark that was interrupted goes on where it stopped.
    ``after`` is told how many items were answered since it was told last.
    """
    bench = Bench(target, store, budget, after)
    alone = {condition.name: bench.examine(task, condition) for condition in conditions}
    outcomes = [
        alone[condition.name].model_copy(update={"comparisons": _comparisons(condition, alone)})
        for condition in conditions
    ]
    return TaskResult(
        task=task.name,
        n_items=len(task.items),
        left_out=task.left_out,
        items_sha256=task.sha256,
        outcomes=tuple(outcomes),
    )


def _comparisons(condition: Condition, outcomes: Mapping[str, Outcome]) -> tuple[Comparison, ...]:
    """A condition against those of its bases that took part."""
    bases = [outcomes[name] for name in condition.held_against if name in outcomes]
    after = _right(outcomes[condition.name])
    return tuple(compare(base.condition, after, _right(base)) for base in bases)


def _right(outcome: Outcome) -> list[bool]:
    return [bool(one) for one in outcome.right]


@dataclass(frozen=True)
class Bench:
    """The model that is examined, the store of its answers, and the tokens that they may have."""

    target: Target
    store: Store
    budget: Budget = Budget()
    after: Callable[[int], None] = lambda n_items: None

    def examine(self, task: Task, condition: Condition) -> Outcome:
        """One condition on one task, without comparisons."""
        said = self._said(task, condition)
        answers = [split_thought(text) for text in said]
        found = [extract(item, answer.text) for item, answer in zip(task.items, answers, strict=True)]
        right = tuple(int(is_right(item, one)) for item, one in zip(task.items, found, strict=True))
        n_tokens = [len(self.target.text_ids(text.removeprefix(OPEN))) for text in said]
        conversations = self._questioning(task, task.items, condition).conversations()
        n_read = [len(self.target.prompt_ids(messages)) for messages in conversations]
        return Outcome(
            condition=condition.name,
            role=condition.role,
            accuracy=share_of([bool(one) for one in right]),
            by_likelihood=self._by_likelihood(task, condition),
            unextracted=sum(one is None for one in found),
            thoughts_cut=sum(answer.cut for answer in answers),
            prompt_tokens=round(sum(n_read) / len(n_read), 1),
            mean_tokens=round(sum(n_tokens) / len(n_tokens), 1),
            tokens_per_right=round(sum(n_tokens) / sum(right), 1) if any(right) else None,
            right=right,
        )

    def _said(self, task: Task, condition: Condition) -> list[str]:
        """What the model says to each item; kept in the store after each batch."""
        said: list[str] = []
        for start in range(0, len(task.items), ANSWER_BATCH):
            part = task.items[start : start + ANSWER_BATCH]
            said += ask(self.target, self._questioning(task, part, condition), self.store)
            self.after(len(part))
        return said

    def _questioning(self, task: Task, items: Sequence[Item], condition: Condition) -> Questioning:
        return Questioning(
            tuple(item.prompt for item in items),
            self.budget.for_answers_to(task),
            condition.steering,
            condition.system,
            condition.examples,
            self.budget.thought,
        )

    def _by_likelihood(self, task: Task, condition: Condition) -> Share | None:
        """None without choices, and of a model that thinks: what it says first is no answer."""
        if not task.has_choices or opens_thought(self.target):
            return None
        letters = likeliest_letters(self.target, task.items, condition, self.store)
        return share_of([letter == item.answer for letter, item in zip(letters, task.items, strict=True)])
