"""A benchmark: the same items put to the model under every condition, and what each comparison says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from factory.benchmark.condition import Condition
from factory.benchmark.extractor import extract, is_right
from factory.benchmark.item import Item, Task
from factory.benchmark.likelihood import likeliest_letters
from factory.benchmark.outcome import Outcome, Share, TaskResult
from factory.benchmark.paired import share_of, task_result
from factory.evaluation.answers import ANSWER_BATCH, Questioning, ask
from factory.evaluation.phases import opens_thought
from factory.evaluation.thought import OPEN, split_thought
from factory.store import Store
from factory.target.model import Target


@dataclass(frozen=True)
class Budget:
    """Tokens that an answer may have (None: what the kind of item needs), and a thought before it."""

    answer: int | None = None
    thought: int = 0

    def for_answers_to(self, task: Task) -> int:
        """Tokens of an answer to an item of ``task``."""
        return self.answer or task.answer_tokens


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
    return task_result(task, alone, {condition.name: condition.held_against for condition in conditions})


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
