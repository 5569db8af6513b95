"""The files of a run in the store: how they are called, and what one listing of a style's folder tells.

No other module knows these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Step = Literal["written", "extracted", "reduced", "gradient", "round", "learned", "evaluated"]

# ---- of a run
RUN_FILE = "run.json"
PAUSE_FILE = "pause.json"
BUDGET_FILE = "budget.json"
FRACTION_FILE = "max_failed_fraction.json"
OPEN = "open"  # folder of the store with one empty entry for each run that may need the guard

# ---- of a style
BATCHES_FILE = "batches.json"
RESULT_FILE = "result.json"
VECTOR_FILE = "vector.pt"
MEAN_FILE = "mean.pt"  # of a run that learns: where learning begins
LESSONS_FILE = "lessons.json"  # the pairs that are learned from
DATASET_FILE = "pairs.jsonl"
REJECTED_FILE = "rejected.jsonl"
MANIFEST_FILE = "manifest.json"

_ENDING = ".json"
_CHORD = "chord-"
_TRY = "attempt-"


def entry_file(step: Step, number: int) -> str:
    """The entry of batch, part or round ``number`` at ``step``."""
    return f"{step}-{number:06d}{_ENDING}"


def chord_file(name: str) -> str:
    """The record of a chord."""
    return f"{_CHORD}{name}{_ENDING}"


def try_file(task: str, name: str) -> str:
    """One try of ``task``, such as ``extract_batch-000002``."""
    return f"{_TRY}{task}-{name}{_ENDING}"


def open_file(run_id: str) -> str:
    """The mark of a run that may need the guard; in folder :data:`OPEN`."""
    return f"{run_id}{_ENDING}"


def run_of(name: str) -> str:
    """The run that a file of folder :data:`OPEN` is about."""
    return name.removesuffix(_ENDING)


@dataclass(frozen=True)
class Listing:
    """The names of all files of a style at one moment."""

    names: frozenset[str]

    @property
    def ended(self) -> bool:
        """Whether the style has ended."""
        return RESULT_FILE in self.names

    @property
    def chords(self) -> list[str]:
        """Names of the chords that were written down."""
        return self._between(_CHORD)

    def has(self, step: Step, number: int) -> bool:
        """Whether batch, part or round ``number`` went through ``step``."""
        return entry_file(step, number) in self.names

    def numbers(self, step: Step) -> list[int]:
        """Numbers of the batches, parts or rounds that went through ``step``, in order."""
        return sorted(map(int, self._between(f"{step}-")))

    def tries(self, task: str = "") -> list[str]:
        """Files of the tries of ``task``, of all tasks without one."""
        prefix = f"{_TRY}{task}-" if task else _TRY
        return sorted(name for name in self.names if name.startswith(prefix))

    def _between(self, prefix: str) -> list[str]:
        """What stands between ``prefix`` and the ending, of the files that have both."""
        found = (name for name in self.names if name.startswith(prefix) and name.endswith(_ENDING))
        return sorted(name[len(prefix) : -len(_ENDING)] for name in found)
