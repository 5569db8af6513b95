"""Extraction: run the target model over rendered pairs and take differences of cached states.

The model runs without its output layer and stops at the last needed layer; texts of similar
length share a forward pass, and what texts have in common is read once (prefix.py). Results do
not depend on how texts were batched beyond the rounding of the dtype. This module does not know
where pairs come from nor where differences go.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from factory.errors import PairRejected
from factory.forward import needs_mask, reading, stream_dtype
from factory.kv import KVCache, LastLayerRead, Prefix, ReadingCache
from factory.packing import pack
from factory.pairs import ContrastivePair
from factory.prefix import Segment, levels, share_prefixes
from factory.recipe import Recipe, Rendering, render_in_group, usable_pairs
from factory.target import Target

BATCH_TOKENS = {"cuda": 16384, "mps": 4096, "cpu": 1024}


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
    minus negative, in the order of ``pair_ids``.
    """

    pair_ids: list[str]
    keys: Tensor
    values: Tensor
    rejected: list[Rejection] = field(default_factory=list)


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
    return Differences([pair_id for pair_id, _ in kept], keys, values, rejected)


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


@torch.inference_mode()
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
    """
    budget = batch_tokens or BATCH_TOKENS[target.device.type]
    reader = _Reader(positions, target, layers)
    with reading(target, last_layer=max(layers)):
        for level in levels(share_prefixes(texts, [at[0] for at in positions])):
            for chunk in pack(level, budget):
                reader.read(chunk)
        return reader.fetch()


class _Reader:
    """One pass over a batch's segments: prefixes kept on the way, states of the texts at the end.

    What is read stays on the device until :meth:`fetch`, so that no pass waits for a copy.
    """

    def __init__(self, positions: Sequence[Sequence[int]], target: Target, layers: Sequence[int]) -> None:
        self.positions = positions
        self.target = target
        self.layers = list(layers)
        self.prefixes: dict[int, Prefix] = {}
        self.states: dict[int, KVCache] = {}  # by text, on the device

    def read(self, chunk: Sequence[Segment]) -> None:
        """Run one forward pass over ``chunk``; on memory exhaustion, over its halves."""
        try:
            self._forward(chunk)
        except torch.OutOfMemoryError:
            if len(chunk) == 1:
                raise
            torch.cuda.empty_cache()
            self.read(chunk[: len(chunk) // 2])
            self.read(chunk[len(chunk) // 2 :])

    def _forward(self, chunk: Sequence[Segment]) -> None:
        inner = chunk[0].text is None
        reads = [] if inner else [(row, at) for row, segment in enumerate(chunk) for at in self._columns(segment)]
        parents = [self.prefixes[id(s.parent)] for s in chunk if s.parent is not None]
        rows = self.target.tensor([row for row, _ in reads])
        columns = self.target.tensor([column for _, column in reads])
        cache = ReadingCache(self.layers, (rows, columns), prefixes=parents or None, keep_all=inner)
        with suppress(LastLayerRead):
            self.target.model.base_model(
                inputs_embeds=self._embedded([segment.ids for segment in chunk]),
                position_ids=self._position_ids(chunk),
                attention_mask=self._mask(chunk, cache.prefix_length),
                past_key_values=cache,
                use_cache=True,
            )
        if inner:
            for row, segment in enumerate(chunk):
                self.prefixes[id(segment)] = cache.prefix_of(row, len(segment.ids))
        else:
            self._collect(chunk, cache)

    def _columns(self, leaf: Segment) -> list[int]:
        assert leaf.text is not None
        return [position - leaf.start for position in self.positions[leaf.text]]

    def _embedded(self, ids: Sequence[list[int]]) -> Tensor:
        """Embeddings of token ids, padded on the right: [batch, longest, hidden]. Causality hides the padding."""
        longest = max(map(len, ids))
        padded = self.target.tensor([row + [0] * (longest - len(row)) for row in ids])
        embedded: Tensor = self.target.model.get_input_embeddings()(padded)
        return embedded.to(stream_dtype(self.target))

    def _position_ids(self, chunk: Sequence[Segment]) -> Tensor:
        longest = max(len(segment.ids) for segment in chunk)
        starts = self.target.tensor([segment.start for segment in chunk])
        ahead = starts[:, None] + torch.arange(longest, device=starts.device)  # [batch, longest]
        last = starts[:, None] + self.target.tensor([[len(segment.ids) - 1] for segment in chunk])
        return torch.minimum(ahead, last)  # padding must not run past a table of learned positions

    def _mask(self, chunk: Sequence[Segment], prefix_length: int) -> Tensor | None:
        """Who sees whom: own prefix without its padding, then causally: [batch, 1, longest, keys].

        None where that is plain causality and the attention in force knows it.
        """
        if not prefix_length and not needs_mask(self.target):
            return None
        longest = max(len(segment.ids) for segment in chunk)
        device = self.target.device
        starts = self.target.tensor([segment.start for segment in chunk])
        prefix = torch.arange(prefix_length, device=device) < starts[:, None]  # [batch, prefix_length]
        causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        parts = [prefix[:, None].expand(-1, longest, -1), causal.expand(len(chunk), -1, -1)]
        hidden = ~torch.cat(parts, dim=2)[:, None]
        dtype = self.target.model.dtype  # added to scores: a mask of truths would be turned into one at every layer
        return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)

    def _collect(self, chunk: Sequence[Segment], cache: ReadingCache) -> None:
        """Turn keys back to position 0 and average each text's positions."""
        numbers = [segment.text for segment in chunk if segment.text is not None]
        flat = [position for number in numbers for position in self.positions[number]]
        keys = torch.stack([cache.read[layer][0] for layer in self.layers], dim=1)
        values = torch.stack([cache.read[layer][1] for layer in self.layers], dim=1)
        # both [n_reads, n_layers, n_kv_heads, head_dim]
        keys = self.target.rotation.turn(keys, self.target.tensor(flat), self.layers, back=True)
        start = 0
        for number in numbers:
            stop = start + len(self.positions[number])
            self.states[number] = KVCache(keys[start:stop].mean(dim=0), values[start:stop].mean(dim=0))
            start = stop

    def fetch(self) -> list[KVCache]:
        """The states of all texts in their order, in ordinary memory: one copy each for keys and values."""
        ordered = [self.states[number] for number in range(len(self.states))]
        if not ordered:
            return []
        keys = torch.stack([states.keys for states in ordered]).cpu()
        values = torch.stack([states.values for states in ordered]).cpu()
        return [KVCache(*states) for states in zip(keys, values, strict=True)]
