"""An item: a question with an answer that a program can check."""

from __future__ import annotations

import string
from collections.abc import Collection

from factory.errors import BenchmarkError
from factory.files import hash_of
from factory.frozen import Frozen
from factory.pairs.heldout import hash_questions

FEWEST = 2  # items that a comparison needs
LETTER_TOKENS = 48  # of an answer that names a choice
WORKED_TOKENS = 256  # of one that works out a number
LETTERS = string.ascii_uppercase
ASK_FOR_LETTER = "Answer with the letter of the right choice."
ASK_FOR_RESULT = "Give the result as your final answer."


class Item(Frozen):
    """One question of a benchmark.

    ``answer`` is a number as text, a letter where there are ``choices``, or a short text. A ``worked``
    answer shows the way to it. Items are told apart by what they ask: ids differ between sources.
    """

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    worked: str = ""

    @property
    def prompt(self) -> str:
        """What the model is asked: the question, its choices by letter, and how to answer."""
        if not self.choices:
            known = "final answer" in self.question  # some sources ask for it themselves
            return self.question if known else f"{self.question} {ASK_FOR_RESULT}"
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False)]
        return "\n".join([self.question, *lines, ASK_FOR_LETTER])

    @property
    def letters(self) -> str:
        """The letters of its choices, such as ``"ABCD"``; empty without choices."""
        return LETTERS[: len(self.choices)]


class Task(Frozen):
    """A named set of items in a fixed order. ``left_out``: how many it had beside these."""

    name: str
    items: tuple[Item, ...]
    left_out: int = 0

    @property
    def sha256(self) -> str:
        """Hash of all items in their order: two tasks with one hash ask the same."""
        return hash_of([item.model_dump(mode="json") for item in self.items])

    @property
    def has_choices(self) -> bool:
        """Whether every item is multiple choice."""
        return all(item.choices for item in self.items)

    @property
    def answer_tokens(self) -> int:
        """Tokens that an answer to an item of this kind may have."""
        return LETTER_TOKENS if self.has_choices else WORKED_TOKENS

    def without(self, asked: Collection[str]) -> Task:
        """The task without items whose question or prompt has a hash among ``asked``: what a vector was made from.

        Raises:
            BenchmarkError: fewer than :data:`FEWEST` are left.
        """
        known = set(asked)
        kept = tuple(item for item in self.items if known.isdisjoint(hash_questions([item.question, item.prompt])))
        if len(kept) < FEWEST:
            raise BenchmarkError(
                f"task {self.name!r}: the vectors' pairs ask {len(self.items) - len(kept)} of its {len(self.items)} "
                f"items, and a comparison needs {FEWEST} others: take another --seed or more items (--limit)"
            )
        return Task(name=self.name, items=kept, left_out=self.left_out + len(self.items) - len(kept))
