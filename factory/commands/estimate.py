"""``svf estimate``: what a run will take, before it starts."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from factory.commands.options import Job, job_options, json_option
from factory.estimate import Estimate, StyleEstimate, estimate_run


@click.command()
@job_options
@json_option
def estimate(job: Job, as_json: bool) -> int:
    """Show calls, tokens and cost (low - high) of a run. Asks nobody and starts nothing.

    Low: answers of the usual length. High: every answer as long as max_response_tokens allows.
    Answers that the store already holds are not counted.
    """
    found = estimate_run(job.settings, job.store, job.output, limit=job.limit)
    usd = found.usd
    if as_json:
        total = {"usd_low": usd[0] if usd else None, "usd_high": usd[1] if usd else None}
        click.echo(json.dumps(asdict(found) | total))
        return 0
    console = Console(highlight=False)
    names = ("style", "pairs", "to write", "calls", "cached", "tokens in", "tokens out", "USD")
    table = Table(*names, box=None, pad_edge=False)
    for part in found.styles:
        table.add_row(*_row(part))
    console.print(table)
    for line in _explain(found, job.settings.max_cost_usd):
        console.print(line, soft_wrap=True, markup=False)
    return 0


def _row(part: StyleEstimate) -> tuple[str, ...]:
    counts = (part.pairs, part.to_write, part.calls, part.cached_calls, part.input_tokens)
    tokens = f"{part.output_tokens_low} - {part.output_tokens_high}"
    return (part.style, *map(str, counts), tokens, _money(part.usd_low, part.usd_high))


def _money(low: float | None, high: float | None) -> str:
    return "unknown" if low is None or high is None else f"{low:.4f} - {high:.4f}"


def _explain(found: Estimate, cap: float | None) -> list[str]:
    low, high = found.usd or (None, None)
    lines = [f"teacher {found.teacher_model}, prices: {found.price_source}; in all USD {_money(low, high)}"]
    if found.teacher_model != found.requested_model:
        lines.append(f"{found.requested_model} is retired at OpenAI: {found.teacher_model} takes its place")
    if found.minutes_by_rate:
        lines.append(f"the limits alone make that {found.minutes_by_rate} minutes of calls")
    if cap is not None and high is not None and high > cap:
        lines.append(f"max_cost_usd {cap:g} may stop it: what is done is kept, and 'svf resume' goes on")
    return lines
