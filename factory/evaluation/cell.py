"""A cell of the sweep: how strongly, at which layers and at how many positions a vector is added."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep. ``layers`` is text such as ``"all"`` or ``"8-29"``."""

    strength: float
    layers: str = "all"
    n_positions: int = 1
    key_strength: float = 0.0

    def describe(self) -> str:
        """The cell in a few words."""
        places = "1 position" if self.n_positions == 1 else f"{self.n_positions} positions"
        keys = f", keys {self.key_strength:g}" if self.key_strength else ""
        return f"strength {self.strength:g}, layers {self.layers}, {places}{keys}"
