"""What a vector's file says of how it was learned, in a few words. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from factory.vector.vector import SteeringVector


def is_learned(vector: SteeringVector) -> bool:
    """Whether a vector was learned, and so is meant to be added with its keys at strength 1."""
    return "learning" in vector.extraction_config


def describe_learning(vector: SteeringVector) -> str | None:
    """Such as "36 rounds of likelihood, best after 24"; None of a vector that was not learned.

    A round whose pairs only validate took no step, and is not counted.
    """
    learned, how = vector.metadata.get("learning"), vector.extraction_config.get("learning")
    if not isinstance(learned, dict) or not isinstance(how, dict):
        return None
    taken = sum(entry["loss"] is not None for entry in learned["curve"])
    return f"{taken} rounds of {how['objective']}, best after {learned['best_round']}"
