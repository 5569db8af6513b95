"""How a vector is best added, as its evaluation or its learning found: kept in the vector's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import JsonValue, ValidationError

from factory.errors import VectorError
from factory.frozen import Frozen, first_fault

PREFIX = "recommended_"  # of each field's name in the metadata, which users read


class Recommendation(Frozen):
    """How a vector is best added; ``layers`` None: at all that it has."""

    strength: float = 1.0
    layers: tuple[int, ...] | None = None
    positions: int = 1
    key_strength: float = 0.0

    @classmethod
    def read(cls, metadata: Mapping[str, object]) -> Self | None:
        """What a vector's ``metadata`` recommend; None where they recommend nothing.

        Raises:
            VectorError: a value is not what it should be.
        """
        known = {name: metadata.get(PREFIX + name) for name in cls.model_fields}
        found = {name: value for name, value in known.items() if value is not None}
        if not found:
            return None
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            found_there = error.errors()[0]["input"]
            raise VectorError(f"metadata: {PREFIX}{first_fault(error)}, found {found_there!r}") from None

    def written_into(self, metadata: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """``metadata`` with this recommendation and no other."""
        given = self.model_dump(mode="json", exclude_unset=True)
        return without_recommendation(metadata) | {PREFIX + name: value for name, value in given.items()}


AS_LEARNED = Recommendation(strength=1.0, key_strength=1.0, positions=1)  # how a vector is added while it is learned


def without_recommendation(metadata: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """``metadata`` that recommend nothing."""
    names = {PREFIX + name for name in Recommendation.model_fields}
    return {name: value for name, value in metadata.items() if name not in names}
