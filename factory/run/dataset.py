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
from typing import TypedDict

from factory.pairs.heldout import hash_question
from factory.pairs.pair import REPEATS, ContrastivePair
from factory.pairs.rejected import RejectedQuestion
from factory.pairs.repeats import SAME_ANSWER, find_repeats
from factory.run.artifacts import batch_of
from factory.run.page import Page
from factory.teacher.spending import price_source

UNKNOWN = "unknown"  # who wrote a dataset that does not say it
LIBRARIES = ("steering-vector-factory", "openai", "rapidfuzz", "genai-prices")


def teacher_model(page: Page) -> str:
    """Who wrote a style's pairs: this run's teacher, or whom the dataset names."""
    style_run = page.style_run
    known = str(style_run.dataset_metadata.get("model_used", "") or UNKNOWN)
    if not style_run.from_teacher:
        return known
    written = page.ledger.spec.teacher.model
    old = any(batch.pairs_key for batch in page.batches)
    return f"{known}, {written}" if old and known != written else written


def repeated_pairs(page: Page) -> dict[str, str]:
    """Pairs whose positive answer nearly repeats that of an earlier pair of the style: id -> the earlier one's id.

    A task sees its own batch alone, so this is asked when all are written, in the order of the
    batches: whoever wrote first does not matter. Pairs of an existing dataset count as they are
    marked there.
    """
    marked: dict[str, str] = {}
    ends = array("I")  # of each batch: how many pairs there are up to its end

    def answers() -> Iterator[str]:
        for batch in page.batches:
            pairs = batch_of(page, batch.number)[0]
            marked.update((pair.pair_id, str(pair.extra[REPEATS])) for pair in pairs if REPEATS in pair.extra)
            ends.append(len(pairs) + (ends[-1] if ends else 0))
            yield from (pair.positive_response for pair in pairs)

    if not page.style_run.from_teacher:
        for _ in answers():
            pass
        return marked
    repeats = find_repeats(answers(), SAME_ANSWER, numbers_tell=False)
    ids = _pair_ids(page, ends, {*repeats, *repeats.values()})
    written = (at for at in repeats if page.batches[bisect_right(ends, at)].pairs_key is None)
    return marked | {ids[at]: ids[repeats[at]] for at in written}


def _pair_ids(page: Page, ends: array[int], wanted: set[int]) -> dict[int, str]:
    """The ids of ``wanted`` pairs, by their places in the style."""
    ids: dict[int, str] = {}
    for number in sorted({bisect_right(ends, at) for at in wanted}):
        pairs = batch_of(page, number)[0]
        start = ends[number] - len(pairs)
        ids |= {start + at: pair.pair_id for at, pair in enumerate(pairs) if start + at in wanted}
    return ids


@dataclass(frozen=True)
class WrittenDataset:
    """What a vector says of the dataset that it is made from: its SHA-256, and hashes of the questions in it."""

    sha256: str
    question_hashes: list[str]


def write_dataset(page: Page, repeated: Mapping[str, str]) -> WrittenDataset:
    """Put a style's dataset, its manifest and its rejected pairs into the store.

    ``repeated`` pairs are marked and stand among the rejected; their lines stay, because others of
    their batch were read with them as examples.
    """
    style_run = page.style_run
    words = array("I"), array("I")  # of each positive answer, of each negative one
    rejected: list[RejectedQuestion] = []
    questions: set[str] = set()
    for batch in page.batches:  # twice, as a style's pairs need not fit into memory
        good, bad = batch_of(page, batch.number)
        words[0].extend(len(pair.positive_response.split()) for pair in good)
        words[1].extend(len(pair.negative_response.split()) for pair in good)
        questions.update(hash_question(pair.question) for pair in good)
        rejected += bad
        rejected += [_repeat(pair, repeated[pair.pair_id]) for pair in good if pair.pair_id in repeated]
    known = {key: value for key, value in style_run.dataset_metadata.items() if key not in ("type", "total_pairs")}
    metadata = known | {
        "style_name": page.name,
        "description": style_run.style.description,
        "total_pairs": len(words[0]),
        "model_used": teacher_model(page),
        "lengths": length_statistics(*words),
    }
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(page, metadata, repeated))
    digest = page.store.write_pieces(page.dataset_key, (line.encode() for line in lines))
    if rejected:
        reasons = [json.dumps({"style": page.name, **line.to_json()}, ensure_ascii=False) + "\n" for line in rejected]
        page.store.write(page.rejected_key, "".join(reasons).encode())
    if style_run.from_teacher:
        page.store.write_json(page.manifest_key, manifest(page, len(words[0]) - len(repeated), rejected, digest))
    return WrittenDataset(digest, sorted(questions))


def _repeat(pair: ContrastivePair, earlier: str) -> RejectedQuestion:
    """The question of a pair that nearly repeats an earlier one."""
    message = f"the positive answer to {pair.question!r} nearly repeats that of pair {earlier}"
    named = {"pair_id": pair.pair_id, REPEATS: earlier, "positive_response": pair.positive_response}
    return RejectedQuestion(pair.question, "duplicate", message, {"reasons": ["duplicate"], **named})


def _lines(page: Page, metadata: Mapping[str, object], repeated: Mapping[str, str]) -> Iterator[Mapping[str, object]]:
    """A dataset's lines as :func:`factory.pairs.dataset.format_dataset` has them, one batch in memory at a time."""
    yield {"type": "metadata", **metadata}
    for batch in page.batches:
        for pair in batch_of(page, batch.number)[0]:
            mark = {REPEATS: repeated[pair.pair_id]} if pair.pair_id in repeated else {}
            yield pair.to_json() | mark


class AnswerLengths(TypedDict):
    """Words of the positive and of the negative answers, and what of each pair the one has to the other."""

    positive_words: dict[str, float]
    negative_words: dict[str, float]
    ratio: dict[str, float]


def length_statistics(positives: Sequence[int], negatives: Sequence[int]) -> AnswerLengths:
    """Words of each pair's positive and negative answer, and their ratio: long positives teach length, not style."""
    positives, negatives = positives or [0], negatives or [0]
    ratios = [up / max(1, down) for up, down in zip(positives, negatives, strict=True)]
    return {
        "positive_words": {"mean": round(mean(positives), 1), "median": median(positives)},
        "negative_words": {"mean": round(mean(negatives), 1), "median": median(negatives)},
        "ratio": {"mean": round(mean(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)},
    }


def manifest(page: Page, n_pairs: int, rejected: Sequence[RejectedQuestion], dataset_sha256: str) -> dict[str, object]:
    """How a dataset came about: counts by reason, money spent and saved, versions."""
    spec, entries = page.ledger.spec.teacher, page.all_written()
    return {
        "style": page.name,
        "run": page.ledger.run_id,
        "dataset_sha256": dataset_sha256,
        "pairs": n_pairs,
        "rejected": dict(sorted(Counter(line.reason for line in rejected).items())),
        "teacher": spec.model_dump(mode="json"),
        "spent_usd": round(sum(entry.cost_usd for entry in entries), 9),
        "saved_usd": round(sum(entry.saved_usd for entry in entries), 9),
        "paid_calls": sum(entry.paid_calls for entry in entries),
        "cached_calls": sum(entry.cached_calls for entry in entries),
        "left_out": sorted({name for entry in entries for name in entry.left_out}),
        "prices": price_source(spec),
        "libraries": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
    }
