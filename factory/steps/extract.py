"""The three steps of a run on one batch or style, from store to store.

Each may run twice, on any machine, and gives the same result: it looks first whether its work is
done. Workers put a queue between them. Only broken infrastructure raises; what is wrong with a
pair or a style is written down. torch is imported where it is used: a teacher worker has none.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from factory.config import Settings
from factory.log import log
from factory.run.artifacts import batch_of, differences_key, get_differences, put_differences
from factory.run.ledger import Ledger
from factory.steps.resident import recipe_of, target_of

if TYPE_CHECKING:
    from factory.extraction.extract import Differences


def extract_step(ledger: Ledger, style: str, number: int, settings: Settings) -> None:
    """Read one batch with the target model, and note where its differences lie.

    Raises:
        ConfigError, TargetError: the model or its layers cannot be used here.
    """
    entry = ledger.entry(style, "extracted", number)
    if entry and (entry["key"] is None or ledger.store.exists(entry["key"])):  # None: it was given up
        return
    from factory.extraction.extract import describe_extraction, extract_rendered, render_batch
    from factory.target.layers import parse_layers

    spec = ledger.spec.extraction
    target = target_of(ledger.spec, settings)
    layers = parse_layers(spec.target_layers, target.n_layers)
    batch = render_batch(batch_of(ledger, style, number)[0], target, recipe_of(spec))
    key = differences_key(batch, target, layers)
    differences, seconds = get_differences(ledger.store, key), None
    if differences is None:
        started = time.monotonic()
        differences = extract_rendered(batch, target, layers, batch_tokens=spec.batch_tokens)
        seconds = round(time.monotonic() - started, 3)
        put_differences(ledger.store, key, differences)
    facts = {
        "seconds": seconds,  # None: it had been read before
        "config": describe_extraction(target, recipe_of(spec), layers),
        "peak_memory_mib": round(target.peak_memory_mib()),
    }
    ledger.record(style, "extracted", number, _extraction_entry(key, differences) | facts)
    log.info("batch %d: %d pairs extracted, %d rejected", number, len(differences.pair_ids), len(differences.rejected))


def _extraction_entry(key: str, differences: Differences) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for rejection in differences.rejected:
        reasons[rejection.reason] = reasons.get(rejection.reason, 0) + 1
    return {"key": key, "n_pairs": len(differences.pair_ids), "reasons": reasons}
