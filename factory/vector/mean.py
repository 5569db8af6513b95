"""The mean of a style's differences: the chord's body as a plain function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from pydantic import JsonValue

from factory.errors import StyleFailed
from factory.extraction.extract import Differences, Rejection
from factory.extras import DISTRIBUTION
from factory.log import log
from factory.pairs.pair import CIRCLE
from factory.vector.quality import KEY as QUALITY
from factory.vector.statistics import FirstPass, SecondPass, summarize
from factory.vector.vector import SteeringVector


@dataclass(frozen=True)
class Origin:
    """Where differences came from: everything a vector's file says beyond its numbers."""

    style: str
    model_name: str
    layers: list[int]
    extraction_config: dict[str, JsonValue]
    metadata: Mapping[str, object] = field(default_factory=dict)


def reduce_differences(batches: Callable[[], Iterable[Differences]], origin: Origin) -> SteeringVector:
    """Average a style's differences into its vector, in the order in which ``batches()`` gives them.

    ``batches`` is called twice: once to sum, once to hold each pair against the mean. Memory does
    not grow with the number of pairs.

    Raises:
        StyleFailed: no pair could be read; lists the reasons.
    """
    shared = CIRCLE if origin.extraction_config["recipe"] == "fewshot" else 1
    first: FirstPass | None = None
    rejected: list[Rejection] = []
    n_examples: list[int] = []
    for batch in batches():
        shape = batch.values.shape
        first = first or FirstPass.start((shape[1], shape[2], shape[3]), block=shared)
        first.add(batch)
        rejected += batch.rejected
        n_examples += batch.n_examples
    if first is None or not first.total.count:
        raise StyleFailed(f"style {origin.style!r}: no pair could be read. {describe_rejections(rejected)}")
    keys, values = first.total.mean()
    second = SecondPass(values)
    for batch in batches():
        second.add(batch)
    used = first.total.count
    counts: dict[str, JsonValue] = {
        "total_pairs": used + len(rejected),
        "pairs_used": used,
        "pairs_failed": len(rejected),
        "failures": [{"pair_id": r.pair_id, "reason": r.reason} for r in rejected[:100]],
        "factory_version": version(DISTRIBUTION),
        "model_revision": origin.extraction_config["model_revision"],
    }
    counts |= _fewer_examples(n_examples, origin)
    metadata = {**origin.metadata, **counts, QUALITY: summarize(first, second).to_json()}
    return SteeringVector(
        origin.style, keys, values, origin.layers, origin.model_name, metadata, origin.extraction_config
    )


def _fewer_examples(found: list[int], origin: Origin) -> dict[str, JsonValue]:
    """What few-shot texts had, where some had fewer examples than the recipe asks: said, and recorded."""
    asked = origin.extraction_config.get("n_shots")
    if not found or not isinstance(asked, int) or min(found) >= asked:
        return {}
    fewer = sum(count < asked for count in found)
    log.warning(
        "style %r: %d of %d texts have fewer than %d examples (the fewest %d): a batch needs %d pairs or more, and "
        "texts must fit their limit",
        origin.style,
        fewer,
        len(found),
        asked,
        min(found),
        asked + 1,
    )
    return {"examples": {"asked": asked, "fewest": min(found), "texts_with_fewer": fewer}}


def without_repeats(differences: Differences, repeated: Mapping[str, str]) -> Differences:
    """A batch's differences without pairs that nearly repeat others: those would count twice."""
    kept = [row for row, pair_id in enumerate(differences.pair_ids) if pair_id not in repeated]
    if len(kept) == len(differences.pair_ids):
        return differences
    rejected = [
        Rejection(pair_id, "duplicate", f"{pair_id} nearly repeats {repeated[pair_id]}")
        for pair_id in differences.pair_ids
        if pair_id in repeated
    ]
    return Differences(
        [differences.pair_ids[row] for row in kept],
        differences.keys[kept],
        differences.values[kept],
        [*differences.rejected, *rejected],
        differences.n_examples,
    )


def describe_rejections(rejected: Sequence[Rejection]) -> str:
    """Reasons and how often, the first of each spelled out; empty if there are none."""
    examples: dict[str, str] = {}
    for rejection in rejected:
        examples.setdefault(rejection.reason, rejection.message)
    counts = {reason: sum(r.reason == reason for r in rejected) for reason in examples}
    return "; ".join(f"{counts[reason]} x {reason} ({message})" for reason, message in examples.items())
