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

    def whole(self, answers: Sequence[AnswerSoFar]) -> dict[str, Any]:
        """The reply without ``stream``."""
        usage = self.usage(answers)
        if not self.is_chat:
            choices = [
                CompletionChoice(index=index, text=answer.text, finish_reason=answer.reason or "stop", logprobs=None)
                for index, answer in enumerate(answers)
            ]
            completion = Completion(**self._head("text_completion"), choices=choices, usage=usage)
            return completion.model_dump(mode="json", exclude_unset=True)
        chat = ChatCompletion(
            **self._head("chat.completion"),
            choices=[
                ChatChoice(
                    index=index,
                    message=ChatCompletionMessage(role="assistant", content=answer.text, refusal=None),
                    finish_reason=answer.reason or "stop",
                    logprobs=None,
                )
                for index, answer in enumerate(answers)
            ],
            usage=usage,
        )
        return chat.model_dump(mode="json", exclude_unset=True)

    def first(self, index: int) -> dict[str, Any] | None:
        """The event that opens answer ``index`` of a stream, if there is one."""
        return self._chunk(index, ChoiceDelta(role="assistant", content=""), None) if self.is_chat else None

    def piece(self, index: int, text: str, reason: Reason | None) -> dict[str, Any]:
        """The event with more of answer ``index``."""
        if self.is_chat:
            return self._chunk(index, ChoiceDelta(content=text) if text else ChoiceDelta(), reason)
        # An open answer has no reason yet, which the type does not foresee.
        open_reason: Any = reason
        choice = CompletionChoice.model_construct(index=index, text=text, finish_reason=open_reason, logprobs=None)
        completion = Completion.model_construct(**self._head("text_completion"), choices=[choice])
        return completion.model_dump(mode="json", exclude_unset=True, warnings=False)

    def last(self, answers: Sequence[AnswerSoFar]) -> dict[str, Any]:
        """The event with the usage, for who asked for it."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage(answers).model_dump(exclude_unset=True)}

    def usage(self, answers: Sequence[AnswerSoFar]) -> CompletionUsage:
        """Tokens of the prompt, the neutral one included, and of the answers, their ends included."""
        made = sum(answer.n_tokens for answer in answers)
        return CompletionUsage(prompt_tokens=self.n_prompt, completion_tokens=made, total_tokens=self.n_prompt + made)

    def _head(self, kind: Any) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.name}", "created": self.created, "model": self.model, "object": kind}

    def _chunk(self, index: int, delta: ChoiceDelta, reason: Reason | None) -> dict[str, Any]:
        choice = ChunkChoice(index=index, delta=delta, finish_reason=reason, logprobs=None)
        chunk = ChatCompletionChunk(**self._head("chat.completion.chunk"), choices=[choice])
        return chunk.model_dump(mode="json", exclude_unset=True)
