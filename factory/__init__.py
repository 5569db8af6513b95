"""Steering Vector Factory: vectors that make a frozen language model reason in a chosen style.

The names below are the library. They load on first use, so that ``import factory`` is quick and a
machine without torch can still run the parts that need none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.extraction.recipe import Recipe, render
    from factory.learning.learn import learn_vector
    from factory.learning.spec import Learning
    from factory.pairs.dataset import load_pairs
    from factory.pairs.pair import ContrastivePair
    from factory.pairs.styles import Style, load_style
    from factory.pipeline import build_vector
    from factory.target.loading import load_target
    from factory.target.model import Target
    from factory.vector.recommendation import Recommendation
    from factory.vector.sharing import load_shared
    from factory.vector.steer import Steering, generate, generate_batch, steered_cache
    from factory.vector.vector import SteeringVector

_HOMES = {
    "ContrastivePair": "pairs.pair",
    "Learning": "learning.spec",
    "Recipe": "extraction.recipe",
    "Recommendation": "vector.recommendation",
    "Steering": "vector.steer",
    "SteeringVector": "vector.vector",
    "Style": "pairs.styles",
    "Target": "target.model",
    "build_vector": "pipeline",
    "generate": "vector.steer",
    "generate_batch": "vector.steer",
    "learn_vector": "learning.learn",
    "load_pairs": "pairs.dataset",
    "load_shared": "vector.sharing",
    "load_style": "pairs.styles",
    "load_target": "target.loading",
    "render": "extraction.recipe",
    "steered_cache": "vector.steer",
}

__all__ = [
    "ContrastivePair",
    "Learning",
    "Recipe",
    "Recommendation",
    "Steering",
    "SteeringVector",
    "Style",
    "Target",
    "build_vector",
    "generate",
    "generate_batch",
    "learn_vector",
    "load_pairs",
    "load_shared",
    "load_style",
    "load_target",
    "render",
    "steered_cache",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'factory' has no attribute {name!r}")
    return getattr(import_module(f"factory.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
