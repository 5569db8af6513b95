"""In which order a style's chords come: mean, rounds of learning, sweep, checks."""

from __future__ import annotations

from factory.run.listing import RESULT_FILE, chord_file, entry_file
from factory.run.page import Page

MEAN, SWEEP, CHECKS = "reduce", "sweep", "checks"


def round_name(number: int) -> str:
    """The name of a round's chord."""
    return f"round-{number:06d}"


def end_before_round(page: Page, number: int | None) -> tuple[str, ...]:
    """Files one of which is there when the chord has ended that sends round ``number`` of learning.

    None: it sends no round, but what comes after learning. A round's chord is forgotten when the next is
    sent, and its entry stays. Learning may stop at any round, so what comes after it ends every chord before.
    """
    after = chord_file(SWEEP) if page.ledger.spec.evaluation else RESULT_FILE
    if number is None:
        return (after,)
    sent = chord_file(round_name(number))
    # a round that is taken comes again only if its vector is not made: then its entry ends nothing
    return (sent, after) if page.round(number) else (sent, entry_file("round", number), after)
