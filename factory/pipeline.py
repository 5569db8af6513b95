"""Build a vector here, in this process: pairs in, vector out.

Workers call the same functions with a queue between the steps, so both ways give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from factory.errors import DatasetError
from factory.extraction.extract import describe_extraction, extract_batch
from factory.extraction.recipe import Recipe, as_recipe
from factory.pairs.heldout import QUESTION_HASHES, hash_questions
from factory.pairs.pair import REPEATS, ContrastivePair, cut_batches, hash_pairs
from factory.target.layers import parse_layers
from factory.target.model import Target
from factory.vector.mean import Origin, reduce_differences, without_repeats
from factory.vector.vector import SteeringVector


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

    >>> from factory import load_target
    >>> target = load_target("smollm2-135m-instruct", device="cpu")
    >>> questions = ["What is rain?", "What is fire?"]
    >>> pairs = [ContrastivePair(it, "Step 1: Look at it.", "It is weather.", style="steps") for it in questions]
    >>> vector = build_vector(pairs, target, recipe="response_mean", layers="10-19")
    >>> list(vector.value_vector.shape), vector.metadata["pairs_used"]
    ([10, 3, 64], 2)

    Raises:
        DatasetError: two pairs have one pair_id.
        LayerError: the model does not have a layer.
        StyleFailed: no pair could be read.
    """
    twice = [pair_id for pair_id, count in Counter(pair.pair_id for pair in pairs).items() if count > 1]
    if twice:
        raise DatasetError(
            f"{len(twice)} pair ids stand at more than one pair, such as {twice[0]!r}: "
            "give each pair a pair_id of its own"
        )
    chosen, how = parse_layers(layers, target.n_layers), as_recipe(recipe)
    repeated = {pair.pair_id: str(pair.extra[REPEATS]) for pair in pairs if REPEATS in pair.extra}
    read = (extract_batch(batch, target, chosen, how, batch_tokens=batch_tokens) for batch in cut_batches(pairs))
    parts = [without_repeats(part, repeated) for part in read]
    origin = Origin(
        style=style or (pairs[0].style if pairs else ""),
        model_name=target.name,
        layers=chosen,
        extraction_config=describe_extraction(target, how, chosen),
        metadata={
            "dataset_sha256": hash_pairs(pairs),
            QUESTION_HASHES: hash_questions(pair.question for pair in pairs),
        },
    )
    return reduce_differences(lambda: parts, origin)
