"""The step of the queue ``reduce``: all differences of a style become its vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from factory.errors import StoreError, StyleFailed
from factory.files import sha256_of
from factory.log import log
from factory.pairs.heldout import QUESTION_HASHES
from factory.run.artifacts import batch_of, require_differences
from factory.run.dataset import WrittenDataset, repeated_pairs, teacher_model, write_dataset
from factory.run.ledger import Ledger
from factory.run.spec import StyleRun

if TYPE_CHECKING:
    from factory.extraction.extract import Differences, Rejection
    from factory.vector.mean import Origin


def reduce_step(ledger: Ledger, style: str) -> None:
    """Average a style's differences into its vector; without an evaluation to come, the style ends.

    Raises:
        StoreError: a batch is missing; the style can be resumed.
    """
    if ledger.result(style):
        return
    missing = ledger.missing_numbers(style)
    if missing:
        raise StoreError(f"style {style!r}: batches {missing[:10]} are not extracted yet; 'svf resume' makes them")
    result = ledger.entry(style, "reduced", 0)
    try:
        result = result or _reduce(ledger, style)
    except StyleFailed as error:
        log.error("%s", error)
        ledger.finish(style, {"state": "failed", "message": str(error)})
        return
    ledger.record(style, "reduced", 0, result)
    if ledger.spec.evaluation is None:
        ledger.finish(style, result)


def _reduce(ledger: Ledger, style: str) -> dict[str, Any]:
    from factory.vector.mean import reduce_differences, without_repeats

    part = ledger.spec.style_run(style)
    repeated = repeated_pairs(ledger, style)
    dataset = write_dataset(ledger, style, repeated)
    _check_failures(ledger, part, len(repeated))
    origin = _origin(ledger, part, dataset)
    vector = reduce_differences(
        lambda: (without_repeats(batch, repeated) for batch in _differences(ledger, style)), origin
    )
    content = vector.to_pt()
    ledger.store.write(ledger.vector_key(style), content)
    log.info("vector of %d pairs made", vector.metadata["pairs_used"])
    facts = {"vector_sha256": sha256_of(content), "pairs_used": vector.metadata["pairs_used"]}
    return {"state": "done", **facts, **({"reasons": {"duplicate": len(repeated)}} if repeated else {})}


def _check_failures(ledger: Ledger, part: StyleRun, n_repeated: int) -> None:
    name = part.style.name
    progress = ledger.progress(name)
    spec = ledger.spec
    counts = Counter(progress.reasons) + Counter({"duplicate": n_repeated})
    reasons = ", ".join(f"{count} x {reason}" for reason, count in sorted(counts.items()))
    failed, usable = counts.total(), progress.extracted - n_repeated
    if failed > ledger.max_failed_fraction * part.n_pairs:
        raise StyleFailed(
            f"style {name!r}: {failed} of {part.n_pairs} pairs failed ({reasons}), more than "
            f"max_failed_fraction {ledger.max_failed_fraction:g}. Questions that the teacher did not answer are asked "
            f"again by 'svf resume'; 'svf resume --max-failed-fraction {min(1.0, failed / part.n_pairs + 0.01):.2f}' "
            "goes on with what is left; other pairs need another seed or dataset, and a new run"
        )
    if usable < spec.min_pairs:
        raise StyleFailed(
            f"style {name!r}: {usable} pairs could be used, min_pairs is {spec.min_pairs}"
            + (f" ({reasons})" if reasons else "")
            + ": add questions, then start a new run"
        )


def _differences(ledger: Ledger, style: str) -> Iterator[Differences]:
    """A style's batches in their fixed order, one in memory at a time."""
    lost: list[Rejection] = []
    differences: Differences | None = None
    for batch in ledger.batches(style):
        entry = ledger.entry(style, "extracted", batch.number)
        if entry is None:
            raise StoreError(f"batch {batch.number} of style {style!r} is missing; 'svf resume' makes it")
        if entry["key"] is None:
            lost += _given_up(ledger, style, batch.number, entry)
            continue
        differences = require_differences(ledger.store, entry["key"])
        yield replace(differences, rejected=[*lost, *differences.rejected])
        lost = []
    if lost and differences:
        yield replace(differences, pair_ids=[], keys=differences.keys[:0], values=differences.values[:0], rejected=lost)


def _given_up(ledger: Ledger, style: str, number: int, entry: dict[str, Any]) -> list[Rejection]:
    """The pairs of a batch that was given up, as pairs that could not be read."""
    from factory.extraction.extract import Rejection

    (reason,) = entry["reasons"]
    return [Rejection(pair.pair_id, reason, "its batch was given up") for pair in batch_of(ledger, style, number)[0]]


def _origin(ledger: Ledger, part: StyleRun, dataset: WrittenDataset) -> Origin:
    from factory.vector.mean import Origin

    style = part.style.name
    entries = [ledger.entry(style, "extracted", batch.number) or {} for batch in ledger.batches(style)]
    entries = [entry for entry in entries if entry["key"] is not None]  # the others were given up
    config: dict[str, Any] = entries[0]["config"]
    for entry in entries:
        if entry["config"] != config:
            differing = [key for key, value in config.items() if entry["config"].get(key) != value]
            raise StyleFailed(
                f"style {style!r}: its batches were read with different {', '.join(differing)}; one vector needs "
                "one. Give every gpu worker the same device and dtype, then run again"
            )
    metadata = {
        "description": part.style.description,
        "teacher_model": teacher_model(ledger, part),
        "dataset_sha256": dataset.sha256,
        QUESTION_HASHES: dataset.question_hashes,
    }
    return Origin(style, ledger.spec.extraction.target_model, config["target_layers"], config, metadata)
