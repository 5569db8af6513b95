"""Build a vector here, in this process: pairs in, vector out.

Workers call the same functions with a queue between the steps, so both ways give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from factory.errors import StyleFailed
from factory.extract import Differences, Rejection, extract_batch
from factory.layers import parse_layers
from factory.pairs import CIRCLE, REPEATS, ContrastivePair, cut_batches, sha256_of
from factory.recipe import Recipe, as_recipe
from factory.statistics import FirstPass, SecondPass, summarize
from factory.target import Target
from factory.vector import SteeringVector

DISTRIBUTION = "steering-vector-factory"


@dataclass(frozen=True)
class Origin:
    """Where differences came from: everything a vector's file says beyond its numbers."""

    style: str
    model_name: str
    layers: list[int]
    extraction_config: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)


def describe_extraction(target: Target, recipe: Recipe, layers: Sequence[int]) -> dict[str, Any]:
    """The ``extraction_config`` of a vector: all that decides its numbers beside the pairs."""
    return {
        "recipe": recipe.name,
        "n_shots": recipe.n_shots if recipe.name == "fewshot" else None,
        "n_tokens": recipe.n_tokens if recipe.name == "response_mean" else None,
        "target_layers": list(layers),
        "max_sequence_length": recipe.max_sequence_length,
        "dtype": target.dtype,
        "keys": "rotated to position 0" if target.rotation.embedding is not None else "as cached",
        "neutral_token_id": target.neutral_id,
        "chat_template_sha256": target.template_sha256,
        "model_revision": target.revision,
    }


def hash_pairs(pairs: Iterable[ContrastivePair]) -> str:
    """One hash of what the pairs say, whatever file they stand in."""
    lines = [f"{p.pair_id}\n{p.question}\n{p.positive_response}\n{p.negative_response}\n" for p in pairs]
    return sha256_of("".join(lines))


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
    for batch in batches():
        shape = batch.values.shape
        first = first or FirstPass.start((shape[1], shape[2], shape[3]), block=shared)
        first.add(batch)
        rejected += batch.rejected
    if first is None or not first.total.count:
        raise StyleFailed(f"style {origin.style!r}: no pair could be read. {describe_rejections(rejected)}")
    keys, values = first.total.mean()
    second = SecondPass(values)
    for batch in batches():
        second.add(batch)
    used = first.total.count
    counts = {
        "total_pairs": used + len(rejected),
        "pairs_used": used,
        "pairs_failed": len(rejected),
        "failures": [{"pair_id": r.pair_id, "reason": r.reason} for r in rejected[:100]],
        "factory_version": version(DISTRIBUTION),
        "model_revision": origin.extraction_config["model_revision"],
    }
    metadata = {**origin.metadata, **counts, "quality": summarize(first, second)}
    return SteeringVector(
        origin.style, keys, values, origin.layers, origin.model_name, metadata, origin.extraction_config
    )


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
    )


def describe_rejections(rejected: Sequence[Rejection]) -> str:
    """Reasons and how often, the first of each spelled out; empty if there are none."""
    examples: dict[str, str] = {}
    for rejection in rejected:
        examples.setdefault(rejection.reason, rejection.message)
    counts = {reason: sum(r.reason == reason for r in rejected) for reason in examples}
    return "; ".join(f"{counts[reason]} x {reason} ({message})" for reason, message in examples.items())


def build_vector(
    pairs: Sequence[ContrastivePair],
    target: Target,
    *,
    style: str | None = None,
    recipe: Recipe | str = Recipe.name,
    layers: str | int | Sequence[int] | range = "all",
    batch_tokens: int | None = None,
) -> SteeringVector:
    """Make a style's vector from its pairs, in this process.

    ``layers`` takes ``"all"``, a list, a range or text such as ``"8-15,20"``. Pairs that cannot
    be read are left out and counted in the vector's metadata with their reason.

    Raises:
        LayerError: the model does not have a layer.
        StyleFailed: no pair could be read.
    """
    chosen, how = parse_layers(layers, target.n_layers), as_recipe(recipe)
    repeated = {pair.pair_id: str(pair.extra[REPEATS]) for pair in pairs if REPEATS in pair.extra}
    read = (extract_batch(batch, target, chosen, how, batch_tokens=batch_tokens) for batch in cut_batches(pairs))
    parts = [without_repeats(part, repeated) for part in read]
    origin = Origin(
        style=style or (pairs[0].style if pairs else ""),
        model_name=target.name,
        layers=chosen,
        extraction_config=describe_extraction(target, how, chosen),
        metadata={"dataset_sha256": hash_pairs(pairs)},
    )
    return reduce_differences(lambda: parts, origin)
