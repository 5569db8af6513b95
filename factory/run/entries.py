"""What is written down of a run: one frozen type for each kind of entry in its ledger.

On disk an entry is the JSON object of the fields that were given (docs/design.md).
"""

from __future__ import annotations

from typing import Literal, Self, TypeVar

from pydantic import Field, JsonValue, ValidationError

from factory.errors import StoreError
from factory.frozen import Record, first_fault
from factory.store import Store

Kind = TypeVar("Kind", bound=Record)


class RunEntry(Record):
    """The base of all entries."""


class Stamp(RunEntry):
    """Which ``worker`` (host and process) wrote an entry, and ``at`` what Unix time.

    Lies beside the entry's own fields and is no part of it: times and workers must not reach the
    vector's bytes.
    """

    at: float
    worker: str


class Written(RunEntry):
    """A batch whose pairs the teacher has written. ``key``: where they lie in the store.

    ``left_out``: parameters of the request that the server refused, and that were left out.
    """

    key: str
    n_pairs: int
    reasons: dict[str, int] = Field(default_factory=dict)
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    paid_calls: int = 0
    cached_calls: int = 0
    paid_tokens: dict[str, int] = Field(default_factory=dict)
    left_out: tuple[str, ...] = ()


class Extracted(RunEntry):
    """A batch that the target model has read. ``key``: where its differences lie in the store.

    ``reasons``: pairs that could not be used, by why. ``seconds``: None if another run had read it.
    ``unlearnable``: ids of pairs that learning cannot read, in a run that learns.
    A batch that was given up has no ``key``, no pairs and no ``config``, and one reason.
    """

    key: str | None
    n_pairs: int
    reasons: dict[str, int] = Field(default_factory=dict)
    seconds: float | None = None
    config: dict[str, JsonValue] | None = None
    peak_memory_mib: int = 0
    unlearnable: tuple[str, ...] = ()


class Reduced(RunEntry):
    """A style whose mean is made. ``reasons``: pairs left out of it, by why.

    ``vector_sha256`` is that of the mean, which is the vector unless the run learns.
    """

    state: Literal["done"]
    vector_sha256: str
    pairs_used: int
    reasons: dict[str, int] = Field(default_factory=dict)


class Gradient(RunEntry):
    """A part of a round of learning that was read. ``key``: where its sum lies in the store.

    ``seconds``: None if it had been read before.
    """

    key: str
    n_pairs: int
    seconds: float | None = None
    peak_memory_mib: int = 0


class Round(RunEntry):
    """A round of learning that was taken. ``key``: where the state after it lies in the store.

    ``loss`` is that of the round's pairs, ``validation`` that of the pairs that are not learned from, both
    in nats per token and before the round's step; None where the round read none.
    """

    key: str
    is_last: bool
    loss: float | None = None
    validation: float | None = None


class Learned(RunEntry):
    """A learning that has ended: it took ``rounds``, and the state before ``best_round`` is the vector."""

    vector_sha256: str
    rounds: int
    best_round: int


class Ended(RunEntry):
    """A style's end: made, or failed with a ``message``.

    ``learning`` is "failed" where the mean was made and nothing could be learned from there, so that the
    mean is the vector; ``evaluation``, where the vector could not be evaluated. Of one that was:
    the ``verdict``, the chosen ``setting`` in words, and the share of answers in the style and of those that loop.
    """

    state: Literal["done", "failed"]
    message: str = ""
    vector_sha256: str | None = None
    pairs_used: int | None = None
    reasons: dict[str, int] = Field(default_factory=dict)
    learning: Literal["failed"] | None = None
    evaluation: Literal["failed"] | None = None
    verdict: str | None = None
    setting: str = ""
    unsteered: float = 0.0
    steered: float = 0.0
    mean: float | None = None
    loops: float | None = None
    mean_loops: float | None = None

    @classmethod
    def after(cls, reduced: Reduced, *later: Learned | NotLearned | Measured | NotEvaluated) -> Self:
        """The end of a style whose mean is made; of what two entries say, the ``later`` is right."""
        said = reduced.to_json()
        for entry in later:
            said |= entry.to_json()
        return cls.model_validate(said)

    @property
    def is_whole(self) -> bool:
        """Whether all was done that the run asked for, so that a resume has nothing to do."""
        return self.state == "done" and self.learning is None and self.evaluation is None


class Measured(RunEntry):
    """What an evaluation adds to a style's end; ``vector_sha256`` is that of the vector that holds it.

    ``mean``: the share with the mean that the vector was learned from, None without learning; ``loops`` and
    ``mean_loops``: the shares of answers that loop.
    """

    vector_sha256: str
    verdict: str
    setting: str
    unsteered: float
    steered: float
    mean: float | None = None
    loops: float
    mean_loops: float | None = None


class NotLearned(RunEntry):
    """What a failed learning adds to a style's end."""

    learning: Literal["failed"]
    message: str


class NotEvaluated(RunEntry):
    """What a failed evaluation adds to a style's end."""

    evaluation: Literal["failed"]
    message: str


class Pause(RunEntry):
    """Why a run waits for a person, ``since`` what Unix time, and what it had spent by then."""

    reason: str
    message: str
    since: float = 0.0
    spent_usd: float = 0.0

    @property
    def state(self) -> Literal["paused", "budget_stopped"]:
        """The state of the run that waits."""
        return "budget_stopped" if self.reason == "budget_stopped" else "paused"


class Cap(RunEntry):
    """Another cap of a run than the one it was submitted with."""

    max_cost_usd: float


class Fraction(RunEntry):
    """Another share of pairs that may fail than the one that a run was submitted with."""

    max_failed_fraction: float


class Worker(RunEntry):
    """A process on a machine. ``token`` is drawn when it starts: a container keeps host name and process id."""

    host: str
    pid: int
    token: str


class Try(Worker):
    """One try of a task, by a worker, ``since`` a Unix time; one that died of it has not ``ended``."""

    since: float
    ended: bool


def read_entry(store: Store, key: str, kind: type[Kind]) -> Kind | None:
    """The entry under ``key``, or None.

    Raises:
        StoreError: it is damaged.
    """
    content = store.read_json(key)
    return None if content is None else checked_entry(store, key, content, kind)


def checked_entry(store: Store, key: str, content: object, kind: type[Kind]) -> Kind:
    """The entry that ``content`` of ``key`` is.

    Raises:
        StoreError: it is no entry of that kind.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        found = first_fault(error)
        raise StoreError(f"{store.path(key)} is no {kind.__name__} entry: {found}. Delete it and resume") from None
