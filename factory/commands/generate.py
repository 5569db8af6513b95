"""``svf generate``: the main job on this machine, with everything embedded."""

from __future__ import annotations

import os
import time

import click
from rich.console import Console
from rich.text import Text

from factory.cluster.folder_lock import holding
from factory.commands.here import LOG_FILE, run_here
from factory.commands.options import Job, hide_loading_bar, job_options
from factory.commands.prose import say
from factory.config import describe_limits
from factory.extras import require_target
from factory.log import start_logging
from factory.planning.plan import Plan, plan_run
from factory.run.ledger import Ledger
from factory.target.download import BUILT_IN, built_in_folder, require_model


@click.command()
@job_options
def generate(job: Job) -> int:
    """Make the vectors of all configured styles on this machine.

    Brings its own broker and workers, and ends them. Work that an earlier, interrupted run did is
    found in the store and not done again.
    """
    console = Console(highlight=False)
    started = time.monotonic()
    require_target()
    plan = plan_run(job.settings, job.store, job.output, limit=job.limit)  # before anything is written
    require_model(job.settings.target_model)
    job.output.mkdir(parents=True, exist_ok=True)
    os.environ["FACTORY_LOG"] = str((job.output / LOG_FILE).resolve())
    start_logging(terminal=False)
    _prepare_target(job, console)
    ledger = Ledger(job.store, plan.spec.run_id)
    with holding(job.output, f"run {ledger.run_id}"):  # who comes second is told before anything else
        _announce(plan, job, console)

        def start() -> Ledger:
            from workers.flow.submit import submit

            return submit(plan, job.store)

        status = run_here(job, ledger, start, needs_teacher=plan.needs_teacher, console=console)
    seconds = time.monotonic() - started
    console.print(Text(f"finished in {seconds:.0f} s; the log is {os.environ['FACTORY_LOG']}"), soft_wrap=True)
    return status


def _announce(plan: Plan, job: Job, console: Console) -> None:
    """What will be made of what, within which limits, and what should be known of it."""
    console.print(Text.assemble("run ", (plan.spec.run_id, "bold"), f": {_describe(plan)}"), soft_wrap=True)
    if plan.needs_teacher:
        say(console, describe_limits(job.configuration))
    for note in plan.notes:
        say(console, note)
    for warning in plan.warnings:
        say(console, Text.assemble(("warning:", "yellow"), f" {warning}"))


def _describe(plan: Plan) -> str:
    pairs = sum(part.n_pairs for part in plan.spec.styles)
    to_write = sum(len(batch.questions) for parts in plan.batches.values() for batch in parts)
    teacher = f", {to_write} of them written by {plan.spec.teacher.model}" if to_write else ""
    n_styles = len(plan.spec.styles)
    learning = f", {plan.spec.learning.rounds} rounds of learning" if plan.spec.learning else ""
    return (
        f"{n_styles} style{'s' * (n_styles != 1)}, {pairs} pairs{teacher}, "
        f"target {plan.spec.extraction.target_model}{learning}"
    )


def _prepare_target(job: Job, console: Console) -> None:
    """Fetch the built-in model before the workers start, where a person sees that it takes a while."""
    if job.settings.target_model == BUILT_IN:
        hide_loading_bar()
        with console.status(f"preparing {BUILT_IN} (fetched and converted once)"):
            built_in_folder()
