"""How long one worker will learn, before it starts: measured by earlier runs if it can be, else computed.

As for reading (reading_time.py): pairs from which runs of the same model learned give a rate; without
any, the arithmetic of the passes is counted. Needs neither torch nor a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from factory.config import Settings
from factory.extraction.spec import ExtractionSpec
from factory.learning.schedule import count_passes
from factory.learning.spec import Learning
from factory.planning.reading_time import TEMPLATE, ReadingTime, at_rates, computed, measured_rates
from factory.run.ledger import Ledger
from factory.store import Store

GRADIENT = 2.2  # forward passes that a pass with its gradient takes (benchmarks/results.md)


def estimate_learning(
    settings: Settings, spec: ExtractionSpec, learning: Learning, store: Store, lessons: Sequence[tuple[int, float]]
) -> ReadingTime:
    """How long one worker learns all styles, if no validation stops it.

    ``lessons``: of each style its pairs, and the tokens of their usual response.
    """
    passes = [count_passes(n_pairs, learning) for n_pairs, _ in lessons]
    rates = sorted(measured_rates(store, lambda ledger: _seconds(ledger, spec, learning)))
    if rates:
        what = "parts of rounds in this store with the same model, layers and objective"
        return at_rates(rates, sum(map(sum, passes)), what)
    tokens = 0.0
    for (n_pairs, answer), (taught, validated) in zip(lessons, passes, strict=True):
        read = (min(learning.response_tokens, answer) + 1) * (
            1 + (learning.loop_penalty > 0)
        )  # a loop is as long, or less
        tokens += n_pairs * 2 * TEMPLATE + read * (GRADIENT * taught + validated)
    return computed(settings, spec.model_copy(update={"target_layers": "all"}), tokens)


def _seconds(ledger: Ledger, spec: ExtractionSpec, learning: Learning) -> Iterator[float]:
    """Seconds per pair of the parts of a run, if it learned as this one will."""
    was = ledger.spec.learning
    alike = ("objective", "loop_penalty", "response_tokens", "pairs_per_part")
    if was is None or ledger.spec.extraction != spec or any(getattr(was, n) != getattr(learning, n) for n in alike):
        return
    for page in ledger.pages:
        for place in page.listing().numbers("gradient"):
            entry = page.gradient(place)
            if entry and entry.seconds:
                yield entry.seconds / entry.n_pairs
