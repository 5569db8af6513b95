"""The teacher: a chat model behind an OpenAI-compatible API that writes both answers of a pair.

Every reply is kept in the store under the hash of its request, so that no request is paid for
twice. Errors are sorted into those worth a retry, those a person must mend, and bad replies
(errors.py). This module knows neither the queue nor the target model.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import openai

from factory.errors import BadReply, PairRejected, TeacherBusy, TeacherError, TeacherRefused
from factory.pairs import ContrastivePair
from factory.run import TeacherSpec
from factory.store import Store, hash_of
from factory.styles import Style

OPENAI_KEY = "OPENAI_API_KEY"
TIMEOUT = 120.0  # seconds for one answer
RETRYABLE = {408, 409, 429}


def find_key(base_url: str | None, api_key_env: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The API key for an endpoint: the named variable, else OPENAI_API_KEY at OpenAI alone.

    A server of one's own never receives the OpenAI key unless the configuration names it; without
    a variable it gets the placeholder ``none``.
    """
    if api_key_env:
        return environment.get(api_key_env) or None
    return (environment.get(OPENAI_KEY) or None) if base_url is None else "none"


@dataclass(frozen=True)
class Reply:
    """One answer of the teacher, and what it took."""

    text: str
    request_key: str
    model: str
    finish_reason: str
    usage: dict[str, int]
    request_id: str | None
    cached: bool


@dataclass(frozen=True)
class Teacher:
    """An endpoint, a model and the store that remembers its replies."""

    spec: TeacherSpec
    client: openai.OpenAI
    store: Store

    def ask(self, prompt: str, attempt: int = 0) -> Reply:
        """The teacher's answer to ``prompt``; ``attempt`` above 0 asks for another one.

        Raises:
            TeacherBusy: worth a retry later.
            TeacherRefused: a person must act first.
            BadReply: nothing usable came back.
            PairRejected: the server will never answer this prompt.
        """
        request = self._request(prompt, attempt)
        key = hash_of({"endpoint": self.spec.base_url or "openai", **request})
        known = self.store.read_json(f"replies/{key}.json")
        if known is None:
            known = self._call(request)
            self.store.write_json(f"replies/{key}.json", known)
            return Reply(request_key=key, cached=False, **known)
        return Reply(request_key=key, cached=True, **known)

    def _request(self, prompt: str, attempt: int) -> dict[str, Any]:
        """The body of the request: equal bodies are one request, and paid once."""
        limit = "max_tokens" if self.spec.base_url else "max_completion_tokens"
        body = {
            "model": self.spec.model,
            "messages": [{"role": "user", "content": prompt}],
            limit: self.spec.max_response_tokens,
            "temperature": self.spec.temperature,
            "reasoning_effort": self.spec.reasoning_effort,
            "seed": attempt,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            completion = self.client.chat.completions.create(**request)
        except openai.APIStatusError as error:
            raise classify_status(error, self.spec.model) from None
        except (openai.APITimeoutError, openai.APIConnectionError) as error:
            raise TeacherBusy(f"the teacher at {self._endpoint} cannot be reached: {type(error).__name__}") from None
        except ValueError:  # a 200 whose body is not JSON
            raise BadReply("not_json", f"{self._endpoint} answered with something that is not JSON") from None
        return read_completion(completion)

    @property
    def _endpoint(self) -> str:
        return urlsplit(self.spec.base_url).netloc if self.spec.base_url else "OpenAI"


def classify_status(error: openai.APIStatusError, model: str) -> TeacherError | PairRejected:
    """Sort an HTTP error answer: try later, a person must act, or this prompt will never do."""
    status, code = error.status_code, str(error.code or "")
    if code == "insufficient_quota":
        return TeacherRefused("the teacher's account has no quota left: add credit, then 'svf resume'")
    if status in RETRYABLE or status >= 500:
        return TeacherBusy(f"the teacher answered {status}", _retry_after(error))
    if status in (401, 403):
        return TeacherRefused(f"the teacher refused the key ({status}): set another, then 'svf resume'")
    if status == 404:
        return TeacherRefused(f"the teacher has no model {model!r} (404): choose another teacher_model")
    return PairRejected("bad_request", f"the teacher answered {status} to this prompt")


def _retry_after(error: openai.APIStatusError) -> float | None:
    try:
        return float(error.response.headers["retry-after"])
    except (KeyError, ValueError):
        return None


def read_completion(completion: Any) -> dict[str, Any]:
    """What of a completion is kept.

    Raises:
        BadReply: no choice, no text, cut off or filtered.
    """
    choices = getattr(completion, "choices", None)
    if not choices:
        raise BadReply("empty", "the teacher's answer holds no choice")
    choice = choices[0]
    text = choice.message.content if choice.message else None
    if choice.finish_reason in ("length", "content_filter"):
        raise BadReply(choice.finish_reason, f"the teacher's answer ended with {choice.finish_reason}")
    if getattr(choice.message, "refusal", None):
        raise BadReply("refusal", "the teacher refused to answer")
    if not isinstance(text, str) or not text.strip():
        raise BadReply("empty", "the teacher's answer is empty")
    usage = completion.usage
    return {
        "text": text.strip(),
        "model": str(completion.model),
        "finish_reason": str(choice.finish_reason),
        "usage": {"input": usage.prompt_tokens, "output": usage.completion_tokens} if usage else {},
        "request_id": getattr(completion, "_request_id", None),
    }


@lru_cache(maxsize=8)
def _client(process: int, base_url: str | None, key: str) -> openai.OpenAI:
    # One client a process: connections do not survive a fork. Retries are the queue's business.
    return openai.OpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=TIMEOUT)


_making_client = threading.Lock()


def open_teacher(spec: TeacherSpec, store: Store, api_key_env: str | None = None) -> Teacher:
    """The teacher of a run, with this process's key.

    Raises:
        TeacherRefused: there is no key for the endpoint.
    """
    key = find_key(spec.base_url, api_key_env)
    if key is None:
        raise TeacherRefused(f"no API key: set {api_key_env or OPENAI_KEY} (or --api-key) for the teacher's endpoint")
    with _making_client:
        return Teacher(spec, _client(os.getpid(), spec.base_url, key), store)


def write_pair(teacher: Teacher, style: Style, question: str, batch: int) -> ContrastivePair:
    """Ask the teacher for both answers to ``question``, in two independent calls.

    Raises:
        PairRejected: no usable answer, also not at the second try.
        TeacherBusy, TeacherRefused: see :meth:`Teacher.ask`.
    """
    positive_prompt, negative_prompt = style.prompts_for(question)
    positive, negative = _ask_twice(teacher, positive_prompt), _ask_twice(teacher, negative_prompt)
    return ContrastivePair(
        question=question,
        positive_prompt=positive_prompt,
        positive_response=positive.text,
        negative_prompt=negative_prompt,
        negative_response=negative.text,
        style=style.name,
        batch=batch,
        extra={"provenance": {"positive": _provenance(positive), "negative": _provenance(negative)}},
    )


def _ask_twice(teacher: Teacher, prompt: str) -> Reply:
    try:
        return teacher.ask(prompt)
    except BadReply:
        pass
    try:
        return teacher.ask(prompt, attempt=1)
    except BadReply as error:
        raise PairRejected(error.reason, str(error)) from None


def _provenance(reply: Reply) -> dict[str, Any]:
    return {
        "request_key": reply.request_key,
        "model": reply.model,
        "finish_reason": reply.finish_reason,
        "usage": reply.usage,
        "request_id": reply.request_id,
    }


@dataclass(frozen=True)
class WrittenBatch:
    """What the teacher made of a batch of questions."""

    pairs: list[ContrastivePair]
    rejected: list[dict[str, str]]  # question, reason, message

    @property
    def reasons(self) -> dict[str, int]:
        """How many questions failed, by reason."""
        counts: dict[str, int] = {}
        for rejection in self.rejected:
            counts[rejection["reason"]] = counts.get(rejection["reason"], 0) + 1
        return counts


def write_batch(
    teacher: Teacher, style: Style, questions: tuple[str, ...], number: int, max_concurrent: int
) -> WrittenBatch:
    """Write the pairs of a batch, several calls at a time.

    Every reply that arrives is kept, also when another question raises.

    Raises:
        TeacherBusy, TeacherRefused: the batch must be tried again; what arrived is not paid again.
    """

    def attempt(question: str) -> ContrastivePair | PairRejected | TeacherError:
        try:
            return write_pair(teacher, style, question, number)
        except (PairRejected, TeacherError) as error:
            return error

    with ThreadPoolExecutor(max_workers=min(max_concurrent, len(questions))) as pool:
        outcomes = list(pool.map(attempt, questions))
    errors = [outcome for outcome in outcomes if isinstance(outcome, TeacherError)]
    for kind in (TeacherRefused, TeacherError):  # what a person must mend comes first
        for error in errors:
            if isinstance(error, kind):
                raise error
    pairs = [outcome for outcome in outcomes if isinstance(outcome, ContrastivePair)]
    rejected = [
        {"question": question, "reason": outcome.reason, "message": str(outcome)}
        for question, outcome in zip(questions, outcomes, strict=True)
        if isinstance(outcome, PairRejected)
    ]
    return WrittenBatch(pairs, rejected)
