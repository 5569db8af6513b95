"""Counts the workers that a task has taken with it, so that a poisoned one is given up.

Only a message that comes a second time is written down: the usual task costs no request. An
attempt whose worker is alive does not count, as a slow task may be delivered twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from uuid import uuid4

from factory.run.ledger import Ledger

MAX_TRIES = 3


@lru_cache(maxsize=1)
def this_worker() -> dict[str, Any]:
    """Who we are. A container that starts again has its old host name and process id: hence the token."""
    return {"host": os.uname().nodename, "pid": os.getpid(), "token": uuid4().hex}


def is_alive(worker: dict[str, Any], now: float, longest: float) -> bool:
    """Whether the worker of an attempt may still be at it."""
    me = this_worker()
    if worker["token"] == me["token"]:
        return True
    if worker["host"] != me["host"]:  # cannot be seen from here: believed for as long as a task may take
        return now - float(worker["since"]) < longest
    if worker["pid"] == me["pid"]:
        return False
    try:
        os.kill(worker["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Attempts:
    """The tries of one task."""

    def __init__(self, ledger: Ledger, style: str, task: str, came_again: bool, longest: float) -> None:
        """``task``: its name within the style. ``longest``: seconds that a task may take."""
        self.ledger, self.style, self.task = ledger, style, task
        self.came_again = came_again
        self.longest = longest

    def exhausted(self) -> bool:
        """Whether so many workers died of this task that the next would too."""
        if not self.came_again:
            return False
        tries = [entry for entry in self.ledger.attempts(self.style, self.task).values() if not entry["ended"]]
        dead = [entry for entry in tries if not is_alive(entry, time.time(), self.longest)]
        return 1 + len(dead) >= MAX_TRIES  # the first try was not written down

    @contextmanager
    def one(self) -> Iterator[None]:
        """One more try."""
        if not self.came_again:
            yield
            return
        name = uuid4().hex[:8]
        entry = this_worker() | {"since": time.time(), "ended": False}
        self.ledger.note_attempt(self.style, self.task, name, entry)
        try:
            yield
        finally:
            self.ledger.note_attempt(self.style, self.task, name, entry | {"ended": True})
