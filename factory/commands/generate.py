"""``svf generate``: the main job on this machine, with everything embedded."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from factory.commands.options import Job, hide_loading_bar, job_options
from factory.commands.report import finish_with_report
from factory.commands.runs import paid_calls
from factory.config import describe_limits
from factory.download import BUILT_IN, built_in_folder
from factory.embedded import running_broker, running_crew
from factory.export import export_style
from factory.extras import require_target
from factory.ledger import Ledger, StyleProgress
from factory.log import log, start_logging
from factory.plan import Plan, plan_run
from factory.progress import HELD, watch

LOG_FILE = "steering_vector_generation.log"


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
    job.output.mkdir(parents=True, exist_ok=True)
    os.environ["FACTORY_LOG"] = str((job.output / LOG_FILE).resolve())
    start_logging(terminal=False)
    _prepare_target(job, console)
    console.print(f"run [bold]{plan.spec.run_id}[/bold]: {_describe(plan)}", soft_wrap=True)
    needs_teacher = plan.needs_teacher

    def start() -> Ledger:
        from workers.flow import submit  # the app reads the broker's URL when it is first used

        return submit(plan, job.store)

    if needs_teacher:
        console.print(describe_limits(job.configuration), soft_wrap=True, markup=False)
    for warning in plan.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)
    states, ledger = run_here(job, plan.spec.run_id, start, needs_teacher=needs_teacher, console=console)
    status = _finish(job, ledger, states, console)
    seconds = time.monotonic() - started
    console.print(f"finished in {seconds:.0f} s; the log is {os.environ['FACTORY_LOG']}", soft_wrap=True)
    return status


def _describe(plan: Plan) -> str:
    pairs = sum(part.n_pairs for part in plan.spec.styles)
    to_write = sum(len(batch.questions) for parts in plan.batches.values() for batch in parts)
    teacher = f", {to_write} of them written by {plan.spec.teacher.model}" if to_write else ""
    n_styles = len(plan.spec.styles)
    return (
        f"{n_styles} style{'s' * (n_styles != 1)}, {pairs} pairs{teacher}, target {plan.spec.extraction.target_model}"
    )


def _prepare_target(job: Job, console: Console) -> None:
    """Fetch the built-in model before the workers start, where a person sees that it takes a while."""
    if job.settings.target_model == BUILT_IN:
        hide_loading_bar()
        with console.status(f"preparing {BUILT_IN} (fetched and converted once)"):
            built_in_folder()


def resume_here(job: Job, ledger: Ledger) -> int:
    """Go on with a run on this machine, with a broker and workers of its own; returns the exit status."""
    console = Console(highlight=False)
    os.environ["FACTORY_LOG"] = str((job.output / LOG_FILE).resolve())
    start_logging(terminal=False)
    needs_teacher = any(part.from_teacher for part in ledger.spec.styles)

    def start() -> Ledger:
        from workers.flow import resume

        resume(ledger, empty_broker=True, max_cost_usd=job.settings.max_cost_usd)
        return ledger

    states, _ = run_here(job, ledger.run_id, start, needs_teacher=needs_teacher, console=console)
    return _finish(job, ledger, states, console)


def run_here(
    job: Job, run_id: str, start: Callable[[], Ledger], *, needs_teacher: bool, console: Console
) -> tuple[list[StyleProgress], Ledger]:
    """Broker, workers, the run that ``start`` sends, and the orderly end of all of them."""
    folder = Path(job.store_url) if job.store.is_local else job.output / "runs"
    service = folder.resolve() / run_id / "logs"
    signal.signal(signal.SIGTERM, _interrupt)  # a plain kill must end the children too
    with running_broker(service) as url:
        environment = _environment(job, url)
        os.environ.update(environment)
        queues = ["gpu,reduce", *(["teacher"] if needs_teacher else [])]
        with running_crew(queues, service, environment) as crew:
            ledger = start()
            log.info("run %s submitted", run_id)
            return watch(ledger, console, crew.check, paid_calls(ledger, url)), ledger


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _environment(job: Job, broker_url: str) -> dict[str, str]:
    """What the children need beside our own environment to have the same settings."""
    settings = job.settings
    environment = {
        "FACTORY_BROKER_URL": broker_url,
        "FACTORY_STORE": job.store_url,
        "FACTORY_TARGET_MODEL": settings.target_model,
        "FACTORY_DEVICE": settings.device,
        "TOKENIZERS_PARALLELISM": "false",
    }
    file = job.configuration.file
    return environment | ({"FACTORY_CONFIG": str(file.resolve())} if file else {})


def _finish(job: Job, ledger: Ledger, states: list[StyleProgress], console: Console) -> int:
    """Outputs, and the report of an evaluated run; returns the exit status."""
    _export(job, ledger, states, console)
    if ledger.spec.evaluation and any(state.state == "done" for state in states):
        finish_with_report(ledger, console)
    return 0 if all(state.state == "done" for state in states) else 1


def _export(job: Job, ledger: Ledger, states: list[StyleProgress], console: Console) -> None:
    """Write the outputs of the styles that are done, and say what became of each."""
    pause = ledger.paused()
    if pause and any(state.state in HELD for state in states):
        where = "" if job.output == Path() else f" --output {job.output}"
        console.print(f"[yellow]paused[/yellow] after ${pause['spent_usd']:.4f}: {pause['message']}", soft_wrap=True)
        console.print(f"to go on on this machine: svf resume {ledger.run_id} --here{where}", soft_wrap=True)
    for state in states:
        if state.state == "failed":
            console.print(f"[red]{state.style}[/red]: {state.message}", soft_wrap=True)
        if state.state != "done":
            continue
        style = ledger.spec.style_run(state.style).style
        path = export_style(ledger, style, job.output, job.settings.output_config)
        console.print(f"[green]{state.style}[/green]: {state.extracted} pairs -> {path}", soft_wrap=True)
