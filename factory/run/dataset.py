"""The dataset that a run makes of a style: its file, its manifest, and the pairs that were rejected.

Read from the batches in the store when the style ends; docs/format.md says what stands where.
"""

from __future__ import annotations

import json
import platform
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import mean, median
from typing import Any

from factory.pairs.heldout import hash_question
from factory.pairs.pair import REPEATS, ContrastivePair
from factory.pairs.repeats import SAME_ANSWER, find_repeats
from factory.run.artifacts import batch_of
from factory.run.ledger import Ledger
from factory.run.spec import StyleRun
from factory.teacher.spending import price_source

UNKNOWN = "unknown"  # who wrote a dataset that does not say it
LIBRARIES = ("steering-vector-factory", "openai", "rapidfuzz", "genai-prices")


def teacher_model(ledger: Ledger, part: StyleRun) -> str:
    """Who wrote a style's pairs: this run's teacher, or whom the dataset names."""
    known = str(part.dataset_metadata.get("model_used", "") or UNKNOWN)
    if not part.from_teacher:
        return known
    written = ledger.spec.teacher.model
    old = any(batch.pairs_key for batch in ledger.batches(part.style.name))
    return f"{known}, {written}" if old and known != written else written


def repeated_pairs(ledger: Ledger, style: str) -> dict[str, str]:
    """Pairs whose positive answer nearly repeats that of an earlier pair of the style: id -> the earlier one's id.

    A task sees its own batch alone, so this is asked when all are written, in the order of the
    batches: whoever wrote first does not matter. Pairs of an existing dataset count as they are
    marked there.
    """
    marked: dict[str, str] = {}
    ends = array("I")  # of each batch: how many pairs there are up to its end

    def answers() -> Iterator[str]:
        for batch in ledger.batches(style):
            pairs = batch_of(ledger, style, batch.number)[0]
            marked.update((pair.pair_id, str(pair.extra[REPEATS])) for pair in pairs if REPEATS in pair.extra)
            ends.append(len(pairs) + (ends[-1] if ends else 0))
            yield from (pair.positive_response for pair in pairs)

    if not ledger.spec.style_run(style).from_teacher:
        for _ in answers():
            pass
        return marked
    repeats = find_repeats(answers(), SAME_ANSWER, numbers_tell=False)
    ids = _pair_ids(ledger, style, ends, {*repeats, *repeats.values()})
    written = (at for at in repeats if ledger.batches(style)[bisect_right(ends, at)].pairs_key is None)
    return marked | {ids[at]: ids[repeats[at]] for at in written}


def _pair_ids(ledger: Ledger, style: str, ends: array[int], wanted: set[int]) -> dict[int, str]:
    """The ids of ``wanted`` pairs, by their places in the style."""
    ids: dict[int, str] = {}
    for number in sorted({bisect_right(ends, at) for at in wanted}):
        pairs = batch_of(ledger, style, number)[0]
        start = ends[number] - len(pairs)
        ids |= {start + at: pair.pair_id for at, pair in enumerate(pairs) if start + at in wanted}
    return ids


@dataclass(frozen=True)
class WrittenDataset:
    """What a vector says of the dataset that it is made from: its SHA-256, and hashes of the questions in it."""

    sha256: str
    question_hashes: list[str]


def write_dataset(ledger: Ledger, style: str, repeated: Mapping[str, str]) -> WrittenDataset:
    """Put a style's dataset, its manifest and its rejected pairs into the store.

    ``repeated`` pairs are marked and stand among the rejected; their lines stay, because others of
    their batch were read with them as examples.
    """
    part = ledger.spec.style_run(style)
    words = array("I"), array("I")  # of each positive answer, of each negative one
    rejected: list[dict[str, Any]] = []
    questions: set[str] = set()
    for batch in ledger.batches(style):  # twice, as a style's pairs need not fit into memory
        good, bad = batch_of(ledger, style, batch.number)
        words[0].extend(len(pair.positive_response.split()) for pair in good)
        words[1].extend(len(pair.negative_response.split()) for pair in good)
        questions.update(hash_question(pair.question) for pair in good)
        rejected += bad
        rejected += [_repeat(pair, repeated[pair.pair_id]) for pair in good if pair.pair_id in repeated]
    known = {key: value for key, value in part.dataset_metadata.items() if key not in ("type", "total_pairs")}
    metadata = known | {
        "style_name": style,
        "description": part.style.description,
        "total_pairs": len(words[0]),
        "model_used": teacher_model(ledger, part),
        "lengths": length_statistics(*words),
    }
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(ledger, style, metadata, repeated))
    digest = ledger.store.write_pieces(ledger.dataset_key(style), (line.encode() for line in lines))
    if rejected:
        reasons = [json.dumps({"style": style, **line}, ensure_ascii=False) + "\n" for line in rejected]
        ledger.store.write(ledger.rejected_key(style), "".join(reasons).encode())
    if part.from_teacher:
        ledger.store.write_json(
            ledger.manifest_key(style), manifest(ledger, part, len(words[0]) - len(repeated), rejected, digest)
        )
    return WrittenDataset(digest, sorted(questions))


def _repeat(pair: ContrastivePair, earlier: str) -> dict[str, Any]:
    """The rejected line of a pair that nearly repeats an earlier one."""
    message = f"the positive answer to {pair.question!r} nearly repeats that of pair {earlier}"
    named = {"pair_id": pair.pair_id, REPEATS: earlier, "positive_response": pair.positive_response}
    return {"question": pair.question, "reason": "duplicate", "message": message, "reasons": ["duplicate"], **named}


def _lines(
    ledger: Ledger, style: str, metadata: dict[str, Any], repeated: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """A dataset's lines as :func:`factory.pairs.dataset.format_dataset` has them, one batch in memory at a time."""
    yield {"type": "metadata", **metadata}
    for batch in ledger.batches(style):
        for pair in batch_of(ledger, style, batch.number)[0]:
            mark = {REPEATS: repeated[pair.pair_id]} if pair.pair_id in repeated else {}
            yield pair.to_json() | mark


def length_statistics(positives: Sequence[int], negatives: Sequence[int]) -> dict[str, Any]:
    """Words of each pair's positive and negative answer, and their ratio: long positives teach length, not style."""
    positives, negatives = positives or [0], negatives or [0]
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
        "left_out": sorted({name for entry in entries for name in entry.get("left_out", [])}),
        "prices": price_source(spec),
        "libraries": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
    }
