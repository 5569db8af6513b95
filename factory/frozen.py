"""The bases of values that never change: specifications, and records of what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from factory.errors import VectorError


class Frozen(BaseModel):
    """A value that cannot be changed once made; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(BaseModel):
    """A value that is written down and read again, maybe by another version of the factory.

    One of an older version may lack fields, which then have their defaults; one of a newer version may
    hold more, which are not read.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def within(cls, metadata: Mapping[str, object], key: str, remedy: str) -> Self | None:
        """The record under ``key`` of a vector's ``metadata``; None where there is none.

        Raises:
            VectorError: it is damaged; ends with ``remedy``, what to do.
        """
        content = metadata.get(key)
        if content is None:
            return None
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise VectorError(f"metadata {key!r}: {first_fault(error)}; {remedy}") from None

    def to_json(self) -> dict[str, JsonValue]:
        """The record as plain data: the fields that were given, no defaults."""
        return self.model_dump(mode="json", exclude_unset=True)


def first_fault(error: ValidationError) -> str:
    """Where the first fault of a value is, and what it is: ``layers.0: Input should be a valid integer``."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
