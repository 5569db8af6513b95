"""The ledger of a run: what is done, in files of the run's folder of the store.

The queue may forget, the ledger does not: every question about progress, repair and resumption is
answered from it. This module knows neither the queue nor the models.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from factory.errors import ConfigError
from factory.run.spec import BatchSpec, RunSpec
from factory.store import Store
from factory.teacher.faults import UNANSWERED

RUN_FILE = "run.json"
PAUSE_FILE = "pause.json"
BUDGET_FILE = "budget.json"
FRACTION_FILE = "max_failed_fraction.json"
OPEN = "open"  # folder of the store with one empty entry for each run that may need the guard


@dataclass(frozen=True)
class StyleProgress:
    """How far one style is, in pairs. ``state``: waiting, running, evaluating, done or failed.

    Where nothing more can be done until a person acts, it is paused or budget_stopped.
    ``parts``: into how many parts its evaluation is cut; ``evaluated``: how many are done.
    """

    style: str
    state: str
    pairs: int
    written: int
    extracted: int
    failed: int
    reasons: dict[str, int]
    spent_usd: float
    message: str = ""
    parts: int = 0
    evaluated: int = 0
    peak_memory_mib: int = 0


Step = Literal["written", "extracted", "reduced", "evaluated"]


class Ledger:
    """What is done of one run, in files of its folder of the store."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.run_id = run_id
        self._seen: dict[str, dict[str, Any]] = {}  # entries never change: each is read once
        self._config: dict[str, Any] | None = None

    @property
    def spec(self) -> RunSpec:
        """The run's specification.

        Raises:
            ConfigError: there is no such run in this store.
        """
        return _load_spec(self.store.url, self.run_id)

    def batches(self, style: str) -> tuple[BatchSpec, ...]:
        """The batches of a style, by number."""
        return _load_batches(self.store.url, self.run_id, style)

    def create(self, spec: RunSpec, batches: dict[str, list[BatchSpec]]) -> None:
        """Write down a run before its first message is sent."""
        for style, parts in batches.items():
            self.store.write_json(self._key(style, "batches.json"), [asdict(part) for part in parts])
        self.store.write_json(f"{self.run_id}/{RUN_FILE}", spec.model_dump(mode="json"))

    def record(self, style: str, step: Step, number: int, entry: dict[str, Any]) -> None:
        """Write down that a batch went through a step, when, and in which process. Twice is once."""
        done = {"at": round(time.time(), 3), "worker": f"{platform.node()}:{os.getpid()}"}
        self.store.write_json(self._key(style, f"{step}-{number:06d}.json"), entry | {"done": done})

    def done_by(self, style: str, step: Step, number: int) -> dict[str, Any] | None:
        """Which ``worker`` did a part, and ``at`` what Unix time. Apart from its entry, which decides bytes."""
        entry = self.store.read_json(self._key(style, f"{step}-{number:06d}.json"))
        return entry and entry.get("done")

    def begun_at(self) -> float:
        """When the run was planned, Unix time by the store's clock; 0 where the store does not tell."""
        return self.store.modified_at(f"{self.run_id}/{RUN_FILE}")

    def entry(self, style: str, step: Step, number: int) -> dict[str, Any] | None:
        """What was written down of a batch at a step, or None."""
        key = self._key(style, f"{step}-{number:06d}.json")
        if key not in self._seen:
            entry = self.store.read_json(key)
            if entry is None:
                return None
            entry.pop("done", None)
            config = entry.get("config")  # the same for every batch: kept once
            if config is not None and config == self._config:
                entry["config"] = self._config
            self._config = entry.get("config")
            self._seen[key] = entry
        return self._seen[key]

    def finish(self, style: str, result: dict[str, Any]) -> None:
        """Write down a style's end: ``state`` done or failed, and what goes with it."""
        self.store.write_json(self._key(style, "result.json"), result)

    def reopen(self, style: str) -> None:
        """Forget a style's end, so that it can run again."""
        self.store.delete(self._key(style, "result.json"))

    def result(self, style: str) -> dict[str, Any] | None:
        """A style's end, or None while it runs."""
        result: dict[str, Any] | None = self.store.read_json(self._key(style, "result.json"))
        return result

    def done_numbers(self, style: str, step: Step) -> set[int]:
        """Numbers of the batches that went through a step."""
        return _numbers_among(self.files(style), step)

    def missing_numbers(self, style: str) -> list[int]:
        """Numbers of the batches that are not extracted yet."""
        done = self.done_numbers(style, "extracted")
        return [number for number in range(self.spec.style_run(style).n_batches) if number not in done]

    def open_chord(self, style: str, name: str, record: dict[str, Any]) -> None:
        """Write down a chord before its first message is sent."""
        self.store.write_json(self._key(style, f"chord-{name}.json"), record)
        self.mark_open()

    def chord(self, style: str, name: str) -> dict[str, Any] | None:
        """What was written down of a chord, or None."""
        record: dict[str, Any] | None = self.store.read_json(self._key(style, f"chord-{name}.json"))
        return record

    def chord_names(self, style: str) -> list[str]:
        """Names of the chords of a style that were written down."""
        names = [name for name in self.files(style) if name.startswith("chord-")]
        return [name[len("chord-") : -len(".json")] for name in names]

    def drop_chord(self, style: str, name: str) -> None:
        """Forget a chord."""
        self.store.delete(self._key(style, f"chord-{name}.json"))

    def mark_open(self) -> None:
        """Have guards look after this run."""
        key = f"{OPEN}/{self.run_id}.json"
        if not self.store.exists(key):
            self.store.write_json(key, {})

    def mark_closed(self) -> None:
        """The run needs no guard any more."""
        self.store.delete(f"{OPEN}/{self.run_id}.json")

    def pause(self, reason: str, message: str, spent_usd: float = 0.0) -> None:
        """Stop asking the teacher for this run until a person acts. The first reason stays."""
        if self.paused() is None:
            content = {"reason": reason, "message": message, "since": time.time(), "spent_usd": spent_usd}
            self.store.write_json(f"{self.run_id}/{PAUSE_FILE}", content)

    def paused(self) -> dict[str, Any] | None:
        """Why the run waits for a person (``reason``, ``message``, ``since``, ``spent_usd``), or None."""
        pause: dict[str, Any] | None = self.store.read_json(f"{self.run_id}/{PAUSE_FILE}")
        return pause

    def unpause(self) -> None:
        """Let the run ask the teacher again."""
        self.store.delete(f"{self.run_id}/{PAUSE_FILE}")

    @property
    def max_cost_usd(self) -> float | None:
        """What the run may cost: as submitted, unless a resume gave it another cap."""
        changed = self.store.read_json(f"{self.run_id}/{BUDGET_FILE}")
        return changed["max_cost_usd"] if changed else self.spec.max_cost_usd

    def set_budget(self, max_cost_usd: float) -> None:
        """Give the run another cap, in USD from its beginning."""
        self.store.write_json(f"{self.run_id}/{BUDGET_FILE}", {"max_cost_usd": max_cost_usd})

    @property
    def max_failed_fraction(self) -> float:
        """Which share of a style's pairs may fail: as submitted, unless a resume said otherwise."""
        changed = self.store.read_json(f"{self.run_id}/{FRACTION_FILE}")
        return float(changed["max_failed_fraction"]) if changed else self.spec.max_failed_fraction

    def set_max_failed_fraction(self, fraction: float) -> None:
        """Let another share of each style's pairs fail."""
        self.store.write_json(f"{self.run_id}/{FRACTION_FILE}", {"max_failed_fraction": fraction})

    def forget_unanswered(self, style: str) -> None:
        """Let batches be written again in which questions failed that were never answered.

        What was answered is not paid again: its replies are kept.
        """
        if self.entry(style, "reduced", 0):
            return
        for number in self.done_numbers(style, "written"):
            entry = self.entry(style, "written", number) or {}
            if UNANSWERED & entry.get("reasons", {}).keys():
                self.store.delete(self._key(style, f"extracted-{number:06d}.json"))
                self.store.delete(self._key(style, f"written-{number:06d}.json"))
        self._seen.clear()

    def files(self, style: str) -> list[str]:
        """Names of all files of a style: one listing tells what is done."""
        return self.store.names(f"{self.run_id}/{style}")

    def attempts(self, style: str, task: str) -> dict[str, dict[str, Any]]:
        """The tries of a task that came more than once, by name. ``task``: such as ``batch-000002``."""
        names = [name for name in self.files(style) if name.startswith(f"attempt-{task}-")]
        entries = {name: self.store.read_json(self._key(style, name)) for name in names}
        return {name: entry for name, entry in entries.items() if entry}

    def note_attempt(self, style: str, task: str, name: str, entry: dict[str, Any]) -> None:
        """Write down a try of a task."""
        self.store.write_json(self._key(style, f"attempt-{task}-{name}.json"), entry)

    def give_up(self, style: str, number: int, reason: str) -> None:
        """Write down that a batch cannot be extracted: all its pairs failed for ``reason``."""
        written = self.entry(style, "written", number)
        n_pairs = written["n_pairs"] if written else self.batches(style)[number].n_pairs
        self.record(style, "extracted", number, {"key": None, "n_pairs": 0, "reasons": {reason: n_pairs}})

    def forget_given_up(self, style: str) -> None:
        """Let batches that were given up be tried again."""
        for name in self.files(style):
            entry = self.store.read_json(self._key(style, name)) if name.startswith("extracted-") else None
            if name.startswith("attempt-") or (entry is not None and entry["key"] is None):
                self.store.delete(self._key(style, name))
        self._seen.clear()

    def vector_key(self, style: str) -> str:
        """Where a style's vector lies in the store."""
        return self._key(style, "vector.pt")

    def dataset_key(self, style: str) -> str:
        """Where a style's dataset lies in the store."""
        return self._key(style, "pairs.jsonl")

    def rejected_key(self, style: str) -> str:
        """Where the pairs that the teacher could not write well enough lie in the store."""
        return self._key(style, "rejected.jsonl")

    def manifest_key(self, style: str) -> str:
        """Where the manifest of a style's dataset lies in the store."""
        return self._key(style, "manifest.json")

    def progress(self, style: str) -> StyleProgress:
        """How far a style is."""
        part = self.spec.style_run(style)
        result = self.result(style)
        files = self.files(style)  # listed once, as this is asked at every look at a run
        written, extracted, evaluated = (
            [self.entry(style, step, number) or {} for number in sorted(_numbers_among(files, step))]
            for step in ("written", "extracted", "evaluated")
        )
        reduced = self.entry(style, "reduced", 0)
        reasons: dict[str, int] = {}
        for entry in [*written, *extracted, *([reduced] if reduced else [])]:
            for reason, count in entry.get("reasons", {}).items():
                reasons[reason] = reasons.get(reason, 0) + count
        started = bool(written or extracted)
        running = "evaluating" if reduced else "running" if started else "waiting"
        pause = self.paused() if part.from_teacher and not result else None
        readable = len(written) + sum(1 for batch in self.batches(style) if batch.pairs_key)
        if pause and readable < part.n_batches and len(extracted) >= readable:
            running = pause_state(pause)
        return StyleProgress(
            style=style,
            state=result["state"] if result else running,
            pairs=part.n_pairs,
            written=sum(b.n_pairs for b in self.batches(style) if b.pairs_key) + sum(e["n_pairs"] for e in written),
            extracted=sum(entry["n_pairs"] for entry in extracted),
            failed=sum(reasons.values()),
            reasons=reasons,
            spent_usd=sum(entry.get("cost_usd", 0.0) for entry in [*written, *evaluated]),
            message=result.get("message", "") if result else pause["message"] if pause else "",
            parts=len(self.spec.evaluation.parts) if self.spec.evaluation else 0,
            evaluated=len(evaluated),
            peak_memory_mib=max((entry.get("peak_memory_mib", 0) for entry in extracted), default=0),
        )

    def judged(self, style: str) -> list[dict[str, Any]]:
        """The parts of a style's evaluation for which a judge was asked, who may have cost something."""
        evaluation = self.spec.evaluation
        if evaluation is None or evaluation.judge_model is None:
            return []
        return [
            self.entry(style, "evaluated", number) or {} for number in sorted(self.done_numbers(style, "evaluated"))
        ]

    def _key(self, style: str, name: str) -> str:
        return f"{self.run_id}/{style}/{name}"


def _numbers_among(files: Iterable[str], step: Step) -> set[int]:
    """Of a style's files those of a step, by number."""
    prefix = f"{step}-"
    return {int(name[len(prefix) : -len(".json")]) for name in files if name.startswith(prefix)}


def pause_state(pause: dict[str, Any]) -> str:
    """The state of a run that waits for a person: ``budget_stopped`` or ``paused``."""
    return "budget_stopped" if pause["reason"] == "budget_stopped" else "paused"


# A run's specification never changes, so a worker reads it once.


@lru_cache(maxsize=32)
def _load_spec(url: str, run_id: str) -> RunSpec:
    content = Store(url).read_json(f"{run_id}/{RUN_FILE}")
    if content is None:
        raise ConfigError(f"run {run_id!r} is not in store {url!r}. 'svf status' without a run lists those that are")
    return RunSpec.model_validate(content)


@lru_cache(maxsize=64)
def _load_batches(url: str, run_id: str, style: str) -> tuple[BatchSpec, ...]:
    content = Store(url).require_json(f"{run_id}/{style}/batches.json")
    return tuple(BatchSpec(**part | {"questions": tuple(part["questions"])}) for part in content)


def list_runs(store: Store) -> list[str]:
    """Run ids in the store, oldest first."""
    return [name for name in store.names() if store.exists(f"{name}/{RUN_FILE}")]


def missing_parts(ledger: Ledger, style: str, *, checks: bool) -> list[int]:
    """Numbers of the parts that are still to do: baselines and cells, or the checks after them."""
    spec = ledger.spec.evaluation
    if spec is None:
        return []
    n_first, n_all = len(spec.first_parts), len(spec.parts)
    done = ledger.done_numbers(style, "evaluated")
    return [number for number in (range(n_first, n_all) if checks else range(n_first)) if number not in done]


def done_parts(ledger: Ledger, style: str) -> dict[str, dict[str, Any]]:
    """What became of the parts that are done, by name."""
    spec = ledger.spec.evaluation
    parts = enumerate(spec.parts if spec else [])
    entries = {part: ledger.entry(style, "evaluated", number) for number, part in parts}
    return {part: entry for part, entry in entries.items() if entry is not None}
