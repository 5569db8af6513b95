"""The chord of one style: a task for each batch that is missing, and the reduction behind them."""

from __future__ import annotations

from celery import Signature, chain

from factory.run.ledger import Ledger
from workers.flow.chord import Chord, ChordRecord, write_chord
from workers.gpu import extract_batch
from workers.reduce import reduce_vector, report_failure
from workers.teacher import write_pairs


def write_style(ledger: Ledger, style: str) -> ChordRecord:
    """Write down the batches of a style that are not extracted yet, and its reduction behind them."""
    run = ledger.run_id
    errback = report_failure.s(run=run, style=style)
    body = reduce_vector.s(run, style).on_error(errback)
    header = [_batch(ledger, style, number) for number in ledger.missing_numbers(style)]
    ends_with = "chord-sweep.json" if ledger.spec.evaluation else "result.json"
    return write_chord(ledger, style, Chord("reduce", header, body, ends_with))


def _batch(ledger: Ledger, style: str, number: int) -> Signature:
    """The task that extracts a batch, behind the one that writes it where it is not written."""
    extract = extract_batch.si(ledger.run_id, style, number).set(queue=ledger.spec.gpu_queue)
    if ledger.batches(style)[number].pairs_key:
        return extract
    return chain(write_pairs.si(ledger.run_id, style, number), extract)
