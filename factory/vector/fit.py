"""Whether a vector is for a model: its name or weights, and the shape of its cache.

This module loads no model: what serves one, here or elsewhere, says what it is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from factory.errors import VectorError
from factory.log import log
from factory.target.revision import are_comparable, is_same_model
from factory.vector.vector import SteeringVector


class Steerable(Protocol):
    """What a model says of itself."""

    @property
    def name(self) -> str:
        """The name by which it was loaded."""

    @property
    def revision(self) -> str:
        """Its exact weights: a hub commit, or the hash of the local files."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of one layer's states of one token: ``(n_kv_heads, head_dim)``."""

    @property
    def n_layers(self) -> int:
        """How many transformer layers it has."""


def check_fits(vector: SteeringVector, model: Steerable) -> None:
    """Refuse a vector that was made for another model; warn where it was made from other weights of this one.

    Raises:
        VectorError: model name, layers or shapes differ; names both models.
    """
    shape = tuple(vector.value_vector.shape[1:])
    fits = shape == model.shape and max(vector.layer_indices) < model.n_layers
    made_from = vector.extraction_config.get("model_revision") or vector.metadata.get("model_revision")
    is_comparable = are_comparable(made_from, model.revision)
    is_same = is_comparable and made_from == model.revision
    if fits and is_comparable and not is_same:
        _warn_of_other_weights(vector.style_name, model.name, str(made_from), model.revision)
    if not fits or not (is_same or is_same_model(vector.model_name, model.name)):
        raise VectorError(
            f"vector {vector.style_name!r} is for {vector.model_name} ({shape[0]} KV heads of {shape[1]}, layers "
            f"{min(vector.layer_indices)}-{max(vector.layer_indices)}); the loaded model is {model.name} "
            f"({model.shape[0]} KV heads of {model.shape[1]}, {model.n_layers} layers). Load that model or "
            "make a vector for this one."
        )


@lru_cache  # once, not with every batch of answers
def _warn_of_other_weights(style: str, model: str, made_from: str, loaded: str) -> None:
    log.warning(
        "vector %r was made from revision %s of %s; loaded is revision %s. It may not steer these weights: "
        "load that revision, or make a vector for this one",
        style,
        made_from,
        model,
        loaded,
    )
