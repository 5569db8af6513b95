"""How far a style is, told from its page in the ledger alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from factory.run.entries import Ended, Pause, Written
from factory.run.page import Page


@dataclass(frozen=True)
class StyleProgress:
    """How far one style is, in pairs. ``state``: waiting, running, learning, evaluating, done or failed.

    Where nothing more can be done until a person acts, it is paused or budget_stopped.
    ``rounds``: how many its learning takes at most, ``learned``: how many are taken, with the last
    ``loss`` and the last ``validation`` loss (nats per token; None: not yet known).
    ``parts``: into how many parts its evaluation is cut; ``evaluated``: how many are done.
    """

    style: str
    state: str
    pairs: int
    written: int
    extracted: int
    failed: int
    reasons: dict[str, int]
    spent_usd: float
    message: str = ""
    rounds: int = 0
    learned: int = 0
    loss: float | None = None
    validation: float | None = None
    parts: int = 0
    evaluated: int = 0
    peak_memory_mib: int = 0


def progress_of(page: Page) -> StyleProgress:
    """How far a style is."""
    style_run, result, reduced = page.style_run, page.result, page.reduced()
    listing = page.listing()  # once, as this is asked at every look at a run
    written, extracted = page.all_written(listing), page.all_extracted(listing)
    reasons: Counter[str] = Counter()
    for counts in (entry.reasons for entries in (written, extracted) for entry in entries):
        reasons.update(counts)
    reasons.update(reduced.reasons if reduced else {})
    given = [batch.n_pairs for batch in page.batches if batch.pairs_key]
    readable = len(written) + len(given)
    asking = style_run.from_teacher and readable < style_run.n_batches
    stuck = asking and len(extracted) >= readable  # nothing is left to do but what the teacher must write
    pause = page.ledger.paused() if style_run.from_teacher and not result else None
    learning, rounds = page.ledger.spec.learning, page.all_rounds(listing)
    made = "learning" if learning and not page.learned() else "evaluating"
    begun = "running" if written or extracted else "waiting"
    return StyleProgress(
        style=page.name,
        state=_state_of(result, pause if stuck else None, made if reduced else begun),
        pairs=style_run.n_pairs,
        written=sum(given) + sum(entry.n_pairs for entry in written),
        extracted=sum(entry.n_pairs for entry in extracted),
        failed=reasons.total(),
        reasons=dict(reasons),
        spent_usd=spent_on(page, written),
        message=result.message if result else pause.message if pause else "",
        rounds=learning.rounds + 1 if learning else 0,  # the last one validates alone
        learned=len(rounds),
        loss=_last([entry.loss for entry in rounds]),
        validation=_last([entry.validation for entry in rounds]),
        parts=page.ledger.spec.n_parts,
        evaluated=len(listing.numbers("evaluated")),
        peak_memory_mib=max((entry.peak_memory_mib for entry in extracted), default=0),
    )


def _state_of(result: Ended | None, pause: Pause | None, at_work: str) -> str:
    """The state in one word: an end is final, a pause hides what comes before it."""
    if result:
        return result.state
    return pause.state if pause else at_work


def _last(figures: Sequence[float | None]) -> float | None:
    """The last figure that is known."""
    return next((figure for figure in reversed(figures) if figure is not None), None)


def spent_on(page: Page, written: Sequence[Written] | None = None) -> float:
    """What the teacher and the judge have cost, in USD, by what is written down; ``written``: what is known of it."""
    return page.judge_cost_usd() + sum(entry.cost_usd for entry in (page.all_written() if written is None else written))
