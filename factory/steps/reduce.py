"""The step of the queue ``reduce``: all differences of a style become its vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from factory.errors import StoreError, StyleFailed
from factory.files import sha256_of
from factory.log import log
from factory.pairs.heldout import QUESTION_HASHES
from factory.run.artifacts import batch_of, require_differences
from factory.run.dataset import WrittenDataset, repeated_pairs, teacher_model, write_dataset
from factory.run.entries import Ended, Extracted, Reduced
from factory.run.page import Page
from factory.steps.learn import begin_learning, made_of, next_round

if TYPE_CHECKING:
    from factory.extraction.extract import Differences, Rejection
    from factory.vector.mean import Origin


def reduce_step(page: Page) -> None:
    """Average a style's differences into its mean; where nothing else is to come, the style ends with it.

    Raises:
        StoreError: a batch is missing; the style can be resumed.
    """
    if page.result:
        return
    missing = page.missing_numbers()
    if missing:
        raise StoreError(f"style {page.name!r}: batches {missing[:10]} are not extracted yet; 'svf resume' makes them")
    try:
        reduced = page.reduced() or _reduce(page, page.all_extracted())
    except StyleFailed as error:
        log.error("%s", error)
        page.finish(Ended(state="failed", message=str(error)))
        return
    page.record("reduced", 0, reduced)
    if page.ledger.spec.evaluation is None and next_round(page) is None:
        page.finish(Ended.after(*made_of(page)))


def _reduce(page: Page, extracted: Sequence[Extracted]) -> Reduced:
    """Make the mean; ``extracted`` has the entry of every batch, by number."""
    from factory.vector.mean import reduce_differences, without_repeats

    repeated = repeated_pairs(page)
    dataset = write_dataset(page, repeated)
    _check_failures(page, extracted, len(repeated))
    origin = _origin(page, extracted, dataset)
    vector = reduce_differences(
        lambda: (without_repeats(batch, repeated) for batch in _differences(page, extracted)), origin
    )
    content = vector.to_pt()
    if page.ledger.spec.learning:
        begin_learning(page, content, extracted, repeated)
    else:
        page.store.write(page.vector_key, content)
    used = int(vector.metadata["pairs_used"])
    log.info("vector of %d pairs made", used)
    reduced = Reduced(state="done", vector_sha256=sha256_of(content), pairs_used=used)
    return reduced.model_copy(update={"reasons": {"duplicate": len(repeated)}}) if repeated else reduced


def _check_failures(page: Page, extracted: Sequence[Extracted], n_repeated: int) -> None:
    """End the style where too few pairs are left, or too many failed.

    Raises:
        StyleFailed: with the reasons.
    """
    spec, n_pairs = page.ledger.spec, page.style_run.n_pairs
    counts = Counter({"duplicate": n_repeated})
    for reasons_of_one in (entry.reasons for entries in (page.all_written(), extracted) for entry in entries):
        counts.update(reasons_of_one)
    counts = +counts
    reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(counts.items()))
    failed, usable = counts.total(), sum(entry.n_pairs for entry in extracted) - n_repeated
    allowed = page.ledger.max_failed_fraction
    if failed > allowed * n_pairs:
        raise StyleFailed(
            f"style {page.name!r}: {failed} of {n_pairs} pairs failed ({reasons}), more than "
            f"max_failed_fraction {allowed:g}. Questions that the teacher did not answer are asked "
            f"again by 'svf resume'; 'svf resume --max-failed-fraction {min(1.0, failed / n_pairs + 0.01):.2f}' "
            "goes on with what is left; other pairs need another seed or dataset, and a new run"
        )
    if usable < spec.min_pairs:
        raise StyleFailed(
            f"style {page.name!r}: {usable} pairs could be used, min_pairs is {spec.min_pairs}"
            + (f" ({reasons})" if reasons else "")
            + ": add questions, then start a new run"
        )


def _differences(page: Page, extracted: Sequence[Extracted]) -> Iterator[Differences]:
    """The style's batches in their fixed order, one in memory at a time.

    A batch that was given up has no tensors; its pairs are carried as rejected by the next batch
    that has some, those at the end by an empty copy of the last.
    """
    lost: list[Rejection] = []
    differences: Differences | None = None
    for number, entry in enumerate(extracted):
        if entry.key is None:
            lost += _given_up(page, number, entry)
            continue
        differences = require_differences(page.store, entry.key)
        yield replace(differences, rejected=[*lost, *differences.rejected])
        lost = []
    if lost and differences:
        yield replace(differences, pair_ids=[], keys=differences.keys[:0], values=differences.values[:0], rejected=lost)


def _given_up(page: Page, number: int, entry: Extracted) -> list[Rejection]:
    """The pairs of a batch that was given up, as pairs that could not be read."""
    from factory.extraction.extract import Rejection

    (reason,) = entry.reasons
    return [Rejection(pair.pair_id, reason, "its batch was given up") for pair in batch_of(page, number)[0]]


def _origin(page: Page, extracted: Sequence[Extracted], dataset: WrittenDataset) -> Origin:
    """What the vector's file will say of where it comes from.

    Raises:
        StyleFailed: batches were read in different ways.
    """
    from factory.vector.mean import Origin

    configs = [entry.config for entry in extracted if entry.config is not None]  # the others were given up
    config = configs[0]  # some batch was read: _check_failures has passed
    for other in configs:
        if other != config:
            differing = [key for key, value in config.items() if other.get(key) != value]
            raise StyleFailed(
                f"style {page.name!r}: its batches were read with different {', '.join(differing)}; one vector needs "
                "one. Give every gpu worker the same device and dtype, then run again"
            )
    metadata = {
        "description": page.style.description,
        "teacher_model": teacher_model(page),
        "dataset_sha256": dataset.sha256,
        QUESTION_HASHES: dataset.question_hashes,
    }
    layers = TypeAdapter(list[int]).validate_python(config["target_layers"])
    return Origin(page.name, page.ledger.spec.extraction.target_model, layers, config, metadata)
