"""The chord of one style: a task for each batch that is missing, and the reduction behind them."""

from __future__ import annotations

from celery import Signature, chain

from factory.run.page import Page
from factory.steps.learn import next_round
from workers.flow.chord import Chord, ChordRecord, write_chord
from workers.flow.order import MEAN, end_before_round
from workers.gpu import extract_batch
from workers.reduce import reduce_vector, report_failure
from workers.teacher import write_pairs


def write_style(page: Page) -> ChordRecord:
    """Write down the batches of a style that are not extracted yet, and its reduction behind them."""
    run, style = page.ledger.run_id, page.name
    errback = report_failure.s(run=run, style=style)
    body = reduce_vector.s(run, style).on_error(errback)
    header = [_batch(page, number) for number in page.missing_numbers()]
    return write_chord(page, Chord(MEAN, header, body, end_before_round(page, next_round(page))))


def _batch(page: Page, number: int) -> Signature:
    """The task that extracts a batch, behind the one that writes it where it is not written."""
    run, style = page.ledger.run_id, page.name
    extract = extract_batch.si(run, style, number).set(queue=page.ledger.spec.gpu_queue)
    if page.batches[number].pairs_key:
        return extract
    return chain(write_pairs.si(run, style, number), extract)
