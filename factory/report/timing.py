"""Timing of a run: when each phase's parts were done, and by which worker.

Told from what the ledger wrote down, by the clocks of the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from factory.run.ledger import Ledger
from factory.run.listing import Step

PHASES: dict[Step, str] = {
    "written": "written by the teacher",
    "extracted": "extracted",
    "reduced": "averaged",
    "gradient": "read by learning",
    "round": "rounds of learning",
    "learned": "learned",
    "evaluated": "evaluated",
}


@dataclass(frozen=True)
class DonePart:
    """A part that is done: ``at`` is in seconds from the run's start."""

    style: str
    phase: str
    worker: str
    at: float


@dataclass(frozen=True)
class Span:
    """Some parts together: how many, and when the first and the last was done, in seconds from the run's start."""

    who: str
    phase: str
    n: int
    first: float
    last: float


def timeline(ledger: Ledger) -> list[DonePart]:
    """Every part of the run that was written down with its time."""
    begun = ledger.begun_at()
    return [
        DonePart(page.name, PHASES[step], stamp.worker, stamp.at - begun)
        for page in ledger.pages
        for step, stamp in page.stamps()
    ]


def time_phases(parts: Sequence[DonePart]) -> list[Span]:
    """When each phase of each style was done."""
    return _spans(parts, lambda part: part.style)


def time_workers(parts: Sequence[DonePart]) -> list[Span]:
    """When each worker was at each phase, of all styles."""
    return _spans(parts, lambda part: part.worker)


def _spans(parts: Sequence[DonePart], who: Callable[[DonePart], str]) -> list[Span]:
    order = list(PHASES.values())

    def key(part: DonePart) -> tuple[str, int]:
        return who(part), order.index(part.phase)

    spans = []
    for (name, phase), members in groupby(sorted(parts, key=key), key=key):
        times = [part.at for part in members]
        spans.append(Span(name, order[phase], len(times), min(times), max(times)))
    return spans
