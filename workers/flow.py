"""The flow: one chord a style, whose header extracts batches and whose body averages them.

The chord is the accelerator, the ledger is the truth: what is done is asked of the store alone.
"""

from __future__ import annotations

from celery import Signature, chain
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from factory.celery import app
from factory.errors import BrokerError
from factory.plan import Plan
from factory.run import Ledger
from factory.store import Store
from workers.chord import send_chord
from workers.gpu import extract_batch
from workers.reduce import reduce_vector, report_failure
from workers.teacher import write_pairs


def check_broker() -> None:
    """Fail early and clearly if the broker does not answer.

    Raises:
        BrokerError: it does not.
    """
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
    except (OperationalError, RedisError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        url = app.connection_for_write().as_uri()  # without the password
        raise BrokerError(
            f"no broker at {url}: {reason}. Start Redis or Valkey there, set FACTORY_BROKER_URL or broker_url, "
            "or use 'svf generate', which brings its own"
        ) from None


def submit(plan: Plan, store: Store) -> Ledger:
    """Write the run down, then send every style.

    Raises:
        BrokerError: there is no broker; nothing was sent.
    """
    check_broker()
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    for part in plan.spec.styles:
        send_style(ledger, part.style.name)
    return ledger


def resume(ledger: Ledger) -> list[str]:
    """Send what is missing of a run; returns the styles that go on.

    Raises:
        BrokerError: there is no broker.
    """
    check_broker()
    resumed = []
    for part in ledger.spec.styles:
        result = ledger.result(part.style.name)
        if result is None or result["state"] != "done" or result.get("evaluation") == "failed":
            ledger.reopen(part.style.name)
            send_style(ledger, part.style.name)
            resumed.append(part.style.name)
    return resumed


def send_style(ledger: Ledger, style: str) -> None:
    """Send the batches of a style that are not extracted yet, and its reduction behind them."""
    run = ledger.run_id
    errback = report_failure.s(run=run, style=style)
    body = reduce_vector.s(run, style).on_error(errback)
    header = [_batch(ledger, style, number) for number in ledger.missing_numbers(style)]
    ends_with = "chord-sweep.json" if ledger.spec.evaluation else "result.json"
    send_chord(ledger, "reduce", header, body, style=style, ends_with=ends_with)


def _batch(ledger: Ledger, style: str, number: int) -> Signature:
    """The task that extracts a batch, behind the one that writes it where it is not written."""
    extract = extract_batch.si(ledger.run_id, style, number)
    if ledger.batches(style)[number].pairs_key:
        return extract
    return chain(write_pairs.si(ledger.run_id, style, number), extract)
