"""Extraction: run the target model over rendered pairs and take differences of cached states.

The model runs without its output layer and stops at the last needed layer; texts share a forward
pass (packing.py), and what they have in common is read once (prefix.py). Results do not depend on
how texts were batched beyond the rounding of the dtype. This module does not know where pairs come
from nor where differences go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import JsonValue
from torch import Tensor

from factory.errors import PairRejected
from factory.extraction.reader import read_texts
from factory.extraction.recipe import Recipe, Rendering, render_in_group, usable_pairs
from factory.extraction.trial import can_share_passes
from factory.pairs.pair import ContrastivePair
from factory.target.kv import KVCache
from factory.target.model import Target


@dataclass(frozen=True)
class Rejection:
    """A pair that could not be read: ``reason`` is a short code, ``message`` says more."""

    pair_id: str
    reason: str
    message: str


@dataclass(frozen=True)
class Differences:
    """What one batch of pairs gave.

    ``keys`` and ``values`` are float32 ``[n_pairs, n_layers, n_kv_heads, head_dim]``, positive
    minus negative, in the order of ``pair_ids``. ``n_examples``: how many examples each few-shot text had.
    """

    pair_ids: list[str]
    keys: Tensor
    values: Tensor
    rejected: list[Rejection] = field(default_factory=list)
    n_examples: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class RenderedBatch:
    """A batch as the target model will read it, and the pairs that it will not read."""

    pair_ids: list[str]
    renderings: list[Rendering]
    rejected: list[Rejection]


def render_batch(batch: Sequence[ContrastivePair], target: Target, recipe: Recipe) -> RenderedBatch:
    """Render every pair of a batch that can be read; record the others with their reason."""
    usable, refused = usable_pairs(batch, target, recipe)
    rejected = [Rejection(pair.pair_id, error.reason, str(error)) for pair, error in refused]
    pair_ids, renderings = [], []
    for pair in usable:
        try:
            renderings.append(render_in_group(pair, usable, target, recipe))
            pair_ids.append(pair.pair_id)
        except PairRejected as error:
            rejected.append(Rejection(pair.pair_id, error.reason, str(error)))
    return RenderedBatch(pair_ids, renderings, rejected)


def extract_rendered(
    batch: RenderedBatch, target: Target, layers: Sequence[int], *, batch_tokens: int | None = None
) -> Differences:
    """Read a rendered batch: positive minus negative states of each pair at ``layers``.

    ``batch_tokens`` bounds a forward pass; it is halved, not exceeded, when memory runs out.
    Pairs whose difference is not finite are rejected.
    """
    texts = [ids for r in batch.renderings for ids in (r.positive_ids, r.negative_ids)]
    positions = [at for r in batch.renderings for at in (r.positive_positions, r.negative_positions)]
    states = read_states(texts, positions, target, layers, batch_tokens=batch_tokens)
    kept: list[tuple[str, KVCache]] = []
    rejected = list(batch.rejected)
    for number, pair_id in enumerate(batch.pair_ids):
        difference = states[2 * number] - states[2 * number + 1]
        if difference.is_finite():
            kept.append((pair_id, difference))
        else:
            message = f"{pair_id}: the difference is not finite ({target.dtype} overflowed)"
            rejected.append(Rejection(pair_id, "not_finite", message))
    shape = (0, len(layers), *target.shape)
    keys = torch.stack([d.keys for _, d in kept]) if kept else torch.zeros(shape)
    values = torch.stack([d.values for _, d in kept]) if kept else torch.zeros(shape)
    n_examples = [rendering.n_examples for rendering in batch.renderings if rendering.n_examples is not None]
    return Differences([pair_id for pair_id, _ in kept], keys, values, rejected, n_examples)


def extract_batch(
    batch: Sequence[ContrastivePair],
    target: Target,
    layers: Sequence[int],
    recipe: Recipe,
    *,
    batch_tokens: int | None = None,
) -> Differences:
    """Differences of one batch of pairs (see :func:`extract_rendered`)."""
    return extract_rendered(render_batch(batch, target, recipe), target, layers, batch_tokens=batch_tokens)


def read_states(
    texts: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    target: Target,
    layers: Sequence[int],
    *,
    batch_tokens: int | None = None,
) -> list[KVCache]:
    """The cached states of each text at ``layers``, averaged over its ``positions``.

    ``texts`` are token ids; ``positions[i]`` are sorted indices into ``texts[i]``.

    Raises:
        TargetError: the model cannot be read so (see :func:`can_share_passes`).
    """
    packed = can_share_passes(target)
    return read_texts(texts, positions, target, layers, budget=batch_tokens, packed=packed)


def describe_extraction(target: Target, recipe: Recipe, layers: Sequence[int]) -> dict[str, JsonValue]:
    """The ``extraction_config`` of a vector: all that decides its numbers beside the pairs.

    The day is part of it where the chat template writes one into every text.
    """
    day: dict[str, JsonValue] = {"date": target.date} if target.chat.is_dated else {}
    return day | {
        "recipe": recipe.name,
        "n_shots": recipe.n_shots if recipe.name == "fewshot" else None,
        "n_tokens": recipe.n_tokens if recipe.name == "response_mean" else None,
        "target_layers": list(layers),
        "max_sequence_length": recipe.max_sequence_length,
        "dtype": target.dtype,
        "keys": target.anatomy.keys,
        "neutral_token_id": target.neutral_id,
        "chat_template_sha256": target.template_sha256,
        "model_revision": target.revision,
    }
