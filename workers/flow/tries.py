"""Counts the workers that a task has taken with it, so that a poisoned one is given up.

Only a message that comes a second time is written down: the usual task costs no request. A
try whose worker is alive does not count, as a slow task may be delivered twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from uuid import uuid4

from factory.run.entries import Try, Worker
from factory.run.page import Page

MAX_TRIES = 3


@lru_cache(maxsize=1)
def this_worker() -> Worker:
    """Who we are. A container that starts again has its old host name and process id: hence the token."""
    return Worker(host=os.uname().nodename, pid=os.getpid(), token=uuid4().hex)


def is_alive(worker: Try, now: float, longest: float) -> bool:
    """Whether the worker of a try may still be at it."""
    me = this_worker()
    if worker.token == me.token:
        return True
    if worker.host != me.host:  # cannot be seen from here: believed for as long as a task may take
        return now - worker.since < longest
    if worker.pid == me.pid:
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Tries:
    """The tries of one task."""

    def __init__(self, page: Page, task: str, came_again: bool, longest: float) -> None:
        """``task``: its name within the style. ``longest``: seconds that a task may take."""
        self.page, self.task = page, task
        self.came_again = came_again
        self.longest = longest

    def exhausted(self) -> bool:
        """Whether so many workers died of this task that the next would too."""
        if not self.came_again:
            return False
        tries = [entry for entry in self.page.tries(self.task) if not entry.ended]
        dead = [entry for entry in tries if not is_alive(entry, time.time(), self.longest)]
        return 1 + len(dead) >= MAX_TRIES  # the first try was not written down

    @contextmanager
    def one(self) -> Iterator[None]:
        """One more try."""
        if not self.came_again:
            yield
            return
        name, me = uuid4().hex[:8], this_worker()
        begun = Try(host=me.host, pid=me.pid, token=me.token, since=time.time(), ended=False)
        self.page.note_try(self.task, name, begun)
        try:
            yield
        finally:
            self.page.note_try(self.task, name, begun.model_copy(update={"ended": True}))
