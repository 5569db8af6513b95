"""Who writes the pairs, and how they are asked, frozen with the run."""

from __future__ import annotations

from pydantic import field_validator

from factory.frozen import Frozen
from factory.teacher.endpoint import tidy_address


class TeacherSpec(Frozen):
    """Who writes the pairs, and how they are asked."""

    model: str
    requested_model: str
    base_url: str | None = None
    temperature: float | None = None
    max_response_tokens: int = 800
    reasoning_effort: str | None = None
    judge_model: str | None = None
    seed: int = 0
    pricing: dict[str, float] | None = None
    calls_per_minute: float | None = None
    tokens_per_minute: float | None = None

    @field_validator("base_url")
    @classmethod
    def _one_name(cls, base_url: str | None) -> str | None:
        return base_url and tidy_address(base_url)
