"""Which layers of a model: ``"all"``, a list, a range, or text such as ``"8-15,20"``.

This module loads no model, and works where torch is not installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from factory.errors import LayerError


def parse_layers(layers: str | int | Sequence[int] | range, n_layers: int) -> list[int]:
    """Layer indices from ``"all"``, a list, a range, or text such as ``"8-15,20"``.

    Raises:
        LayerError: not such a text, or a layer that the model does not have.
    """
    if isinstance(layers, str):
        chosen = list(range(n_layers)) if layers.strip() == "all" else _parse_ranges(layers)
    else:
        chosen = [layers] if isinstance(layers, int) else [int(layer) for layer in layers]
    chosen = sorted(set(chosen))
    wrong = [layer for layer in chosen if not 0 <= layer < n_layers]
    if wrong or not chosen:
        raise LayerError(f"layers {wrong or layers} do not exist: the model has layers 0 to {n_layers - 1}")
    return chosen


def _parse_ranges(text: str) -> list[int]:
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match:
            raise LayerError(f"layers {text!r}: expected 'all', or numbers and ranges such as '8-15,20'")
        first, last = int(match[1]), int(match[2] or match[1])
        layers += range(first, last + 1)
    return layers


def depth_to_read(layers: str | int | Sequence[int] | range) -> int | None:
    """How many of a model's layers it takes to read ``layers``; None: all of them."""
    if isinstance(layers, str) and layers.strip() == "all":
        return None
    return parse_layers(layers, sys.maxsize)[-1] + 1


def check_layers(layers: str | int | Sequence[int] | range, n_layers: int | None) -> None:
    """Refuse layers before a model is loaded; ``n_layers`` is None where it cannot be told yet.

    Raises:
        LayerError: see :func:`parse_layers`.
    """
    if n_layers is not None:
        parse_layers(layers, n_layers)
    elif isinstance(layers, str) and layers.strip() != "all":
        _parse_ranges(layers)
