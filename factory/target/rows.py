"""A KV cache whose rows come and go: texts of different length that are continued in one batch.

Every row ends at the same column and begins where its length says; the columns before are padding
(on the left). The tensors are allocated with room to spare, so that a token is written in place,
where transformers' own cache copies everything that it holds for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from factory.target.model import Target

SPARE_COLUMNS = 256


class RowCache:
    """Rows of cached keys and values; ``lengths[i]`` is how many tokens row ``i`` holds."""

    def __init__(self, target: Target, max_rows: int) -> None:
        self.target = target
        self.max_rows = max_rows
        self.lengths: list[int] = []
        self.layers: list[_RowLayer] = []

    def add(self, cache: Any, copies: int = 1) -> None:
        """Put the only row of ``cache`` below the others, ``copies`` times: what it holds is copied."""
        length = int(cache.get_seq_length())
        if not self.layers:
            self.layers = [_RowLayer() for _ in cache.layers]
        for layer, read in zip(self.layers, cache.layers, strict=True):
            layer.make_room(read.keys, read.values, self.max_rows, self.lengths, length)
            layer.append(read.keys, read.values, copies)
        self.lengths += [length] * copies

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but ``rows`` (ascending), which move up."""
        if len(rows) == len(self.lengths):
            return
        for layer in self.layers:
            layer.keep(rows)
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self.layers = []  # an idle server holds no memory for texts

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """Read one token in each row; returns the logits of what follows, ``[rows, vocabulary]``, float32."""
        longest = max(self.lengths) + 1
        for layer in self.layers:
            layer.show_last(longest - 1)
        starts = self.target.tensor([longest - 1 - length for length in self.lengths])  # [rows]
        columns = torch.arange(longest, device=starts.device)
        model: Any = self.target.model
        output = model(
            input_ids=self.target.tensor(tokens)[:, None],
            attention_mask=(columns >= starts[:, None]).long(),  # [rows, longest]
            position_ids=self.target.tensor(self.lengths)[:, None],
            past_key_values=Cache(layers=list(self.layers)),
            use_cache=True,
        )
        self.lengths = [length + 1 for length in self.lengths]
        logits: Tensor = output.logits[:, -1].float()
        return logits


class _RowLayer(DynamicLayer):
    """One layer's rows: a window ``[n_rows, :, start:end]`` of tensors ``[max_rows, heads, columns, head_dim]``.

    ``keys`` and ``values`` are views of that window, as transformers expects them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_rows = self.start = self.end = 0
        self.all_keys: Tensor = torch.empty(0)
        self.all_values: Tensor = torch.empty(0)

    def make_room(self, keys: Tensor, values: Tensor, max_rows: int, lengths: Sequence[int], length: int) -> None:
        """Have columns for the longest row that there is, one of ``length`` tokens, and some more."""
        longest = max([*lengths, length])
        if self.is_initialized and self.end >= longest and self.end < self.all_keys.shape[2]:
            return
        self._move(keys, values, max_rows, longest)

    def _move(self, keys: Tensor, values: Tensor, max_rows: int, longest: int) -> None:
        """To new tensors, in which the rows end at column ``longest``."""
        held = min(longest, self.end)
        old_keys = self.all_keys[: self.n_rows, :, self.end - held : self.end] if self.n_rows else None
        old_values = self.all_values[: self.n_rows, :, self.end - held : self.end] if self.n_rows else None
        columns = longest + SPARE_COLUMNS
        # Zeros: padding is masked, but a masked NaN is still a NaN.
        self.all_keys = keys.new_zeros(max_rows, keys.shape[1], columns, keys.shape[3])
        self.all_values = values.new_zeros(max_rows, values.shape[1], columns, values.shape[3])
        if old_keys is not None and old_values is not None:
            self.all_keys[: self.n_rows, :, longest - held : longest] = old_keys
            self.all_values[: self.n_rows, :, longest - held : longest] = old_values
        self.end = longest
        self.is_initialized = True
        self.dtype, self.device = keys.dtype, keys.device

    def append(self, keys: Tensor, values: Tensor, copies: int) -> None:
        """Write a row ``[1, heads, length, head_dim]`` below the others."""
        rows, columns = slice(self.n_rows, self.n_rows + copies), slice(self.end - keys.shape[2], self.end)
        for held, new in ((self.all_keys, keys), (self.all_values, values)):
            held[rows, :, : columns.start] = 0  # what an earlier row left
            held[rows, :, columns] = new
        self.n_rows += copies

    def keep(self, rows: Sequence[int]) -> None:
        """Move ``rows`` up and forget the others."""
        for to, row in enumerate(rows):
            if to != row:  # ascending: never onto a row that is still to be moved
                self.all_keys[to], self.all_values[to] = self.all_keys[row], self.all_values[row]
        self.n_rows = len(rows)

    def show_last(self, length: int) -> None:
        """Show the last ``length`` columns to the next forward pass."""
        self.start = self.end - length
        self._view()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new token's states, ``[n_rows, heads, 1, head_dim]``, behind the others."""
        if self.end == self.all_keys.shape[2]:
            length = self.end - self.start
            self._move(key_states, value_states, len(self.all_keys), length)
            self.start = 0
        self.all_keys[: self.n_rows, :, self.end] = key_states[:, :, 0]
        self.all_values[: self.n_rows, :, self.end] = value_states[:, :, 0]
        self.end += 1
        return self._view()

    def _view(self) -> tuple[Tensor, Tensor]:
        window = (slice(self.n_rows), slice(None), slice(self.start, self.end))
        self.keys, self.values = self.all_keys[window], self.all_values[window]
        return self.keys, self.values
