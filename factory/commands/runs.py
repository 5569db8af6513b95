"""Commands about a run on a cluster: submit it, look at it, go on with it."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factory.commands.ledgers import describe_strays, find_ledger, paid_calls, use_broker
from factory.commands.options import Job, config_option, job_options, json_option, open_job, output_option
from factory.commands.outputs import watch_command, write_outputs
from factory.commands.progress import progress_of_run, snapshot
from factory.commands.progress import watch as watch_run
from factory.commands.tables import folded
from factory.config import load_configuration
from factory.errors import ConfigError
from factory.files import read_written
from factory.pairs.dataset import load_questions
from factory.planning.plan import plan_run
from factory.queues import DEFAULT_BROKER
from factory.run.ledger import Ledger


@click.command()
@job_options
@click.option("--batch", type=click.Path(path_type=Path), help="YAML file: many styles, each with its own questions.")
@json_option
def enqueue(job: Job, batch: Path | None, as_json: bool) -> int:
    """Submit a run to the configured broker and print its id.

    Workers must have the same store: one that sees another is refused while it is up. 'svf watch RUN'
    shows the run and writes its outputs.
    """
    questions: dict[str, list[str]] = {}
    if batch:
        job, questions = _read_batch(batch, job)
    plan = plan_run(job.settings, job.store, job.output, limit=job.limit, questions=questions)
    use_broker(job)
    from workers.flow.shared_store import require_shared_store
    from workers.flow.submit import require_broker, submit

    require_broker()
    require_shared_store(job.store)
    for line in [*plan.notes, *(f"warning: {warning}" for warning in plan.warnings)]:
        click.echo(line, err=True)
    ledger = submit(plan, job.store)
    watching = watch_command(job, ledger)
    facts = {"run": ledger.run_id, "store": job.store_url, "watch": watching}
    click.echo(json.dumps(facts) if as_json else ledger.run_id)
    click.echo(f"to watch it and write its outputs: {watching}", err=True)
    if job.settings.store is None:
        click.echo(f"workers find it with FACTORY_STORE={shlex.quote(job.store_url)}", err=True)
    return 0


def _read_batch(path: Path, job: Job) -> tuple[Job, dict[str, list[str]]]:
    """Styles and their own questions from a batch file (docs/format.md)."""
    try:
        content = yaml.safe_load(read_written(path, "batch file"))
    except yaml.YAMLError as error:
        raise ConfigError(f"batch file {str(path)!r} cannot be read: {' '.join(str(error).split())[:200]}") from None
    entries = content.get("styles") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"batch file {str(path)!r} should hold a list 'styles'; each entry a name, or name: {{...}}")
    named = dict(_batch_entry(entry, path) for entry in entries)
    overrides = {str(key): value for key, value in content.items() if key != "styles"}
    configuration = load_configuration(job.configuration.file, flags={**overrides, "styles": list(named)})
    return Job(configuration, job.output, job.limit), {name: asked for name, asked in named.items() if asked}


def _batch_entry(entry: Any, path: Path) -> tuple[str, list[str]]:
    if isinstance(entry, str):
        return entry, []
    if isinstance(entry, dict) and len(entry) == 1:
        name, asked = next(iter(entry.items()))
        if isinstance(asked, dict) and set(asked) <= {"questions", "questions_file"}:
            own = load_questions(path.parent / asked["questions_file"]) if "questions_file" in asked else []
            return str(name), [*asked.get("questions", []), *own]
    raise ConfigError(f"{path}: a style is a name, or name: {{questions: [...], questions_file: ...}}; found {entry!r}")


@click.command()
@click.argument("run", required=False)
@config_option
@output_option
def watch(run: str | None, config_file: Path | None, output: Path) -> int:
    """Show RUN (the newest without a name) until it ends, then write its outputs."""
    job = open_job(config_file, output)
    ledger = find_ledger(job, run)
    use_broker(job)
    console = Console(highlight=False)
    guard, strays = _guard_of(ledger), _strays_of(ledger, job.settings.broker_url or DEFAULT_BROKER, console)

    def look() -> None:
        guard()
        strays()

    states = watch_run(ledger, console, look, paid_calls(ledger, job.settings.broker_url))
    return write_outputs(job, ledger, states, console)


def _guard_of(ledger: Ledger) -> Callable[[], None]:
    """Looks after the run from time to time, as reduce workers do. Without a broker it only watches."""
    from redis.exceptions import RedisError

    from workers.flow.guard import Guard

    guard = Guard(ledger.store)
    seen = [time.monotonic()]

    def look() -> None:
        if time.monotonic() - seen[0] > guard.patience / 2:
            seen[0] = time.monotonic()
            with suppress(RedisError, OSError):
                guard.look_at(ledger)

    return look


def _strays_of(ledger: Ledger, broker_url: str, console: Console) -> Callable[[], None]:
    """Says once of each worker that looks for the run in another store."""
    told: set[str] = set()

    def look() -> None:
        for line in describe_strays(ledger, broker_url):
            if line not in told:
                told.add(line)
                console.print(Text(line), soft_wrap=True)

    return look


@click.command()
@click.argument("run", required=False)
@config_option
@output_option
@json_option
def status(run: str | None, config_file: Path | None, output: Path, as_json: bool) -> int:
    """Show how far RUN (the newest without a name) is, once."""
    job = open_job(config_file, output)
    ledger = find_ledger(job, run)
    meters = paid_calls(ledger, job.settings.broker_url)
    shot = snapshot(ledger, meters)
    if as_json:
        click.echo(json.dumps(shot))
        return 0
    table = Table("style", "state", "pairs", "written", "extracted", "failed", "spent", box=None, pad_edge=False)
    for state in progress_of_run(ledger, meters()):
        figures = (state.pairs, state.written, state.extracted, state.failed)
        table.add_row(state.style, state.state, *map(str, figures), f"${state.spent_usd:.4f}")
    Console(highlight=False).print(
        f"run {ledger.run_id}: {shot['state']}, ${shot['spent_usd']:.4f} spent", folded(table)
    )
    if shot["message"]:
        click.echo(str(shot["message"]))
    for line in describe_strays(ledger, job.settings.broker_url or DEFAULT_BROKER):
        click.echo(line)
    return 0


@click.command()
@click.argument("run", required=False)
@config_option
@output_option
@click.option("--max-cost-usd", type=click.FloatRange(min=0, min_open=True), help="Another cap for the whole run.")
@click.option(
    "--max-failed-fraction", type=click.FloatRange(min=0, max=1), help="Another share of each style's pairs may fail."
)
@click.option("--here", is_flag=True, help="On this machine, with a broker and workers of its own.")
def resume(
    run: str | None,
    config_file: Path | None,
    output: Path,
    max_cost_usd: float | None,
    max_failed_fraction: float | None,
    here: bool,
) -> int:
    """Submit what is missing of RUN (the newest without a name).

    A run that is paused goes on. It keeps its bounds, whatever the configuration says now, unless a
    flag changes them. Questions that the teacher did not answer are asked again.
    """
    job = open_job(config_file, output)
    ledger = find_ledger(job, run)
    if here:
        from factory.commands.here import resume_here

        return resume_here(job, ledger, max_cost_usd, max_failed_fraction)
    use_broker(job)
    from workers.flow.shared_store import require_shared_store
    from workers.flow.submit import require_broker
    from workers.flow.submit import resume as resume_run

    require_broker()
    require_shared_store(job.store)

    resumed = resume_run(ledger, max_cost_usd=max_cost_usd, max_failed_fraction=max_failed_fraction)
    click.echo(f"run {ledger.run_id}: " + (f"goes on with {', '.join(resumed)}" if resumed else "nothing is missing"))
    return 0


@click.command()
@click.argument("run", required=False)
@config_option
@output_option
def cancel(run: str | None, config_file: Path | None, output: Path) -> int:
    """End RUN (the newest without a name); what is done is kept, and 'svf resume' goes on.

    Tasks in hand finish. Messages that wait stay in their queues, and end at once when taken.
    """
    job = open_job(config_file, output)
    ledger = find_ledger(job, run)
    use_broker(job)
    from workers.flow.submit import cancel as cancel_run

    ended = cancel_run(ledger)
    click.echo(f"run {ledger.run_id}: " + (f"cancelled {', '.join(ended)}" if ended else "had ended already"))
    return 0
