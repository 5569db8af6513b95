"""Questions that got no pair: why, and what there was of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from factory.errors import PairRejected


@dataclass(frozen=True)
class RejectedQuestion:
    """One question that got no pair. ``reason`` is a short code; ``evidence``: the answers and what was measured."""

    question: str
    reason: str
    message: str
    evidence: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def after(cls, error: PairRejected, question: str) -> RejectedQuestion:
        """What is written down of a question whose pair was rejected."""
        return cls(question, error.reason, str(error), error.evidence)

    def to_json(self) -> dict[str, object]:
        """The line of a file of rejected pairs."""
        return {"question": self.question, "reason": self.reason, "message": self.message, **self.evidence}

    @classmethod
    def from_json(cls, line: Mapping[str, object]) -> RejectedQuestion:
        """What :meth:`to_json` wrote."""
        said = {name: str(line.get(name, "")) for name in ("question", "reason", "message")}
        return cls(**said, evidence={name: value for name, value in line.items() if name not in said})
