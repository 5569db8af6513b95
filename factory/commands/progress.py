"""Live progress of a run on the terminal, from its ledger alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from factory.commands.counting import SAID_EVERY
from factory.run.entries import Pause
from factory.run.ledger import Ledger
from factory.run.progress import StyleProgress, progress_of
from factory.teacher.spending import Paid

POLL = 0.5  # s
WIDE = 100  # columns; on a terminal with fewer the bars are short, so that what a style does is not cut
ENDED = ("done", "failed")
HELD = ("paused", "budget_stopped")
MARKS = {
    "waiting": "[dim]·",
    "running": "[cyan]>",
    "learning": "[cyan]~",
    "evaluating": "[cyan]?",
    "done": "[green]+",
    "failed": "[red]x",
}


Meters = Callable[[], Mapping[str, Paid]]  # the calls of each style so far, as workers count them


def nothing_known() -> Mapping[str, Paid]:
    """Where nobody counts calls: batches that are written say what they cost."""
    return {}


def progress_of_run(ledger: Ledger, paid: Mapping[str, Paid]) -> list[StyleProgress]:
    """How far each style is; ``paid`` may know of calls in batches that are not written yet."""
    states = [progress_of(page) for page in ledger.pages]
    counted = {style: calls.usd for style, calls in paid.items()}
    return [replace(state, spent_usd=max(state.spent_usd, counted.get(state.style, 0.0))) for state in states]


def watch(
    ledger: Ledger, console: Console, check: Callable[[], None] = lambda: None, meters: Meters = nothing_known
) -> list[StyleProgress]:
    """Show a run until every style has ended, or waits for a person; returns how each ended.

    ``check`` is called at each look and may raise to stop watching; ``meters`` tells the calls so far.
    """
    names = [style_run.style.name for style_run in ledger.spec.styles]
    if not console.is_terminal:
        return _watch_in_lines(ledger, console, check, meters)
    width, bar = max(map(len, names)), 24 if console.width >= WIDE else 10
    bars = Progress(
        TextColumn("{task.fields[mark]}"),
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(bar_width=bar),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    )
    with Live(bars, console=console, refresh_per_second=4):
        rows = {name: bars.add_task(name, total=1, mark="[dim]·", note="waiting") for name in names}
        while True:
            check()
            paid = meters()
            states = progress_of_run(ledger, paid)
            for state in states:
                calls = paid[state.style].calls if state.style in paid else 0
                _show(bars, rows[state.style], state, calls)
            if all(state.state in ENDED + HELD for state in states):
                break
            time.sleep(POLL)
    return states


def _watch_in_lines(ledger: Ledger, console: Console, check: Callable[[], None], meters: Meters) -> list[StyleProgress]:
    """The same for a pipe or a log file: one plain line per style now and then, where it moved, and at its end."""
    said: dict[str, str] = {}
    began, last = time.monotonic(), -SAID_EVERY
    while True:
        check()
        paid = meters()
        states = progress_of_run(ledger, paid)
        due = time.monotonic() - last >= SAID_EVERY
        for state in states:
            calls = paid[state.style].calls if state.style in paid else 0
            words = Text.from_markup(describe_progress(state, calls)).plain
            line = f"{state.style}: {words if words.startswith(state.state) else f'{state.state}, {words}'}"
            if said.get(state.style) != line and (due or state.state in ENDED + HELD):
                console.print(f"[{time.monotonic() - began:4.0f} s] {line}", soft_wrap=True, markup=False)
                said[state.style] = line
        last = time.monotonic() if due else last
        if all(state.state in ENDED + HELD for state in states):
            return states
        time.sleep(POLL)


def _show(bars: Progress, row: TaskID, state: StyleProgress, calls: int) -> None:
    if bars.tasks[row].finished:
        return
    total = 2 * state.pairs + state.rounds + state.parts
    so_far = state.written + state.extracted + state.learned + state.evaluated
    if state.state == "evaluating":
        so_far += state.rounds - state.learned  # learning may stop before its last round
    complete = total if state.state in ("done", "failed") else min(total - 1, so_far)
    bars.update(
        row,
        total=total,
        completed=complete,
        mark=MARKS.get(state.state, "[yellow]!"),
        note=describe_progress(state, calls),
    )


def describe_progress(state: StyleProgress, calls: int = 0) -> str:
    """A style's progress in a few words; ``calls``: of the teacher that were answered."""
    if state.state in HELD:
        return f"{state.state}: {state.written}/{state.pairs} pairs written"
    if state.state == "learning":
        return _describe_learning(state)
    if state.state == "evaluating":
        return f"evaluating, {state.evaluated}/{state.parts} parts"
    words = f"{state.extracted}/{state.pairs} pairs extracted"
    if state.written < state.pairs and (state.state == "running" or calls):
        words = f"{state.written}/{state.pairs} written, {words}"
        words = f"{calls} answers, {words}" if calls else words
    if state.failed:
        words += f", [yellow]{state.failed} failed[/yellow]"
    if state.spent_usd:
        words += f", ${state.spent_usd:.4f}"
    return words


def _describe_learning(state: StyleProgress) -> str:
    most = state.rounds - 1  # the last one takes no step
    words = f"learning {min(state.learned, most)}/{most}"
    if state.loss is not None:
        words += f", loss {state.loss:.2f}"
    return words if state.validation is None else f"{words}, val {state.validation:.2f}"


def snapshot(ledger: Ledger, meters: Meters = nothing_known) -> dict[str, object]:
    """A run's progress as plain data, for ``svf status --json``."""
    states = progress_of_run(ledger, meters())
    pause = ledger.paused()
    return {
        "run": ledger.run_id,
        "state": _run_state(states, pause),
        "message": pause.message if pause else "",
        "spent_usd": max(sum(state.spent_usd for state in states), pause.spent_usd if pause else 0.0),
        "max_cost_usd": ledger.max_cost_usd,
        "target_model": ledger.spec.extraction.target_model,
        "styles": [asdict(state) for state in states],
    }


def _run_state(states: list[StyleProgress], pause: Pause | None) -> str:
    if all(state.state in ENDED for state in states):
        return "failed" if any(state.state == "failed" for state in states) else "done"
    return pause.state if pause else "running"
