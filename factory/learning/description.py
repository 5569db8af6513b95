"""What a vector's file says of how it was learned, in a few words. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from factory.vector.vector import SteeringVector


def is_learned(vector: SteeringVector) -> bool:
    """Whether a vector was learned, and so is meant to be added with its keys at strength 1."""
    return "learning" in vector.extraction_config


def describe_learning(vector: SteeringVector) -> str | None:
    """Such as "41 rounds of likelihood, best before round 36"; None of a vector that was not learned."""
    learned, how = vector.metadata.get("learning"), vector.extraction_config.get("learning")
    if not isinstance(learned, dict) or not isinstance(how, dict):
        return None
    return f"{learned['rounds_taken']} rounds of {how['objective']}, best before round {learned['best_round']}"
