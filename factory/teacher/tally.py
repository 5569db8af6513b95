"""What the worker processes have paid for a run, each in one object of the store.

The replies hold every price too, but a run may have a million of them. From the tallies an empty
purse is filled with as many reads as there were worker processes.
"""

from __future__ import annotations

import os
import threading
import uuid
from functools import lru_cache

from factory.store import Store


class Tally:
    """One process' payments for one run. Any number of threads."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self._key = f"spending/{run_id}/{uuid.uuid4().hex[:12]}.json"
        self._usd = 0.0
        self._lock = threading.Lock()

    def add(self, usd: float) -> None:
        """A call was paid, or may have been."""
        if usd <= 0:
            return
        with self._lock:
            self._usd += usd
            self.store.write_json(self._key, {"usd": self._usd})


@lru_cache(maxsize=64)
def _tally_of(process: int, url: str, run_id: str) -> Tally:
    return Tally(Store(url), run_id)


def tally_of(store: Store, run_id: str) -> Tally:
    """This process' tally of a run."""
    return _tally_of(os.getpid(), store.url, run_id)


def paid_by_all(store: Store, run_id: str) -> float:
    """What all processes together have paid for a run, in USD."""
    folder = f"spending/{run_id}"
    return float(sum((store.read_json(f"{folder}/{name}") or {}).get("usd", 0.0) for name in store.names(folder)))
