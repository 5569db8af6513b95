"""What a command writes and says when a run has ended."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from factory.commands.options import Job
from factory.commands.progress import HELD
from factory.run.export import export_style
from factory.run.ledger import Ledger
from factory.run.progress import StyleProgress


def _export(job: Job, ledger: Ledger, states: list[StyleProgress], console: Console) -> None:
    """Write the outputs of the styles that are done, and say what became of each."""
    pause = ledger.paused()
    if pause and any(state.state in HELD for state in states):
        where = "" if job.output == Path() else f" --output {job.output}"
        after = f" after ${pause.spent_usd:.4f}: {pause.message}"
        console.print(Text.assemble(("paused", "yellow"), after), soft_wrap=True)
        console.print(Text(f"to go on on this machine: svf resume {ledger.run_id} --here{where}"), soft_wrap=True)
    for state in states:
        if state.state == "failed":
            console.print(Text.assemble((state.style, "red"), f": {state.message}"), soft_wrap=True)
        if state.state != "done":
            continue
        path = export_style(ledger.of(state.style), job.output, job.settings.output_config)
        console.print(Text.assemble((state.style, "green"), f": {state.extracted} pairs -> {path}"), soft_wrap=True)


def finish(job: Job, ledger: Ledger, states: list[StyleProgress]) -> int:
    """Write the outputs of a run's finished styles; returns the exit status."""
    for message in dict.fromkeys(f"{_about(state)}: {state.message}" for state in states if state.state != "done"):
        click.echo(message, err=True)
    for state in states:
        if state.state != "done":
            continue
        path = export_style(ledger.of(state.style), job.output, job.settings.output_config)
        click.echo(f"{state.style}: {state.extracted} pairs -> {path}")
    return 0 if all(state.state == "done" for state in states) else 1


def _about(state: StyleProgress) -> str:
    """What a message is about: a style that failed, or the whole run that waits."""
    return state.style if state.state == "failed" else f"run {state.state}"
