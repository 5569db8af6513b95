"""A run on this machine: a broker and workers of its own, from the first task to the outputs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from factory.cluster.embedded import running_broker, running_crew
from factory.cluster.folder_lock import holding
from factory.commands.ledgers import paid_calls
from factory.commands.options import Job
from factory.commands.outputs import export_done, resume_command, write_outputs
from factory.commands.progress import watch
from factory.errors import FactoryError
from factory.log import log, start_logging
from factory.run.ledger import Ledger
from factory.run.progress import StyleProgress, progress_of
from factory.store import DEFAULT_STORE

LOG_FILE = "steering_vector_generation.log"


def resume_here(
    job: Job, ledger: Ledger, max_cost_usd: float | None = None, max_failed_fraction: float | None = None
) -> int:
    """Go on with a run on this machine, with a broker and workers of its own; returns the exit status."""
    console = Console(highlight=False)
    os.environ["FACTORY_LOG"] = str((job.output / LOG_FILE).resolve())
    start_logging(terminal=False)
    needs_teacher = any(part.from_teacher for part in ledger.spec.styles)

    def start() -> None:
        from workers.flow.submit import resume

        resume(ledger, empty_broker=True, max_cost_usd=max_cost_usd, max_failed_fraction=max_failed_fraction)

    with holding(job.output, f"run {ledger.run_id}"):
        return run_here(job, ledger, start, needs_teacher=needs_teacher, console=console)


def run_here(job: Job, ledger: Ledger, start: Callable[[], object], *, needs_teacher: bool, console: Console) -> int:
    """Broker, workers, the run that ``start`` sends, their orderly end, and the outputs; returns the exit status.

    The caller holds the output folder (:func:`factory.cluster.folder_lock.holding`).
    What is done is exported also when something fails or a person interrupts.
    """
    with heard_signals():
        try:
            states = _watch_here(job, ledger, start, needs_teacher=needs_teacher, console=console)
        except FactoryError:
            _export_what_is_done(job, ledger, console)
            raise
        except KeyboardInterrupt:
            _export_what_is_done(job, ledger, console)
            raise KeyboardInterrupt(how_to_go_on(job, ledger)) from None
        return write_outputs(job, ledger, states, console)


def _watch_here(
    job: Job, ledger: Ledger, start: Callable[[], object], *, needs_teacher: bool, console: Console
) -> list[StyleProgress]:
    folder = Path(job.store_url) if job.store.is_local else job.output / DEFAULT_STORE
    service = folder.resolve() / ledger.run_id / "logs"
    with running_broker(service) as url:
        environment = _environment(job, url)
        os.environ.update(environment)
        queues = ["gpu,reduce"] * job.settings.gpu_workers + ["teacher"] * needs_teacher
        with running_crew(queues, service, environment) as crew:
            start()
            log.info("run %s submitted", ledger.run_id)

            def check() -> None:
                crew.check(lambda: _work_done(ledger))

            return watch(ledger, console, check, paid_calls(ledger, url))


def _work_done(ledger: Ledger) -> int:
    """A count that grows with every batch and part that is done."""
    states = [progress_of(page) for page in ledger.pages]
    return sum(state.written + state.extracted + state.evaluated for state in states)


@contextmanager
def heard_signals() -> Iterator[None]:
    """A plain kill and a closed terminal end the block in order, as Ctrl-C does; ``nohup`` stays deaf to the latter."""
    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _export_what_is_done(job: Job, ledger: Ledger, console: Console) -> None:
    """The outputs of finished styles, on the way out for another reason, which stays the one that is told."""
    with suppress(FactoryError, OSError):  # the run may not even have been written down
        states = [progress_of(page) for page in ledger.pages]
        export_done(job, ledger, states, console)


def how_to_go_on(job: Job, ledger: Ledger) -> str:
    """What a person who interrupted a run is told; nothing of a run that had not begun."""
    try:
        spec, most = ledger.spec, ledger.max_cost_usd
    except FactoryError:  # the store may be what a person would not wait for
        return ""
    command = resume_command(job, ledger)
    if most is None or not any(part.from_teacher for part in spec.styles):
        return f"what is done is kept; this run goes on with: {command}"
    return (
        f"what is done is kept; this run goes on, within its ${most:g}, with: {command} "
        "(the same command as before starts a new run, which may cost as much again)"
    )


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
    if settings.gpu_workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, count_cores() // settings.gpu_workers))  # what torch takes
    file = job.configuration.file
    return environment | ({"FACTORY_CONFIG": str(file.resolve())} if file else {})


def count_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
