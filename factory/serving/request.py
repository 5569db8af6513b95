"""What a client may ask: OpenAI's fields that are understood here, and ``steering``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from factory.frozen import Frozen
from factory.serving.entry import MAX_ENTRIES, RequestError, SteeringEntry, entries_of, named_settings
from factory.serving.library import VectorLibrary
from factory.serving.row import Sampling
from factory.target.chat import Message
from factory.target.model import Target
from factory.vector.setting import Setting

DEFAULT_MAX_TOKENS = 1024
MAX_CHOICES = 16


class TextPart(Frozen):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Frozen):
    """A message of a conversation; ``developer`` is another word for ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> Message:
        """The message as the chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Frozen):
    """What a stream tells beside the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(Frozen):
    """The only form of an answer that there is."""

    type: Literal["text"]


class _Request(Frozen):
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[Annotated[str, Field(min_length=1, max_length=200)]] | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    steering: list[SteeringEntry] | None = Field(None, max_length=MAX_ENTRIES)
    # Fields that clients send with values that change nothing.
    user: str | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > 16:
            raise ValueError("at most 16 stop strings")
        return stop

    def sampling(self, max_tokens: int) -> Sampling:
        """How tokens are chosen; greedy unless a temperature is asked for, as ``generate`` does."""
        stop = [self.stop] if isinstance(self.stop, str) and self.stop else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(stop),
        )


class ChatRequest(_Request):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: list[Any] | None = Field(None, max_length=0)

    def limit(self) -> int | None:
        """Tokens of the answer that were asked for."""
        return self.max_completion_tokens or self.max_tokens

    def prompt(self, target: Target) -> list[int]:
        """Token ids, ending with the neutral token from which generation starts."""
        try:
            ids = target.prompt_ids([message.plain() for message in self.messages])
        except Exception as error:  # a template refuses in a language of its own, such as roles that do not take turns
            reason = " ".join(str(error).split())[:200]
            raise RequestError(f"the model's chat template refuses these messages: {reason}", "messages") from None
        return [*ids, target.neutral_id]


class CompletionRequest(_Request):
    """``POST /v1/completions``: text that is continued; a vector is added before its last token."""

    prompt_text: str = Field(alias="prompt")
    logprobs: Literal[0] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    def limit(self) -> int | None:
        """Tokens of the answer that were asked for."""
        return self.max_tokens

    def prompt(self, target: Target) -> list[int]:
        """Token ids of the text, with what the tokenizer puts before every text."""
        ids = [int(token) for token in target.tokenizer(self.prompt_text)["input_ids"]]
        if len(ids) < 2:
            raise RequestError("prompt should have at least two tokens", "prompt")
        return ids


def steering_of(request: _Request, library: VectorLibrary, target: Target) -> tuple[tuple[str, Setting], ...]:
    """The vectors of a request, with their names: those of ``steering``, else the one that ``model`` names.

    Raises:
        RequestError: there is no such model or vector, or the vector lacks the layers.
    """
    entries = entries_of(request.model, request.steering, target.name, library)
    return named_settings(entries, library, target.n_layers)
