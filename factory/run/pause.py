"""A run that waits for a person: why it was paused, and how it goes on."""

from __future__ import annotations

from factory.counters import open_counters
from factory.errors import RunPaused, StyleEnded
from factory.log import log
from factory.run.asking import spent_usd
from factory.run.ledger import Ledger
from factory.run.page import Page
from factory.teacher.endpoint import endpoint_name
from factory.teacher.limits import WINDOW, Outcomes

# ---- the pause


def require_going_on(page: Page) -> None:
    """Go on only while the style has not ended and the run waits for nobody: asked before money is spent.

    Raises:
        StyleEnded: it was cancelled, or failed.
        RunPaused: the run waits for a person.
    """
    require_unended(page)
    require_unpaused(page.ledger)


def require_unended(page: Page) -> None:
    """Go on only while the style has not ended.

    Raises:
        StyleEnded: it was cancelled, or failed.
    """
    if page.result is not None:
        raise StyleEnded(f"style {page.name!r} has ended")


def require_unpaused(ledger: Ledger) -> None:
    """Go on only if the run does not wait for a person.

    Raises:
        RunPaused: it does.
    """
    pause = ledger.paused()
    if pause is not None:
        raise RunPaused(pause.reason, pause.message)


def pause_run(ledger: Ledger, reason: str, message: str) -> RunPaused:
    """Write down that the run waits for a person; gives the error to raise. The first reason stays."""
    pause = ledger.paused()
    if pause is not None:
        return RunPaused(pause.reason, pause.message)
    log.error("run paused: %s", message)
    ledger.pause(reason, message, spent_usd(ledger))
    return RunPaused(reason, message)


def require_calls_that_succeed(ledger: Ledger, broker_url: str) -> None:
    """Pause the run when half of its last calls failed: money and patience end before the batches do.

    Raises:
        RunPaused: they did.
    """
    counters = open_counters(broker_url)
    if counters is not None and Outcomes(counters, ledger.run_id).are_failing():
        where = endpoint_name(ledger.spec.teacher.base_url)
        raise pause_run(
            ledger,
            "failing",
            f"half of the last {WINDOW} calls to the teacher at {where} failed; the log says how. "
            "When it is mended, 'svf resume'",
        )


def reopen_run(
    ledger: Ledger, broker_url: str, max_cost_usd: float | None = None, max_failed_fraction: float | None = None
) -> None:
    """Let a paused run go on, with other bounds where they are given."""
    if max_failed_fraction is not None:
        ledger.set_max_failed_fraction(max_failed_fraction)
    if max_cost_usd is not None and max_cost_usd != ledger.max_cost_usd:
        ledger.set_budget(max_cost_usd)
    counters = open_counters(broker_url)
    if counters is not None:
        Outcomes(counters, ledger.run_id).forget()
    ledger.unpause()
