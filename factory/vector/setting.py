"""A vector and how strongly it is added: what is asked for, by whoever runs the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from factory.errors import VectorError
from factory.vector.recommendation import Recommendation
from factory.vector.vector import SteeringVector


@dataclass(frozen=True)
class Setting:
    """A vector and how strongly it is added.

    ``strength`` multiplies the values, ``key_strength`` the keys; ``n_positions`` is how many of
    the last cached positions get the vector.
    """

    vector: SteeringVector
    strength: float = 1.0
    key_strength: float = 0.0
    n_positions: int = 1

    def __post_init__(self) -> None:
        if self.n_positions < 1:
            raise VectorError(f"n_positions is {self.n_positions}: a vector is added to 1 position or more")

    @classmethod
    def recommended(cls, vector: SteeringVector, strength: float | None = None) -> Self:
        """The vector with what its evaluation recommends; ``strength`` overrides its strength."""
        best = Recommendation.read(vector.metadata) or Recommendation()
        return cls(
            vector.at_layers(list(best.layers)) if best.layers else vector,
            strength=best.strength if strength is None else strength,
            key_strength=best.key_strength,
            n_positions=best.positions,
        )
