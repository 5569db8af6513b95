"""``svf report``: the page of a run."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from factory.commands.ledgers import find_ledger
from factory.commands.options import config_option, open_job, output_option
from factory.commands.prose import say
from factory.run.entries import Ended
from factory.run.ledger import Ledger

LONGEST_EXAMPLE = 420  # characters on the terminal


@click.command()
@click.argument("run", required=False)
@click.option("--summary", is_flag=True, help="Write one short page instead, to print or to mail.")
@config_option
@output_option
def report(run: str | None, *, summary: bool, config_file: Path | None, output: Path) -> int:
    """Write the report of RUN (the newest without a name): one HTML page; prints its path."""
    from factory.report.page import write_report, write_summary

    job = open_job(config_file, output)
    click.echo((write_summary if summary else write_report)(find_ledger(job, run)))
    return 0


def show_measured(ledger: Ledger, console: Console) -> None:
    """What was measured of each style of an evaluated run, and some of its answers."""
    for page in ledger.pages:
        result = page.result
        if result and result.message:
            say(console, Text.assemble((page.name, "yellow"), f": {result.message}"))
        elif result and result.verdict:
            verdict = f": {result.verdict} ({_shares(result)}; {result.setting})"
            say(console, Text.assemble((page.name, "bold"), verdict))
    show_examples(ledger, console)


def _shares(result: Ended) -> str:
    """How many answers are in the style and how many loop, with the vector and with the mean that it came from."""
    shares = f"{result.steered:.0%} of answers in the style, {result.unsteered:.0%} unsteered"
    if result.mean is not None:
        shares += f", {result.mean:.0%} with the mean that it was learned from"
    if result.loops is not None:  # runs of older versions did not write it down
        shares += f"; {result.loops:.0%} loop"
        shares += f", {result.mean_loops:.0%} with the mean" if result.mean_loops is not None else ""
    return shares


def show_examples(ledger: Ledger, console: Console) -> None:
    """An unsteered and a steered answer of each evaluated style, side by side (three where there is one style)."""
    from factory.report.shown import examples

    ended = [page for page in ledger.pages if page.result]
    for page in ended:
        for row in examples(page, count=max(1, 3 // len(ended))):
            answers = {name: row.answers[name] for name in ("unsteered", "steered")}
            grid = Table.grid(expand=True, padding=(0, 1))
            for _ in answers:
                grid.add_column(ratio=1)
            titles = [
                f"{name}, {answer.markers} marker{'s' * (answer.markers != 1)}" for name, answer in answers.items()
            ]
            texts = [Text(_shortened(answer.text)) for answer in answers.values()]
            grid.add_row(*(Panel(text, title=title) for title, text in zip(titles, texts, strict=True)))
            console.print(Text.assemble("\n", (page.name, "bold"), f": {row.question}"), grid)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_EXAMPLE else text[:LONGEST_EXAMPLE].rsplit(" ", 1)[0] + " ..."
