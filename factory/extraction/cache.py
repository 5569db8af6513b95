"""The cache of a reading pass: it keeps the states that are asked for and ends the pass at the last layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from factory.extraction.prefix import Segment

SharedStates = dict[int, dict[Segment, tuple[Tensor, Tensor]]]  # by layer and segment: keys and values


@dataclass(frozen=True)
class Seen:
    """The keys (or values) that the segments of a pass attend to.

    ``states`` holds for each segment those of its text up to its end,
    ``[1, n_kv_heads, segment.stop, head_dim]``; the last ``lengths`` of them are new. ``hidden``
    ``[longest, longest]``, added to scores, hides what comes later in a text.
    """

    states: list[Tensor]
    lengths: list[int]
    hidden: Tensor


class LastLayerRead(Exception):
    """Ends a forward pass as soon as the last needed layer has been read."""


class ReadingCache(Cache):
    """The cache of one forward pass over segments that stand behind each other in a single row.

    It keeps the states at ``columns`` of the row for the layers in ``layers``, and ends the pass at the
    last of them. Each layer's attention gets :class:`Seen`; without a ``hidden`` tensors as from any cache,
    and the pass is then over a single segment. ``shared`` outlives the pass: the states of segments that
    others continue.
    """

    def __init__(
        self,
        layers: Sequence[int],
        segments: Sequence[Segment],
        columns: Tensor,
        *,
        shared: SharedStates,
        hidden: Tensor | None,
    ) -> None:
        super().__init__(layers=[])
        self.wanted = frozenset(layers)
        self.last = max(layers)
        self.segments = segments
        self.lengths = [len(segment.ids) for segment in segments]
        self.columns = columns
        self.shared = shared
        self.hidden = hidden
        self.read: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Take layer ``layer_idx``'s new states ``[1, n_kv_heads, n_tokens, head_dim]``."""
        if layer_idx in self.wanted:  # [n_reads, n_kv_heads, head_dim]
            self.read[layer_idx] = (
                key_states[0, :, self.columns].transpose(0, 1).float(),
                value_states[0, :, self.columns].transpose(0, 1).float(),
            )
        if layer_idx == self.last:
            raise LastLayerRead
        keys, values = self._by_segment(key_states, value_states, layer_idx)
        if self.hidden is None:
            return keys[0], values[0]
        return Seen(keys, self.lengths, self.hidden), Seen(values, self.lengths, self.hidden)

    def _by_segment(self, keys: Tensor, values: Tensor, layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """Each segment's states behind those of the segments that it continues."""
        shared = self.shared.setdefault(layer, {})
        all_keys, all_values = list(keys.split(self.lengths, 2)), list(values.split(self.lengths, 2))
        for number, segment in enumerate(self.segments):
            if segment.parent is not None:
                keys_before, values_before = shared[segment.parent]
                all_keys[number] = torch.cat([keys_before, all_keys[number]], dim=2)
                all_values[number] = torch.cat([values_before, all_values[number]], dim=2)
            if segment.text is None:
                shared[segment] = all_keys[number].clone(), all_values[number].clone()  # the row itself can go
        return all_keys, all_values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens come before the new ones, for a model that makes its own mask."""
        return self.segments[0].start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that a query sees, for a model that makes its own mask."""
        return self.get_seq_length() + query_length, 0
