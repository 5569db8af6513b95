"""A request to the teacher: what is sent for a prompt, and the name under which its reply is kept.

Equal requests have one name, so that each is paid for once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, Required, TypedDict, cast

from factory.files import hash_of
from factory.teacher.spec import TeacherSpec

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionUserMessageParam
    from openai.types.shared import ReasoningEffort

QUIET = {"gpt-6-luna": "none"}  # reasoning effort where the configuration says nothing: prose needs none
SPARE: Final[tuple[Literal["seed", "temperature", "reasoning_effort"], ...]] = (  # a call can do without these
    "seed",
    "temperature",
    "reasoning_effort",
)
REASONING_MODELS = re.compile(r"gpt-[5-9]|o\d")  # these refuse a temperature while they reason


class Request(TypedDict, total=False):
    """The body of a request; what is not in it is left to the server."""

    model: Required[str]
    messages: Required[list[ChatCompletionUserMessageParam]]
    temperature: float
    reasoning_effort: ReasoningEffort
    seed: int
    max_tokens: int
    max_completion_tokens: int


def build_request(spec: TeacherSpec, prompt: str, attempt: int = 0) -> Request:
    """The body of the request for ``prompt``; each ``attempt`` is another one.

    Two profiles: OpenAI takes ``max_completion_tokens`` and a reasoning effort, and its reasoning
    models no temperature while they reason; a compatible server gets what all of them know.
    """
    request = Request(model=spec.model, messages=[{"role": "user", "content": prompt}], seed=spec.seed + 1000 * attempt)
    effort, temperature = spec.reasoning_effort, spec.temperature
    if spec.base_url:
        request["max_tokens"] = spec.max_response_tokens
    else:
        request["max_completion_tokens"] = spec.max_response_tokens
        effort = effort or QUIET.get(spec.model)
        if REASONING_MODELS.match(spec.model) and effort != "none":
            temperature = None
    if temperature is not None:
        request["temperature"] = temperature
    if effort is not None:
        request["reasoning_effort"] = cast("ReasoningEffort", effort)  # a server may know other words than OpenAI
    return request


def request_key(spec: TeacherSpec, request: Request) -> str:
    """The name of a request: a hash of what is asked, and where. Who asks and when is not in it."""
    return hash_of({"endpoint": spec.base_url or "openai", **request})


def without(request: Request, refused: set[str]) -> Request:
    """A request without parameters that its server refuses; the bound of its cost gets its other name instead."""
    kept = request.copy()
    for name in SPARE:
        if name in refused:
            kept.pop(name, None)
    if "max_tokens" in refused and "max_tokens" in kept:
        kept["max_completion_tokens"] = kept.pop("max_tokens")
    return kept
