"""The step of the queue ``teacher``: a batch's questions become pairs in the store. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from factory.config import Settings
from factory.errors import TeacherBusy, TeacherRefused
from factory.log import log
from factory.pairs.pair import ContrastivePair
from factory.run.artifacts import put_pairs
from factory.run.asking import open_teacher
from factory.run.entries import Written
from factory.run.page import Page
from factory.run.pause import pause_run, require_calls_that_succeed, require_going_on
from factory.teacher.replies import Payer
from factory.teacher.writing import PATIENCE, WrittenBatch, draw_bill, write_batch


def write_step(page: Page, number: int, settings: Settings, broker_url: str) -> None:
    """Have the teacher write the pairs of one batch, and note where they lie and what they cost.

    ``broker_url``: where workers count calls and money together.

    Raises:
        TeacherBusy: the step must be tried again; replies that arrived are kept.
        RunPaused: the run waits for a person, as its ledger says from now on.
    """
    if page.written(number) or page.extracted(number):  # done, or given up
        return
    ledger = page.ledger
    require_going_on(page)
    questions = page.batches[number].questions
    payer = Payer(ledger.run_id, page.name, number)
    try:
        teacher = open_teacher(ledger, payer, settings, broker_url)
        made = write_batch(
            teacher,
            page.style,
            questions,
            max_concurrent=settings.max_concurrent_calls,
            may_go_on=lambda: require_going_on(page),
            patience=min(PATIENCE, settings.visibility_timeout / 5),
        )
    except TeacherRefused as error:
        raise pause_run(ledger, error.reason, str(error)) from None
    except TeacherBusy:
        require_calls_that_succeed(ledger, broker_url)
        raise
    if made.has_unanswered:  # not recorded while calls fail: 'svf resume' asks again
        require_calls_that_succeed(ledger, broker_url)
    entry = _keep(page, made, payer, questions)
    page.record("written", number, entry)
    log.info(
        "batch %d: %d pairs written, %d rejected, $%.4f", number, len(made.pairs), len(made.rejected), entry.cost_usd
    )
    # Only now: this batch is done and stays so, but the calls it took may show that the next would fail.
    require_calls_that_succeed(ledger, broker_url)


def _keep(page: Page, made: WrittenBatch, payer: Payer, questions: Sequence[str]) -> Written:
    """Put a batch's pairs into the store; returns what is written down of them, with what they cost."""
    store, spec = page.store, page.ledger.spec.teacher
    key = put_pairs(store, made.pairs, made.rejected)
    bill = draw_bill(store, spec, page.style, questions, payer)
    entry = Written(
        key=key,
        n_pairs=len(made.pairs),
        reasons=made.reasons,
        cost_usd=bill.spent_usd,
        saved_usd=bill.saved_usd,
        paid_calls=bill.paid_calls,
        cached_calls=bill.cached_calls,
        paid_tokens=bill.paid_tokens,
    )
    left_out = tuple(sorted({name for pair in made.pairs for name in _left_out(pair)}))
    return entry.model_copy(update={"left_out": left_out}) if left_out else entry


def _left_out(pair: ContrastivePair) -> list[str]:
    """Parameters that the teacher's server refused, so that it was asked without."""
    sides = pair.extra["provenance"]
    return [name for side in ("positive", "negative") for name in sides[side].get("left_out", [])]
