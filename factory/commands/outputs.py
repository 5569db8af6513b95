"""What a command writes and says when a run has ended, wherever the run was made."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console
from rich.text import Text

from factory.cluster.folder_lock import writing_alone
from factory.commands.options import Job
from factory.commands.progress import HELD
from factory.commands.report import show_measured
from factory.config import DEFAULT_FILE
from factory.run.export import export_style, vector_path
from factory.run.ledger import Ledger
from factory.run.progress import StyleProgress


def resume_command(job: Job, ledger: Ledger) -> str:
    """What goes on with a run on this machine, to be typed as it stands."""
    return f"svf resume {ledger.run_id} --here{_config(job)}{_output(job)}"


def watch_command(job: Job, ledger: Ledger) -> str:
    """What shows a run until it ends and writes its outputs, to be typed as it stands, here."""
    return f"svf watch {ledger.run_id}{_config(job)}{_output(job)}"


def write_outputs(job: Job, ledger: Ledger, states: list[StyleProgress], console: Console) -> int:
    """Write the outputs of the styles that are done, and the report of an evaluated run; returns the exit status.

    Also says what became of each style, and what to do next.
    """
    _say_what_waits(job, ledger, states, console)
    vectors = export_done(job, ledger, states, console)
    evaluated = bool(ledger.spec.evaluation and vectors)
    if evaluated:
        _report(ledger, console)
    if vectors:
        _say_what_is_next(job, ledger, vectors, console, reported=evaluated)
    return 0 if all(state.state == "done" for state in states) else 1


def export_done(job: Job, ledger: Ledger, states: list[StyleProgress], console: Console) -> list[Path]:
    """Write the files of the styles that are done, and say where; returns the paths of their vectors."""
    paths = []
    for state in states:
        if state.state != "done":
            continue
        with writing_alone(vector_path(job.output, state.style).parent):
            paths.append(export_style(ledger.of(state.style), job.output, job.settings.output_config))
        _say(console, (state.style, "green"), f": {state.extracted} pairs -> {paths[-1]}")
        if state.message and not ledger.spec.evaluation:  # else it stands among what was measured
            _say(console, (state.style, "yellow"), f": {state.message}")
    return paths


def _say_what_waits(job: Job, ledger: Ledger, states: list[StyleProgress], console: Console) -> None:
    """Why the run waits for a person, or why a style failed."""
    pause = ledger.paused()
    if pause and any(state.state in HELD for state in states):
        _say(console, ("paused", "yellow"), f" after ${pause.spent_usd:.4f}: {pause.message}")
        _say(console, f"to go on on this machine: {resume_command(job, ledger)}")
    for state in states:
        if state.state == "failed":
            _say(console, (state.style, "red"), f": {state.message}")


def _report(ledger: Ledger, console: Console) -> None:
    """Write the page of an evaluated run, and show what was measured."""
    from factory.report.page import write_report

    page = write_report(ledger)  # before anything is shown: what the terminal cannot do costs no report
    show_measured(ledger, console)
    _say(console, f"\nreport: {page}")


def _say_what_is_next(job: Job, ledger: Ledger, vectors: list[Path], console: Console, *, reported: bool) -> None:
    first = shlex.quote(str(vectors[0]))
    folder = shlex.quote(str(vectors[0].parent))
    _say(console, f'to compare answers: svf steer {first} -p "..."{_config(job)}')
    _say(console, f"to serve steered answers: svf serve {folder}{_config(job)}")
    if not reported:
        _say(console, f"to see the run as a page: svf report {ledger.run_id}{_config(job)}{_output(job)}")


def _say(console: Console, *parts: str | tuple[str, str]) -> None:
    """A line as it is: what people and models wrote is no markup, and a path is not cut."""
    console.print(Text.assemble(*parts), soft_wrap=True)


def _config(job: Job) -> str:
    file = job.configuration.file
    return "" if file is None or file == Path(DEFAULT_FILE) else f" --config {shlex.quote(str(file))}"


def _output(job: Job) -> str:
    return "" if job.output == Path() else f" --output {shlex.quote(str(job.output))}"
