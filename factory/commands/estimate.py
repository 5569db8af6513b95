"""``svf estimate``: what a run will take, before it starts."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from factory.commands.options import Job, job_options, json_option
from factory.commands.prose import say
from factory.commands.tables import folded
from factory.config import describe_limits
from factory.planning.estimate import Estimate, StyleEstimate, estimate_run
from factory.planning.reading_time import ReadingTime

COLUMNS = ("pairs", "new", "calls", "cached", "tokens in + out", "USD")


@click.command()
@job_options
@json_option
def estimate(job: Job, as_json: bool) -> int:
    """Show calls, tokens, cost and reading time (low - high) of a run. Asks nobody and starts nothing.

    Low: answers of the usual length. High: every answer as long as max_response_tokens allows.
    Answers that the store already holds are not counted. The target model's time is measured by
    earlier runs in the store, else computed for a slow and a fast device.
    """
    found = estimate_run(job.settings, job.store, job.output, limit=job.limit)
    usd = found.usd
    if as_json:
        total = {"usd_low": usd[0] if usd else None, "usd_high": usd[1] if usd else None}
        click.echo(json.dumps(asdict(found) | total))
        return 0
    console = Console(highlight=False)
    table = Table("style", *COLUMNS, box=None, pad_edge=False)
    for style in found.styles:
        table.add_row(*_row(style))
    console.print(folded(table))
    for line in _explain(found, job):
        say(console, line)
    return 0


def _row(style: StyleEstimate) -> tuple[str, ...]:
    tokens = f"{_short(style.input_tokens)} + {_short(style.output_tokens_low)}-{_short(style.output_tokens_high)}"
    counts = (style.pairs, style.to_write, style.calls, style.cached_calls)
    return (
        style.style,
        *map(str, counts),
        tokens if style.calls else "0",
        _money(style.usd_low, style.usd_high, ".2g"),
    )


def _short(tokens: int) -> str:
    if tokens < 1000:
        return str(tokens)
    return f"{tokens / 1e6:.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:.0f}k"


def _money(low: float | None, high: float | None, small: str = ".4f") -> str:
    """USD from low to high; ``small`` is the format of amounts below 10 cents."""
    if low is None or high is None:
        return "unknown"
    amounts = [format(amount, small if amount < 0.1 else ".2f") for amount in (low, high)]
    return "-".join(amounts) if high else "0"


def _cost(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "nobody knows what it costs"
    return f"USD {_money(low, high)} in all" if high else "costs nothing"


def _time(reading: ReadingTime) -> str:
    if reading.low is None or reading.high is None:
        return "unknown"
    low, high = _duration(reading.low), _duration(reading.high)
    return low if low == high else f"{low} - {high}"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 or not seconds else "below 1 s"


def _explain(found: Estimate, job: Job) -> list[str]:
    low, high = found.usd or (None, None)
    cap, lines = job.settings.max_cost_usd, list[str]()
    if any(style.calls for style in found.styles):
        lines.append(f"teacher {found.teacher_model}: {_cost(low, high)} ({found.price_source})")
        if found.teacher_model != found.requested_model:
            lines.append(f"{found.requested_model} is retired at OpenAI: {found.teacher_model} takes its place")
        lines.append(describe_limits(job.configuration))
        if found.minutes_by_rate:
            lines.append(f"these limits alone make that {found.minutes_by_rate} minutes of calls")
    lines += found.notes
    lines.append(f"target model, one worker, without the evaluation: {_time(found.reading)}")
    lines.append(f"  {found.reading.basis}")
    if found.learning:
        rounds = job.settings.learning.rounds
        lines.append(f"learning, one worker, {rounds} rounds per style if no validation stops: {_time(found.learning)}")
        lines.append(f"  {found.learning.basis}")
    if cap is not None and high is not None and high > cap:
        lines.append(f"max_cost_usd {cap:g} may stop it: what is done is kept, and 'svf resume' goes on")
    return lines
