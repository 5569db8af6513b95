"""Reading texts: forward passes over what they share and what each has of its own, and the states that they leave."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from factory.extraction.cache import LastLayerRead, ReadingCache, SharedStates
from factory.extraction.forward import reading, stream_dtype
from factory.extraction.packing import pack
from factory.extraction.prefix import Segment, share_prefixes
from factory.target.kv import KVCache
from factory.target.model import Target

BATCH_TOKENS = {"cuda": 16384, "mps": 4096, "cpu": 768}


@torch.inference_mode()
def read_texts(
    texts: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    target: Target,
    layers: Sequence[int],
    *,
    budget: int | None,
    packed: bool,
) -> list[KVCache]:
    """The cached states of each text at ``layers``, averaged over its ``positions``.

    A pass has up to ``budget`` tokens. ``packed``: segments of several texts share a pass, by an attention of
    ours; else each has one of its own, with the model's.
    """
    segments = share_prefixes(texts, [at[0] for at in positions])
    tokens = (budget or BATCH_TOKENS[target.device.type]) if packed else 1  # of 1: every segment by itself
    hidden = _hidden(max(map(len, texts), default=0), target) if packed else None
    reader = _Reader(positions, target, layers, hidden=hidden)
    with target.lock, reading(target, last_layer=max(layers), packed=packed):
        for row in pack(segments, tokens):
            reader.read(row)
        return reader.fetch()


class _Reader:
    """Reads a batch's segments row by row: what texts share is kept on the way, their states at the end.

    What is read stays on the device until :meth:`fetch`, so that no pass waits for a copy.
    """

    def __init__(
        self, positions: Sequence[Sequence[int]], target: Target, layers: Sequence[int], *, hidden: Tensor | None
    ) -> None:
        self.positions = positions
        self.target = target
        self.layers = list(layers)
        self.hidden = hidden
        self.shared: SharedStates = {}
        self.states: dict[int, KVCache] = {}  # by text, on the device

    def read(self, row: Sequence[Segment]) -> None:
        """Run one forward pass over ``row``; on memory exhaustion, over its halves."""
        try:
            self._forward(row)
            return
        except torch.OutOfMemoryError:
            if len(row) == 1:
                raise
        torch.cuda.empty_cache()  # only here: while an error is handled, it holds what the pass had made
        self.read(row[: len(row) // 2])
        self.read(row[len(row) // 2 :])

    def _forward(self, row: Sequence[Segment]) -> None:
        columns = self.target.tensor(self._columns(row))
        cache = ReadingCache(self.layers, row, columns, shared=self.shared, hidden=self.hidden)
        positions = [position for segment in row for position in range(segment.start, segment.stop)]
        with suppress(LastLayerRead):
            self.target.model.base_model(
                inputs_embeds=self._embedded([token for segment in row for token in segment.ids]),
                position_ids=self.target.tensor([positions]),
                past_key_values=cache,
                use_cache=True,
            )
        self._collect(row, cache)

    def _columns(self, row: Sequence[Segment]) -> list[int]:
        """Where in the row the states stand that are read."""
        columns, offset = [], 0
        for segment in row:
            if segment.text is not None:
                columns += [offset + position - segment.start for position in self.positions[segment.text]]
            offset += len(segment.ids)
        return columns

    def _embedded(self, ids: list[int]) -> Tensor:
        embedded: Tensor = self.target.model.get_input_embeddings()(self.target.tensor([ids]))  # [1, n_tokens, hidden]
        return embedded.to(stream_dtype(self.target))

    def _collect(self, row: Sequence[Segment], cache: ReadingCache) -> None:
        """Turn keys back to position 0 and average each text's positions."""
        numbers = [segment.text for segment in row if segment.text is not None]
        if not numbers:
            return
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


def _hidden(longest: int, target: Target) -> Tensor:
    """What is added to the scores of a text's tokens so that none sees a later one: [longest, longest]."""
    dtype = target.model.dtype
    return torch.full((longest, longest), torch.finfo(dtype).min, dtype=dtype, device=target.device).triu_(1)
