"""A run on this machine: a broker and workers of its own, from the first task to the outputs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from factory.cluster.embedded import running_broker, running_crew
from factory.commands.ledgers import paid_calls
from factory.commands.options import Job
from factory.commands.outputs import _export
from factory.commands.progress import watch
from factory.commands.report import finish_with_report
from factory.log import log, start_logging
from factory.run.ledger import Ledger, StyleProgress

LOG_FILE = "steering_vector_generation.log"


def resume_here(
    job: Job, ledger: Ledger, max_cost_usd: float | None = None, max_failed_fraction: float | None = None
) -> int:
    """Go on with a run on this machine, with a broker and workers of its own; returns the exit status."""
    console = Console(highlight=False)
    os.environ["FACTORY_LOG"] = str((job.output / LOG_FILE).resolve())
    start_logging(terminal=False)
    needs_teacher = any(part.from_teacher for part in ledger.spec.styles)

    def start() -> Ledger:
        from workers.flow.submit import resume

        resume(ledger, empty_broker=True, max_cost_usd=max_cost_usd, max_failed_fraction=max_failed_fraction)
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
