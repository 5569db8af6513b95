"""Finding a run: its ledger in the store, its broker, and what it has paid."""

from __future__ import annotations

import os

from factory.commands.options import Job
from factory.commands.progress import Meters, nothing_known
from factory.counters import open_counters
from factory.errors import ConfigError
from factory.run.ledger import Ledger, list_runs
from factory.teacher.spending import Meter

GLANCE = 3.0  # s that a look at the broker may take


def use_broker(job: Job) -> None:
    """Make the configured broker and store those of this process."""
    if job.settings.broker_url:
        os.environ["FACTORY_BROKER_URL"] = job.settings.broker_url
    if job.configuration.file:
        os.environ["FACTORY_CONFIG"] = str(job.configuration.file.resolve())


def find_ledger(job: Job, run: str | None) -> Ledger:
    """The ledger of a run, of the newest without a name.

    Raises:
        ConfigError: there is no such run.
    """
    known = list_runs(job.store)
    if not known:
        wanted = "no run" if run is None else f"neither run {run!r} nor any other"
        raise ConfigError(
            f"there is {wanted} in store {job.store_url}: name the run's --output, or its store by FACTORY_STORE"
        )
    if run is not None and run not in known:
        raise ConfigError(f"run {run!r} is not in store {job.store_url}: the newest are {', '.join(known[-3:])}")
    return Ledger(job.store, run or known[-1])


def paid_calls(ledger: Ledger, broker_url: str | None) -> Meters:
    """What each style has paid, as workers count it in the broker; nothing where there is none to ask."""
    counters = open_counters(broker_url, GLANCE) if broker_url else None
    return Meter(counters, ledger.run_id).read if counters else nothing_known


def describe_strays(ledger: Ledger, broker_url: str) -> list[str]:
    """Of each worker that does not find the run: which store it looks in, and what to do; one line each."""
    from workers.flow.strays import place_of, read_strays

    strays = read_strays(broker_url, ledger.run_id, GLANCE)
    here = place_of(ledger.store)
    return [
        f"a worker on {host} does not find this run: its store is {place}, the run's is {here}. Start it anew with "
        "FACTORY_STORE set to the latter, or to what leads there from its machine"
        for host, place in sorted(strays.items())
    ]
