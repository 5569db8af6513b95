"""Contrastive pairs: the same question answered in a style and plainly; and their files.

A dataset is JSON Lines: a metadata object first, then one pair a line (docs/format.md).
A *batch* is the group of pairs that one task reads; it is cut by the pair's own ``batch`` number,
so that adding pairs adds batches and changes none. This module does not know how a pair was
written, nor what reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from factory.files import sha256_of

BATCH_SIZE = 16  # pairs per task
N_SHOTS = 4  # examples in a few-shot text
CIRCLE = 8  # pairs of a batch that share their few-shot examples, and so the work of reading them
REPEATS = "repeats"  # field of a pair that nearly repeats an earlier one: that pair's id
REQUIRED_FIELDS = (
    "question",
    "positive_prompt",
    "positive_response",
    "negative_prompt",
    "negative_response",
    "style",
    "pair_id",
)


@dataclass(frozen=True)
class ContrastivePair:
    """One question, answered in the style (positive) and plainly (negative).

    ``batch`` is the number of the batch in which the pair was written, if it is known. ``extra``
    holds whatever else its dataset line says (checks, provenance, cost).
    """

    question: str
    positive_response: str
    negative_response: str
    style: str = ""
    positive_prompt: str = ""
    negative_prompt: str = ""
    pair_id: str = ""
    batch: int | None = None
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.pair_id:
            object.__setattr__(self, "pair_id", make_pair_id(self.style, self.question))

    def to_json(self) -> dict[str, object]:
        """The dataset line: the required fields first, in their documented order."""
        line: dict[str, object] = {name: getattr(self, name) for name in REQUIRED_FIELDS}
        if self.batch is not None:
            line["batch"] = self.batch
        return line | self.extra

    @classmethod
    def from_json(cls, line: Mapping[str, object]) -> ContrastivePair:
        """The pair of one dataset line.

        Raises:
            ValueError: a field is missing or is not text.
        """
        known: dict[str, str] = {}
        for name in REQUIRED_FIELDS:
            if name not in line:
                raise ValueError(f"field {name!r} is missing")
            text = line[name]
            if name == "pair_id" and type(text) is int:
                text = str(text)  # other builders number their pairs
            if not isinstance(text, str):
                raise ValueError(f"field {name!r} should be text, found {type(text).__name__}")
            known[name] = text
        batch = line.get("batch")
        if batch is not None and (type(batch) is not int or batch < 0):
            raise ValueError(f"field 'batch' should be a whole number from 0, found {batch!r}")
        extra = {key: value for key, value in line.items() if key not in known and key != "batch"}
        return cls(**known, batch=batch, extra=extra)


def make_pair_id(style: str, question: str) -> str:
    """A pair's name: the same question of the same style is the same pair, wherever it is written."""
    digest = hashlib.sha256(question.encode()).hexdigest()[:12]
    return f"{style}-{digest}" if style else digest


def cut_batches(pairs: Sequence[ContrastivePair], batch_size: int = BATCH_SIZE) -> list[list[ContrastivePair]]:
    """Cut ``pairs`` into the batches that tasks read.

    Pairs that know their batch stay in it; without that, ``batch_size`` neighbours form a batch.
    """
    if any(pair.batch is None for pair in pairs):
        return [list(pairs[start : start + batch_size]) for start in range(0, len(pairs), batch_size)]
    batches: dict[int, list[ContrastivePair]] = {}
    for pair in pairs:
        batches.setdefault(pair.batch or 0, []).append(pair)
    return [batches[number] for number in sorted(batches)]


def number_batches(
    pairs: Sequence[ContrastivePair], batch_size: int = BATCH_SIZE, start: int = 0
) -> list[ContrastivePair]:
    """Write each pair's batch number into it, counting from ``start``."""
    batches = [pairs[at : at + batch_size] for at in range(0, len(pairs), batch_size)]
    return [replace(pair, batch=start + n) for n, batch in enumerate(batches) for pair in batch]


def hash_pairs(pairs: Iterable[ContrastivePair]) -> str:
    """One hash of what the pairs say, whatever file they stand in."""
    lines = [f"{p.pair_id}\n{p.question}\n{p.positive_response}\n{p.negative_response}\n" for p in pairs]
    return sha256_of("".join(lines))
