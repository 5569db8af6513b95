"""The flow: one chord a style, whose header extracts batches and whose body averages them.

The chord is the accelerator, the ledger is the truth: what is done is asked of the store alone.
"""

from __future__ import annotations

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from factory.celery import app
from factory.errors import BrokerError
from factory.planning.plan import Plan
from factory.run.asking import begin_spending
from factory.run.entries import Ended
from factory.run.ledger import Ledger
from factory.run.page import Page
from factory.run.pause import reopen_run
from factory.store import Store
from workers.flow.chord import retire_chords, send_record
from workers.flow.extraction import write_style

CANCELLED = "cancelled; what is done is kept, and 'svf resume {run}' goes on from there"


def require_broker() -> None:
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
    """Write the run and its chords down, then send every style.

    Raises:
        BrokerError: there is no broker; nothing was sent.
    """
    require_broker()
    ledger = Ledger(store, plan.spec.run_id)
    ledger.create(plan.spec, plan.batches)
    begin_spending(ledger, str(app.conf.broker_url))
    ledger.mark_open()  # from here on a guard finishes what we begin
    for record in [write_style(page) for page in ledger.pages]:
        send_record(ledger, record)
    return ledger


def resume(
    ledger: Ledger,
    *,
    max_cost_usd: float | None = None,
    max_failed_fraction: float | None = None,
    empty_broker: bool = False,
) -> list[str]:
    """Send what is missing of a run; returns the styles that go on.

    A style that failed starts again with what is not done. Of one that still runs, lost messages
    are sent again; with ``empty_broker`` there are none left, and it starts again too. A run that
    waits for a person goes on. ``max_cost_usd`` and ``max_failed_fraction`` take the place of the
    run's own where they are given.

    Raises:
        BrokerError: there is no broker.
    """
    require_broker()
    reopen_run(ledger, str(app.conf.broker_url), max_cost_usd, max_failed_fraction)
    resumed = []
    running = False
    for page in ledger.pages:
        result = page.result
        if result is None and not empty_broker:
            running = True
            resumed.append(page.name)
        elif result is None or not result.is_whole:
            restart_style(page)
            resumed.append(page.name)
    ledger.mark_open()
    if running:
        from workers.flow.guard import repair_now

        repair_now(ledger)
    return resumed


def restart_style(page: Page) -> None:
    """Begin a style that failed anew, with the batches that are not done."""
    retire_chords(page)
    page.forget_given_up()
    page.forget_unanswered()
    page.reopen()
    send_record(page.ledger, write_style(page))


def cancel(ledger: Ledger) -> list[str]:
    """End what is not done of a run; returns the styles that were ended.

    What is done is kept. Messages stay in the queues, as they cannot be told apart there; each
    task looks first whether its style has ended.
    """
    ended = []
    for page in ledger.pages:
        if page.result is None:
            page.finish(Ended(state="failed", message=CANCELLED.format(run=ledger.run_id)))
            ended.append(page.name)
    return ended
