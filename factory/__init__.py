"""Steering Vector Factory: vectors that make a frozen language model reason in a chosen style.

The names below are the library. They load on first use, so that ``import factory`` is quick and a
machine without torch can still run the parts that need none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.pairs import ContrastivePair, load_pairs
    from factory.pipeline import build_vector
    from factory.recipe import Recipe, render
    from factory.steer import Steering, generate
    from factory.styles import Style, load_style
    from factory.target import Target, load_target
    from factory.vector import SteeringVector

_HOMES = {
    "ContrastivePair": "pairs",
    "Recipe": "recipe",
    "Steering": "steer",
    "SteeringVector": "vector",
    "Style": "styles",
    "Target": "target",
    "build_vector": "pipeline",
    "generate": "steer",
    "load_pairs": "pairs",
    "load_style": "styles",
    "load_target": "target",
    "render": "recipe",
}

__all__ = [
    "ContrastivePair",
    "Recipe",
    "Steering",
    "SteeringVector",
    "Style",
    "Target",
    "build_vector",
    "generate",
    "load_pairs",
    "load_style",
    "load_target",
    "render",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'factory' has no attribute {name!r}")
    return getattr(import_module(f"factory.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
