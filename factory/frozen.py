"""The base of every specification: a pydantic model that never changes and refuses fields it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value that cannot be changed once made; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
