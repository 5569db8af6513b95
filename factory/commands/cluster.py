"""Commands about a cluster: is it well, what does it do, and end a run."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factory.cluster.doctor import (
    Finding,
    check_broker,
    check_device,
    check_disk,
    check_key,
    check_shared_store,
    check_store,
    check_workers,
)
from factory.commands.ledgers import use_broker
from factory.commands.options import Job, config_option, json_option, open_job, output_option
from factory.commands.ports import cannot_answer
from factory.commands.tables import folded
from factory.errors import BrokerError
from factory.queues import DEFAULT_BROKER, QUEUES

MARKS = {"good": "[green]+[/green]", "warning": "[yellow]![/yellow]", "bad": "[red]x[/red]"}


def broker_url(job: Job) -> str:
    """The configured broker, else the one that workers take too."""
    return job.settings.broker_url or DEFAULT_BROKER


@click.command()
@config_option
@output_option
@click.option("--port", type=click.IntRange(1, 65535), help="Serve them there until interrupted, at /metrics.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
def metrics(config_file: Path | None, output: Path, port: int | None, host: str) -> int:
    """Print the cluster's figures in Prometheus' format, or serve them."""
    from prometheus_client import start_http_server

    from factory.cluster.metrics import metrics_text, registry

    job = open_job(config_file, output)
    if port is None:
        click.echo(metrics_text(broker_url(job), job.store), nl=False)
        return 0
    try:
        start_http_server(port, addr=host, registry=registry(broker_url(job), job.store))
    except OSError as error:
        raise cannot_answer(host, port, error) from None
    click.echo(f"serving http://{host}:{port}/metrics", err=True)
    threading.Event().wait()
    return 0


@click.command()
@config_option
@output_option
@json_option
def doctor(config_file: Path | None, output: Path, as_json: bool) -> int:
    """Check broker, workers, their store, clock, device, disk and key, and say what to do.

    Exit status: 0 if a run can start, 1 if something else than broker or workers is bad, 3 without them.
    """
    job = open_job(config_file, output)
    findings = check_broker(broker_url(job))
    reached = findings[0].state != "bad"
    if reached:
        os.environ["FACTORY_BROKER_URL"] = broker_url(job)
        use_broker(job)
        findings += check_workers(_ping, QUEUES)
    findings.append(check_store(job.store))
    if reached:
        from workers.flow.shared_store import stores_elsewhere

        findings += check_shared_store(stores_elsewhere, job.store)
    findings += [check_disk(job.output), check_device(job.settings), check_key(job.settings)]
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        _show(findings)
    lacking = [finding for finding in findings if finding.state == "bad"]
    cluster_lacks = any(finding.area == "broker" or finding.area.startswith("queue") for finding in lacking)
    return BrokerError.exit_status if cluster_lacks else 1 if lacking else 0


def _ping() -> dict[str, list[str]]:
    from factory.celery import app

    answers = app.control.inspect(timeout=2).active_queues() or {}
    return {worker: [queue["name"] for queue in queues] for worker, queues in answers.items()}


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row(MARKS[finding.state], finding.area, Text(finding.found), Text(finding.advice))
    Console(highlight=False).print(folded(table))
