"""The connector's half in a worker: adds what a plan says to this worker's part of the cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from factory.vllm.edit import Addition, Edit
from factory.vllm.layout import BlockLayout


class Turning(Protocol):
    """Turns keys ``[n, n_heads, head_dim]`` from rotary position 0 to ``positions`` [n]."""

    def __call__(self, keys: Tensor, positions: Tensor) -> Tensor:
        """The turned keys."""


@dataclass(frozen=True)
class PagedLayer:
    """One layer's cache ``[n_blocks, ...]`` and how its blocks are laid out."""

    cache: Tensor
    layout: BlockLayout


@dataclass(frozen=True)
class Placed:
    """An addition at its slots [n]: values ``[n_layers, heads, head_dim]``, keys turned, each for its position."""

    rows: Mapping[int, int]
    slots: Tensor
    values: Tensor | None
    keys: Tensor | None  # [n, n_layers, heads, head_dim]


class Editor:
    """Adds vectors to ``layers``, by their index; ``heads`` are those of the model that this worker holds."""

    def __init__(self, layers: Mapping[int, PagedLayer], heads: slice, turn: Turning) -> None:
        self.layers = layers
        self.heads = heads
        self.turn = turn

    @torch.inference_mode()
    def apply(self, edits: Iterable[Edit]) -> None:
        """Add everything, in one write for each layer's keys and one for its values."""
        placed = [self._placed(edit, addition) for edit in edits for addition in edit.additions]
        for index, layer in self.layers.items():
            here = [one for one in placed if index in one.rows]
            values = [(one.slots, one.values[one.rows[index]]) for one in here if one.values is not None]
            keys = [(one.slots, one.keys[:, one.rows[index]]) for one in here if one.keys is not None]
            if values:
                spread = [numbers.expand(len(slots), *numbers.shape) for slots, numbers in values]
                layer.layout.add(layer.cache, _joined(values), None, torch.cat(spread))
            if keys:
                layer.layout.add(layer.cache, _joined(keys), torch.cat([numbers for _, numbers in keys]), None)

    def _placed(self, edit: Edit, addition: Addition) -> Placed:
        slots, positions = edit.window(addition)
        device = next(iter(self.layers.values())).cache.device if self.layers else torch.device("cpu")
        values = None if addition.values is None else addition.values[:, self.heads].to(device)
        keys = None
        if addition.keys is not None:
            mine = addition.keys[:, self.heads].to(device)
            keys = self._turned(mine, torch.tensor(positions, device=device))
        rows = {layer: row for row, layer in enumerate(addition.layers)}
        return Placed(rows, torch.tensor(slots, device=device), values, keys)

    def _turned(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys ``[n_layers, heads, head_dim]`` at each position: ``[n, n_layers, heads, head_dim]``."""
        spread = keys.flatten(0, 1).expand(len(positions), -1, -1)  # [n, n_layers * heads, head_dim]
        return self.turn(spread, positions).view(len(positions), *keys.shape)


def _joined(parts: Sequence[tuple[Tensor, Any]]) -> Tensor:
    return torch.cat([slots for slots, _ in parts])
