"""What a client gets: OpenAI's types, from the openai package."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice as ChatChoice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from pydantic import BaseModel, JsonValue

from factory.serving.engine import Reason


@dataclass
class AnswerSoFar:
    """One of a request's answers, as far as it came."""

    text: str = ""
    reason: Reason | None = None
    n_tokens: int = 0


@dataclass(frozen=True)
class ReplyWriter:
    """Writes one request's answers: as a chat, or as text that was continued."""

    model: str
    n_prompt: int
    is_chat: bool
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        """The reply's name, the same in each event of a stream."""
        return f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.name}"

    def whole(self, answers: Sequence[AnswerSoFar]) -> ChatCompletion | Completion:
        """The reply without ``stream``."""
        if not self.is_chat:
            texts = [
                CompletionChoice(index=index, text=answer.text, finish_reason=answer.reason or "stop", logprobs=None)
                for index, answer in enumerate(answers)
            ]
            return self._completion(texts, self.usage(answers))
        choices = [
            ChatChoice(
                index=index,
                message=ChatCompletionMessage(role="assistant", content=answer.text, refusal=None),
                finish_reason=answer.reason or "stop",
                logprobs=None,
            )
            for index, answer in enumerate(answers)
        ]
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            object="chat.completion",
            choices=choices,
            usage=self.usage(answers),
        )

    def first(self, index: int) -> ChatCompletionChunk | None:
        """The event that opens answer ``index`` of a stream, if there is one."""
        return self._chunk(index, ChoiceDelta(role="assistant", content=""), None) if self.is_chat else None

    def piece(self, index: int, text: str, reason: Reason | None) -> ChatCompletionChunk | Completion:
        """The event with more of answer ``index``."""
        if self.is_chat:
            return self._chunk(index, ChoiceDelta(content=text) if text else ChoiceDelta(), reason)
        # An open answer has no reason yet, which the type does not foresee.
        open_reason: Any = reason
        choice = CompletionChoice.model_construct(index=index, text=text, finish_reason=open_reason, logprobs=None)
        return Completion.model_construct(
            id=self.id, created=self.created, model=self.model, object="text_completion", choices=[choice]
        )

    def last(self, answers: Sequence[AnswerSoFar]) -> ChatCompletionChunk | Completion:
        """The event with the usage, for who asked for it."""
        usage = self.usage(answers)
        if not self.is_chat:
            return self._completion([], usage)
        return ChatCompletionChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            object="chat.completion.chunk",
            choices=[],
            usage=usage,
        )

    def usage(self, answers: Sequence[AnswerSoFar]) -> CompletionUsage:
        """Tokens of the prompt, the neutral one included, and of the answers, their ends included."""
        made = sum(answer.n_tokens for answer in answers)
        return CompletionUsage(prompt_tokens=self.n_prompt, completion_tokens=made, total_tokens=self.n_prompt + made)

    def _completion(self, choices: list[CompletionChoice], usage: CompletionUsage) -> Completion:
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model,
            object="text_completion",
            choices=choices,
            usage=usage,
        )

    def _chunk(self, index: int, delta: ChoiceDelta, reason: Reason | None) -> ChatCompletionChunk:
        choice = ChunkChoice(index=index, delta=delta, finish_reason=reason, logprobs=None)
        return ChatCompletionChunk(
            id=self.id, created=self.created, model=self.model, object="chat.completion.chunk", choices=[choice]
        )


def as_json(reply: BaseModel) -> dict[str, JsonValue]:
    """A reply or an event as it is sent: the fields that were given."""
    return reply.model_dump(mode="json", exclude_unset=True, warnings=False)
