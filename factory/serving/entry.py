"""The request field ``steering``: which vectors a request wants, and how strongly.

Every engine reads it by this module, which loads no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from factory.errors import FactoryError, LayerError, VectorError
from factory.frozen import Frozen
from factory.serving.library import VectorLibrary
from factory.target.layers import parse_layers
from factory.vector.setting import Setting

MAX_ENTRIES = 16
NOT_FOUND = "model_not_found"

Finite = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]


class RequestError(FactoryError):
    """The request cannot be answered as it is; ``param`` is the field, ``code`` as OpenAI names it."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def error_body(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, dict[str, str | None]]:
    """An error as OpenAI writes it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class SteeringEntry(Frozen):
    """One vector of a request; what is left out is as the vector's evaluation recommends."""

    vector: str
    strength: Finite | None = None
    key_strength: Finite | None = None
    positions: int | None = Field(None, ge=1, le=64)
    layers: str | list[int] | None = None


def entries_of(
    asked: str, steering: Sequence[SteeringEntry] | None, model: str, library: VectorLibrary
) -> Sequence[SteeringEntry]:
    """The entries of a request that asks for model ``asked``: those of ``steering``, else the one that its name says.

    Raises:
        RequestError: there is no such model beside ``model`` and ``model:STYLE``.
    """
    if asked == model:
        return steering or ()
    base, _, style = asked.rpartition(":")
    if base != model or style not in library.vectors:
        there = ", ".join([model, *(f"{model}:{name}" for name in library.vectors)])
        reason = library.refused.get(style) if base == model else None
        raise RequestError(reason or f"there is no model {asked!r}; there is {there}", "model", NOT_FOUND)
    return [SteeringEntry(vector=style)] if steering is None else steering


def setting_of(entry: SteeringEntry, library: VectorLibrary, n_layers: int) -> Setting:
    """What an entry asks for, completed by what the vector's evaluation recommends.

    Raises:
        RequestError: there is no such vector, or it lacks the layers.
    """
    vector = library.vectors.get(entry.vector)
    if vector is None:
        there = ", ".join(library.vectors) or "none"
        reason = library.refused.get(entry.vector)
        raise RequestError(reason or f"there is no vector {entry.vector!r}; there is {there}", "steering")
    try:
        usual = Setting.recommended(vector)
        if entry.layers is None:
            chosen = usual.vector
        elif entry.layers == "all":
            chosen = vector
        else:
            chosen = vector.at_layers(parse_layers(entry.layers, n_layers))
    except (LayerError, VectorError) as error:
        raise RequestError(str(error), "steering") from None
    return Setting(
        chosen,
        strength=usual.strength if entry.strength is None else entry.strength,
        key_strength=usual.key_strength if entry.key_strength is None else entry.key_strength,
        n_positions=entry.positions or usual.n_positions,
    )


def named_settings(
    entries: Sequence[SteeringEntry], library: VectorLibrary, n_layers: int
) -> tuple[tuple[str, Setting], ...]:
    """What entries ask for, with the vectors' names; those of no strength are left out.

    Raises:
        RequestError: see :func:`setting_of`.
    """
    found = [(entry.vector, setting_of(entry, library, n_layers)) for entry in entries]
    return tuple((name, setting) for name, setting in found if setting.strength or setting.key_strength)
