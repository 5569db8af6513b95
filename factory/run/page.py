"""A page of the ledger: what is done of one style of a run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import JsonValue

from factory.benchmark.item import Task
from factory.benchmark.outcome import Outcome
from factory.evaluation.parts import PartResult, PartsDone, kind_of_part
from factory.frozen import Record
from factory.pairs.styles import Style
from factory.run.entries import (
    Ended,
    Extracted,
    Gradient,
    Kind,
    Learned,
    Reduced,
    Round,
    Stamp,
    Try,
    Written,
    checked_entry,
    read_entry,
)
from factory.run.listing import (
    BATCHES_FILE,
    DATASET_FILE,
    LESSONS_FILE,
    MANIFEST_FILE,
    MEAN_FILE,
    REJECTED_FILE,
    RESULT_FILE,
    VECTOR_FILE,
    Listing,
    Step,
    chord_file,
    entry_file,
    try_file,
)
from factory.run.spec import BatchSpec, StyleRun
from factory.store import Store
from factory.teacher.faults import UNANSWERED

if TYPE_CHECKING:
    from factory.run.ledger import Ledger

STEPS: tuple[Step, ...] = ("written", "extracted", "reduced", "gradient", "round", "learned", "evaluated")
STAMP = "done"  # beside an entry's own fields


class Page:
    """What the ledger says about one style."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self.ledger = ledger
        self.name = name
        self.store = ledger.store
        self._seen: dict[tuple[Step, int], Record] = {}  # entries never change: each is read once
        self._config: dict[str, JsonValue] | None = None

    @property
    def style_run(self) -> StyleRun:
        """What the run's specification says about the style.

        Raises:
            ConfigError: the run does not make it.
        """
        return self.ledger.spec.style_run(self.name)

    @property
    def style(self) -> Style:
        """The style itself."""
        return self.style_run.style

    @property
    def batches(self) -> tuple[BatchSpec, ...]:
        """The batches of the style, by number."""
        return _load_batches(self.store.url, self.ledger.run_id, self.name)

    def listing(self) -> Listing:
        """All files of the style: one request tells what is done."""
        return Listing(frozenset(self.store.names(self.folder)))

    # ---- entries: what went through a step

    def record(
        self, step: Step, number: int, entry: Written | Extracted | Reduced | Gradient | Round | Learned
    ) -> None:
        """Write down that a batch, part or round went through a step, when, and in which process. Twice is once."""
        self._record(step, number, entry.to_json())

    def record_part(self, number: int, part: PartResult | Outcome) -> None:
        """Write down what became of a part of the evaluation."""
        self._record("evaluated", number, part.to_json())

    def _record(self, step: Step, number: int, content: dict[str, JsonValue]) -> None:
        stamp = Stamp(at=round(time.time(), 3), worker=f"{platform.node()}:{os.getpid()}")
        self.store.write_json(self.key(entry_file(step, number)), content | {STAMP: stamp.to_json()})

    def written(self, number: int) -> Written | None:
        """What was written down when the teacher had written a batch, or None."""
        return self._entry("written", number, Written)

    def all_written(self, listing: Listing | None = None) -> list[Written]:
        """Of every batch that the teacher has written, in order; ``listing``: one that is at hand."""
        numbers = (listing or self.listing()).numbers("written")
        return [entry for number in numbers if (entry := self.written(number))]

    def extracted(self, number: int) -> Extracted | None:
        """What was written down when the target model had read a batch, or None."""
        return self._entry("extracted", number, Extracted)

    def all_extracted(self, listing: Listing | None = None) -> list[Extracted]:
        """Of every batch that the target model has read, or that was given up, in order."""
        numbers = (listing or self.listing()).numbers("extracted")
        return [entry for number in numbers if (entry := self.extracted(number))]

    def reduced(self) -> Reduced | None:
        """What was written down when the vector was made, or None."""
        return self._entry("reduced", 0, Reduced)

    def gradient(self, place: int) -> Gradient | None:
        """What was written down when a part of a round of learning was read, or None."""
        return self._entry("gradient", place, Gradient)

    def round(self, number: int) -> Round | None:
        """What was written down when a round of learning was taken, or None."""
        return self._entry("round", number, Round)

    def all_rounds(self, listing: Listing | None = None) -> list[Round]:
        """Of every round of learning that was taken, in order; ``listing``: one that is at hand."""
        numbers = (listing or self.listing()).numbers("round")
        return [entry for number in numbers if (entry := self.round(number))]

    def learned(self) -> Learned | None:
        """What was written down when the learning had ended, or None."""
        return self._entry("learned", 0, Learned)

    def part(self, number: int) -> PartResult | Outcome | None:
        """What became of a part of the evaluation, or None."""
        spec, key = self.ledger.spec.evaluation, self.key(entry_file("evaluated", number))
        content = self.store.read_json(key) if spec else None
        if spec is None or content is None:
            return None
        if number >= len(spec.parts):
            return checked_entry(self.store, key, content, Outcome)
        return checked_entry(self.store, key, content, kind_of_part(spec.parts[number], content))

    def evaluated(self) -> PartsDone:
        """The parts of the evaluation that are done."""
        spec = self.ledger.spec.evaluation
        parts = {name: self.part(number) for number, name in enumerate(spec.parts if spec else [])}
        return PartsDone.of({name: part for name, part in parts.items() if part and not isinstance(part, Outcome)})

    def outcomes(self, task: Task) -> dict[str, Outcome]:
        """What the conditions that are done came to on a task of the evaluation, by role."""
        spec = self.ledger.spec
        start = spec.n_parts - len(spec.task_parts)
        numbers = [start + at for at, part in enumerate(spec.task_parts) if part.task == task]
        found = [part for number in numbers if isinstance(part := self.part(number), Outcome)]
        return {outcome.role: outcome for outcome in found}

    def judge_cost_usd(self) -> float:
        """What the judge of the evaluation has cost, by what is written down."""
        evaluation = self.ledger.spec.evaluation
        return self.evaluated().cost_usd if evaluation and evaluation.judge_model else 0.0

    def _entry(self, step: Step, number: int, kind: type[Kind]) -> Kind | None:
        known = self._seen.get((step, number))
        if isinstance(known, kind):
            return known
        entry = read_entry(self.store, self.key(entry_file(step, number)), kind)
        if isinstance(entry, Extracted) and entry.config == self._config:
            entry = entry.model_copy(update={"config": self._config})  # the same for every batch: kept once
        if isinstance(entry, Extracted):
            self._config = entry.config
        if entry is not None:
            self._seen[step, number] = entry
        return entry

    def stamps(self) -> Iterator[tuple[Step, Stamp]]:
        """Each step that a batch or part went through, with when and where that was."""
        listing = self.listing()
        for step in STEPS:
            for number in listing.numbers(step):
                content = self.store.read_json(self.key(entry_file(step, number))) or {}
                if STAMP in content:
                    yield step, Stamp.model_validate(content[STAMP])

    # ---- batches that are missing, or given up

    def missing_numbers(self) -> list[int]:
        """Numbers of the batches that are not extracted yet."""
        done = set(self.listing().numbers("extracted"))
        return [number for number in range(self.style_run.n_batches) if number not in done]

    def missing_parts(self, *, checks: bool) -> list[int]:
        """Numbers of the parts of the evaluation that are still to do: baselines and cells, or the checks after."""
        spec = self.ledger.spec.evaluation
        if spec is None:
            return []
        n_first, n_all = len(spec.first_parts), self.ledger.spec.n_parts
        done = set(self.listing().numbers("evaluated"))
        return [number for number in (range(n_first, n_all) if checks else range(n_first)) if number not in done]

    def give_up(self, number: int, reason: str) -> None:
        """Write down that a batch cannot be extracted: all its pairs failed for ``reason``."""
        written = self.written(number)
        n_pairs = written.n_pairs if written else self.batches[number].n_pairs
        self.record("extracted", number, Extracted(key=None, n_pairs=0, reasons={reason: n_pairs}))

    def forget_given_up(self) -> None:
        """Let batches that were given up be tried again."""
        listing = self.listing()
        given_up = [n for n in listing.numbers("extracted") if (entry := self.extracted(n)) and entry.key is None]
        for name in [*listing.tries(), *(entry_file("extracted", number) for number in given_up)]:
            self.store.delete(self.key(name))
        self._seen.clear()

    def forget_unanswered(self) -> None:
        """Let batches be written again in which questions failed that were never answered.

        What was answered is not paid again: its replies are kept.
        """
        if self.reduced():
            return
        for number in self.listing().numbers("written"):
            entry = self.written(number)
            if entry and UNANSWERED & entry.reasons.keys():
                self.store.delete(self.key(entry_file("extracted", number)))
                self.store.delete(self.key(entry_file("written", number)))
        self._seen.clear()

    def tries(self, task: str) -> list[Try]:
        """The tries of a task that came more than once. ``task``: such as ``extract_batch-000002``."""
        found = (read_entry(self.store, self.key(name), Try) for name in self.listing().tries(task))
        return [entry for entry in found if entry]

    def note_try(self, task: str, name: str, entry: Try) -> None:
        """Write down a try of a task."""
        self.store.write_json(self.key(try_file(task, name)), entry.to_json())

    # ---- the style's end

    def finish(self, result: Ended) -> None:
        """Write down the style's end."""
        self.store.write_json(self.key(RESULT_FILE), result.to_json())

    def reopen(self) -> None:
        """Forget the style's end, so that it can run again."""
        self.store.delete(self.key(RESULT_FILE))

    @property
    def result(self) -> Ended | None:
        """The style's end, or None while it runs."""
        return read_entry(self.store, self.key(RESULT_FILE), Ended)

    # ---- its chords, of which the ledger knows no more than their names

    def open_chord(self, name: str, record: Mapping[str, object]) -> None:
        """Write down a chord before its first message is sent."""
        self.store.write_json(self.key(chord_file(name)), record)
        self.ledger.mark_open()

    def chord(self, name: str) -> object | None:
        """What was written down of a chord, or None."""
        return self.store.read_json(self.key(chord_file(name)))

    def drop_chord(self, name: str) -> None:
        """Forget a chord."""
        self.store.delete(self.key(chord_file(name)))

    # ---- where artifacts of the style lie in the store

    @property
    def vector_key(self) -> str:
        """Where the vector lies in the store."""
        return self.key(VECTOR_FILE)

    @property
    def mean_key(self) -> str:
        """Where the mean lies in the store from which a run learns; without learning, nothing lies there."""
        return self.key(MEAN_FILE)

    @property
    def lessons_key(self) -> str:
        """Where the pairs lie in the store from which a run learns."""
        return self.key(LESSONS_FILE)

    @property
    def dataset_key(self) -> str:
        """Where the dataset lies in the store."""
        return self.key(DATASET_FILE)

    @property
    def rejected_key(self) -> str:
        """Where the pairs lie that the teacher could not write well enough."""
        return self.key(REJECTED_FILE)

    @property
    def manifest_key(self) -> str:
        """Where the manifest of the dataset lies in the store."""
        return self.key(MANIFEST_FILE)

    @property
    def folder(self) -> str:
        """The style's folder in the store."""
        return f"{self.ledger.run_id}/{self.name}"

    def key(self, name: str) -> str:
        """Where one of the style's files lies in the store."""
        return f"{self.folder}/{name}"


# A style's batches never change, so a worker reads them once.


@lru_cache(maxsize=64)
def _load_batches(url: str, run_id: str, style: str) -> tuple[BatchSpec, ...]:
    content = Store(url).require_json(f"{run_id}/{style}/{BATCHES_FILE}")
    return tuple(BatchSpec(**entry | {"questions": tuple(entry["questions"])}) for entry in content)
