"""How far a command is that counts what it does: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

SAID_EVERY = 10.0  # s between lines where there is no terminal for a bar


@contextmanager
def counting(console: Console, work: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how much of ``total`` is done of ``work``, such as ``calm, parts``; gives what is called with each gain."""
    if not console.is_terminal:
        yield _in_lines(console, work, total)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
    with bar:
        row = bar.add_task(work, total=total)
        yield lambda gain: bar.advance(row, gain)


def _in_lines(console: Console, work: str, total: int) -> Callable[[int], None]:
    began = last = time.monotonic()
    done = 0

    def gained(gain: int) -> None:
        nonlocal last, done
        done, now = done + gain, time.monotonic()
        if now - last >= SAID_EVERY:
            last = now
            console.print(Text(f"[{now - began:4.0f} s] {work}: {done}/{total}"), soft_wrap=True)

    return gained
