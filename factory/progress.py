"""Live progress of a run on the terminal, from its ledger alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from factory.ledger import Ledger, StyleProgress, pause_state

POLL = 0.5  # s
ENDED = ("done", "failed")
HELD = ("paused", "budget_stopped")


def watch(ledger: Ledger, console: Console, check: Callable[[], None] = lambda: None) -> list[StyleProgress]:
    """Show a run until every style has ended, or waits for a person; returns how each ended.

    ``check`` is called at each look and may raise to stop watching.
    """
    names = [part.style.name for part in ledger.spec.styles]
    width = max(map(len, names))
    bars = Progress(
        TextColumn("{task.fields[mark]}"),
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    )
    with Live(bars, console=console, refresh_per_second=4):
        rows = {name: bars.add_task(name, total=1, mark="[dim]·", note="waiting") for name in names}
        while True:
            check()
            states = [ledger.progress(name) for name in names]
            for state in states:
                _show(bars, rows[state.style], state)
            if all(state.state in ENDED + HELD for state in states):
                break
            time.sleep(POLL)
    if not console.is_terminal:  # a file gets the last state alone, without an end of line
        console.print()
    return states


def _show(bars: Progress, row: TaskID, state: StyleProgress) -> None:
    if bars.tasks[row].finished:
        return
    marks = {"waiting": "[dim]·", "running": "[cyan]>", "evaluating": "[cyan]?", "done": "[green]+", "failed": "[red]x"}
    total = 2 * state.pairs + state.parts
    so_far = state.written + state.extracted + state.evaluated
    complete = total if state.state in ("done", "failed") else min(total - 1, so_far)
    bars.update(row, total=total, completed=complete, mark=marks.get(state.state, "[yellow]!"), note=describe(state))


def describe(state: StyleProgress) -> str:
    """A style's progress in a few words."""
    if state.state in HELD:
        return f"{state.state}: {state.written}/{state.pairs} pairs written"
    if state.state == "evaluating":
        return f"evaluating, {state.evaluated}/{state.parts} parts"
    words = f"{state.extracted}/{state.pairs} pairs extracted"
    if state.written < state.pairs and state.state == "running":
        words = f"{state.written}/{state.pairs} written, {words}"
    if state.failed:
        words += f", [yellow]{state.failed} failed[/yellow]"
    if state.spent_usd:
        words += f", ${state.spent_usd:.4f}"
    return words


def snapshot(ledger: Ledger) -> dict[str, object]:
    """A run's progress as plain data, for ``svf status --json``."""
    states = [ledger.progress(part.style.name) for part in ledger.spec.styles]
    pause = ledger.paused()
    return {
        "run": ledger.run_id,
        "state": _run_state(states, pause),
        "message": pause["message"] if pause else "",
        "spent_usd": max(sum(state.spent_usd for state in states), pause["spent_usd"] if pause else 0.0),
        "max_cost_usd": ledger.max_cost_usd,
        "target_model": ledger.spec.extraction.target_model,
        "styles": [asdict(state) for state in states],
    }


def _run_state(states: list[StyleProgress], pause: dict[str, Any] | None) -> str:
    if all(state.state in ENDED for state in states):
        return "failed" if any(state.state == "failed" for state in states) else "done"
    return pause_state(pause) if pause else "running"
