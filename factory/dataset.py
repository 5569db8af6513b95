"""The dataset that a run makes of a style: its file, its manifest, and the pairs that were rejected.

Read from the batches in the store when the style ends; docs/format.md says what stands where.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from statistics import mean, median
from typing import Any

from factory.artifacts import get_pairs
from factory.errors import StoreError
from factory.ledger import Ledger
from factory.pairs import ContrastivePair
from factory.run import StyleRun
from factory.spending import price_source

LIBRARIES = ("steering-vector-factory", "openai", "rapidfuzz", "genai-prices")


def batch_of(ledger: Ledger, style: str, number: int) -> tuple[list[ContrastivePair], list[dict[str, Any]]]:
    """The pairs and the rejected questions of one batch.

    Raises:
        StoreError: the batch is not written, or its artifact is damaged.
    """
    key = ledger.batches(style)[number].pairs_key
    if key is None:
        entry = ledger.entry(style, "written", number)
        if entry is None:
            raise StoreError(f"batch {number} of style {style!r} is not written yet; 'svf resume' writes it")
        key = entry["key"]
    return get_pairs(ledger.store, key)


def teacher_model(ledger: Ledger, part: StyleRun) -> str:
    """Who wrote a style's pairs: this run's teacher, or whom the dataset names."""
    known = str(part.dataset_metadata.get("model_used", ""))
    return ledger.spec.teacher.model if part.from_teacher or not known else known


def write_dataset(ledger: Ledger, style: str) -> str:
    """Put a style's dataset, its manifest and its rejected pairs into the store; returns the dataset's SHA-256."""
    part = ledger.spec.style_run(style)
    words: list[tuple[int, int]] = []
    rejected: list[dict[str, Any]] = []
    for batch in ledger.batches(style):  # twice, as a style's pairs need not fit into memory
        good, bad = batch_of(ledger, style, batch.number)
        words += [(len(pair.positive_response.split()), len(pair.negative_response.split())) for pair in good]
        rejected += bad
    known = {key: value for key, value in part.dataset_metadata.items() if key not in ("type", "total_pairs")}
    metadata = known | {
        "style_name": style,
        "description": part.style.description,
        "total_pairs": len(words),
        "model_used": teacher_model(ledger, part),
        "lengths": length_statistics(words),
    }
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(ledger, style, metadata))
    digest = ledger.store.write_pieces(ledger.dataset_key(style), (line.encode() for line in lines))
    if rejected:
        reasons = [json.dumps({"style": style, **line}, ensure_ascii=False) + "\n" for line in rejected]
        ledger.store.write(ledger.rejected_key(style), "".join(reasons).encode())
    if part.from_teacher:
        ledger.store.write_json(ledger.manifest_key(style), manifest(ledger, part, len(words), rejected, digest))
    return digest


def _lines(ledger: Ledger, style: str, metadata: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A dataset's lines as :func:`factory.pairs.format_dataset` has them, one batch in memory at a time."""
    yield {"type": "metadata", **metadata}
    for batch in ledger.batches(style):
        for pair in batch_of(ledger, style, batch.number)[0]:
            yield pair.to_json()


def length_statistics(words: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Words of each pair's positive and negative answer, and their ratio: long positives teach length, not style."""
    positives = [positive for positive, _ in words] or [0]
    negatives = [negative for _, negative in words] or [0]
    ratios = [up / max(1, down) for up, down in zip(positives, negatives, strict=True)]
    return {
        "positive_words": {"mean": round(mean(positives), 1), "median": median(positives)},
        "negative_words": {"mean": round(mean(negatives), 1), "median": median(negatives)},
        "ratio": {"mean": round(mean(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)},
    }


def manifest(
    ledger: Ledger, part: StyleRun, n_pairs: int, rejected: Sequence[dict[str, Any]], dataset_sha256: str
) -> dict[str, Any]:
    """How a dataset came about: counts by reason, money spent and saved, versions."""
    style, spec = part.style.name, ledger.spec.teacher
    entries = [ledger.entry(style, "written", batch.number) or {} for batch in ledger.batches(style)]
    totals = {name: sum(entry.get(name) or 0 for entry in entries) for name in ("paid_calls", "cached_calls")}
    return {
        "style": style,
        "run": ledger.run_id,
        "dataset_sha256": dataset_sha256,
        "pairs": n_pairs,
        "rejected": dict(sorted(Counter(line["reason"] for line in rejected).items())),
        "teacher": spec.model_dump(mode="json"),
        "spent_usd": round(sum(entry.get("cost_usd") or 0.0 for entry in entries), 9),
        "saved_usd": round(sum(entry.get("saved_usd") or 0.0 for entry in entries), 9),
        **totals,
        "prices": price_source(spec),
        "libraries": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
    }
