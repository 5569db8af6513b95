"""The ledger of a run: what is done, in files of the run's folder of the store.

The queue may forget, the ledger does not: every question about progress, repair and resumption is
answered from it. A run has one page for each of its styles (page.py). This module knows neither the
queue nor the models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache

from factory.errors import UnknownRun
from factory.run.entries import (
    Cap,
    Fraction,
    Pause,
    read_entry,
)
from factory.run.listing import (
    BATCHES_FILE,
    BUDGET_FILE,
    FRACTION_FILE,
    OPEN,
    PAUSE_FILE,
    RUN_FILE,
    open_file,
    run_of,
)
from factory.run.page import Page
from factory.run.spec import BatchSpec, RunSpec
from factory.store import Store


class Ledger:
    """What is frozen and done of one run: its specification, pause, budget and open mark, and its styles' pages."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.run_id = run_id
        self._pages: dict[str, Page] = {}

    @property
    def spec(self) -> RunSpec:
        """The run's specification.

        Raises:
            ConfigError: there is no such run in this store.
        """
        return _load_spec(self.store.url, self.run_id)

    def of(self, style: str) -> Page:
        """The page of one style."""
        return self._pages.setdefault(style, Page(self, style))

    @property
    def pages(self) -> list[Page]:
        """The pages of all styles, in the run's order."""
        return [self.of(style_run.style.name) for style_run in self.spec.styles]

    def create(self, spec: RunSpec, batches: Mapping[str, list[BatchSpec]]) -> None:
        """Write down a run before its first message is sent."""
        for style, specs in batches.items():
            self.store.write_json(self.of(style).key(BATCHES_FILE), [asdict(spec) for spec in specs])
        self.store.write_json(self._key(RUN_FILE), spec.model_dump(mode="json"))

    def begun_at(self) -> float:
        """When the run was planned, Unix time by the store's clock; 0 where the store does not tell."""
        return self.store.modified_at(self._key(RUN_FILE))

    # ---- whether a guard looks after it

    def mark_open(self) -> None:
        """Have guards look after this run."""
        key = f"{OPEN}/{open_file(self.run_id)}"
        if not self.store.exists(key):
            self.store.write_json(key, {})

    def mark_closed(self) -> None:
        """The run needs no guard any more."""
        self.store.delete(f"{OPEN}/{open_file(self.run_id)}")

    # ---- its pause and its budget

    def pause(self, reason: str, message: str, spent_usd: float = 0.0) -> None:
        """Stop asking the teacher for this run until a person acts. The first reason stays."""
        if self.paused() is None:
            pause = Pause(reason=reason, message=message, since=time.time(), spent_usd=spent_usd)
            self.store.write_json(self._key(PAUSE_FILE), pause.to_json())

    def paused(self) -> Pause | None:
        """Why the run waits for a person, or None."""
        return read_entry(self.store, self._key(PAUSE_FILE), Pause)

    def unpause(self) -> None:
        """Let the run ask the teacher again."""
        self.store.delete(self._key(PAUSE_FILE))

    @property
    def max_cost_usd(self) -> float | None:
        """What the run may cost: as submitted, unless a resume gave it another cap."""
        changed = read_entry(self.store, self._key(BUDGET_FILE), Cap)
        return changed.max_cost_usd if changed else self.spec.max_cost_usd

    def set_budget(self, max_cost_usd: float) -> None:
        """Give the run another cap, in USD from its beginning."""
        self.store.write_json(self._key(BUDGET_FILE), Cap(max_cost_usd=max_cost_usd).to_json())

    @property
    def max_failed_fraction(self) -> float:
        """Which share of a style's pairs may fail: as submitted, unless a resume said otherwise."""
        changed = read_entry(self.store, self._key(FRACTION_FILE), Fraction)
        return changed.max_failed_fraction if changed else self.spec.max_failed_fraction

    def set_max_failed_fraction(self, fraction: float) -> None:
        """Let another share of each style's pairs fail."""
        self.store.write_json(self._key(FRACTION_FILE), Fraction(max_failed_fraction=fraction).to_json())

    def _key(self, name: str) -> str:
        return f"{self.run_id}/{name}"


# A run's specification never changes, so a worker reads it once.


@lru_cache(maxsize=32)
def _load_spec(url: str, run_id: str) -> RunSpec:
    content = Store(url).read_json(f"{run_id}/{RUN_FILE}")
    if content is None:
        raise UnknownRun(f"run {run_id!r} is not in store {url!r}. 'svf status' shows the newest that is")
    return RunSpec.model_validate(content)


def list_runs(store: Store) -> list[str]:
    """Run ids in the store, oldest first."""
    return [name for name in store.names() if store.exists(f"{name}/{RUN_FILE}")]


def open_runs(store: Store) -> list[Ledger]:
    """The ledgers of all runs that may need the guard."""
    return [Ledger(store, run_of(name)) for name in store.names(OPEN)]
