"""The base of every specification: a pydantic model that never changes and knows all its fields."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Never changes once made; a field that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
