"""The three steps of a run on one batch or style, from store to store.

Each may run twice, on any machine, and gives the same result: it looks first whether its work is
done. Workers put a queue between them. Only broken infrastructure raises; what is wrong with a
pair or a style is written down. torch is imported where it is used: a teacher worker has none.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from factory.config import Settings
from factory.log import log
from factory.run.artifacts import batch_of, differences_key, get_differences, put_differences
from factory.run.entries import Extracted
from factory.run.page import Page
from factory.steps.resident import recipe_of, target_of

if TYPE_CHECKING:
    from factory.target.model import Target


def extract_step(page: Page, number: int, settings: Settings) -> None:
    """Read one batch with the target model, and note where its differences lie.

    Raises:
        ConfigError, TargetError: the model or its layers cannot be used here.
    """
    entry = page.extracted(number)
    if entry and (entry.key is None or page.store.exists(entry.key)):
        return  # it was read, or given up
    from factory.extraction.extract import describe_extraction, extract_rendered, render_batch
    from factory.target.layers import parse_layers

    spec, recipe = page.ledger.spec.extraction, recipe_of(page.ledger.spec.extraction)
    target = target_of(page.ledger.spec, settings)
    layers = parse_layers(spec.target_layers, target.n_layers)
    batch = render_batch(batch_of(page, number)[0], target, recipe)
    key = differences_key(batch, target, layers)
    differences = get_differences(page.store, key)
    seconds = None  # it had been read before
    if differences is None:
        started = time.monotonic()
        differences = extract_rendered(batch, target, layers, batch_tokens=spec.batch_tokens)
        seconds = round(time.monotonic() - started, 3)
        put_differences(page.store, key, differences)
    entry = Extracted(
        key=key,
        n_pairs=len(differences.pair_ids),
        reasons=dict(Counter(rejection.reason for rejection in differences.rejected)),
        seconds=seconds,
        config=describe_extraction(target, recipe, layers),
        peak_memory_mib=round(target.peak_memory_mib()),
    )
    if page.ledger.spec.learning:
        entry = entry.model_copy(update={"unlearnable": _unlearnable(page, number, target)})
    page.record("extracted", number, entry)
    log.info("batch %d: %d pairs extracted, %d rejected", number, len(differences.pair_ids), len(differences.rejected))


def _unlearnable(page: Page, number: int, target: Target) -> tuple[str, ...]:
    """Ids of the batch's pairs that learning cannot read; workers without the model will ask for them."""
    from factory.learning.learn import learnable_pairs

    pairs = batch_of(page, number)[0]
    learnable = {pair.pair_id for pair in learnable_pairs(pairs, target)}
    return tuple(pair.pair_id for pair in pairs if pair.pair_id not in learnable)
