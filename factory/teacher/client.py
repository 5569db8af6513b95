"""The teacher: a chat model behind an OpenAI-compatible API, asked one prompt at a time.

Every answer is kept in the store under the hash of its request, good or bad, so that no request
is paid for twice. Errors are sorted into those worth a retry, those a person must mend, and bad
replies (errors.py). This module knows neither the queue nor the target model, nor what is asked.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from factory.errors import BadReply, PairRejected, TeacherBusy, TeacherError, TeacherPaced, TeacherRefused
from factory.files import hash_of
from factory.log import log
from factory.store import Store
from factory.teacher.limits import Limits, Outcomes, Pace, claimed, hold_claim
from factory.teacher.spec import TeacherSpec
from factory.teacher.spending import Meter, Purse, likely_tokens, most_tokens, price_of, worst_case

OPENAI_KEY = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"  # said, as the client would take another from OPENAI_BASE_URL
ON_THE_WAY = 15.0  # s beyond the timeout of an answer for which its claim is held
LONG_WAIT = 600.0  # s: a server that asks for more wants a person, not a retry
RETRYABLE = {408, 409, 429}
NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated"}
QUIET = {"gpt-6-luna": "none"}  # reasoning effort where the configuration says nothing: prose needs none
REASONING_MODELS = re.compile(r"gpt-[5-9]|o\d")  # these refuse a temperature while they reason


def find_key(base_url: str | None, api_key_env: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The API key for an endpoint: the named variable, else OPENAI_API_KEY at OpenAI alone.

    A server of one's own never receives the OpenAI key unless the configuration names it; without
    a variable it gets the placeholder ``none``.
    """
    if api_key_env:
        return environment.get(api_key_env) or None
    return (environment.get(OPENAI_KEY) or None) if base_url is None else "none"


def endpoint_name(base_url: str | None) -> str:
    """An endpoint in words that may be shown: its host, never what a URL may hide."""
    return (urlsplit(base_url).hostname or "the server") if base_url else "OpenAI"


def build_request(spec: TeacherSpec, prompt: str, attempt: int = 0) -> dict[str, Any]:
    """The body of a request: equal bodies are one request, and paid once.

    Two profiles: OpenAI takes ``max_completion_tokens`` and a reasoning effort, and its reasoning
    models no temperature while they reason; a compatible server gets what all of them know.
    """
    body: dict[str, Any] = {
        "model": spec.model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": spec.temperature,
        "reasoning_effort": spec.reasoning_effort,
        "seed": spec.seed + 1000 * attempt,
    }
    if spec.base_url:
        body["max_tokens"] = spec.max_response_tokens
    else:
        body["max_completion_tokens"] = spec.max_response_tokens
        body["reasoning_effort"] = spec.reasoning_effort or QUIET.get(spec.model)
        if REASONING_MODELS.match(spec.model) and body["reasoning_effort"] != "none":
            body["temperature"] = None
    return {key: value for key, value in body.items() if value is not None}


def request_key(spec: TeacherSpec, request: Mapping[str, Any]) -> str:
    """The name of a request: a hash of what is asked, and where. Who asks and when is not in it."""
    return hash_of({"endpoint": spec.base_url or "openai", **request})


def stored_reply(store: Store, key: str) -> dict[str, Any] | None:
    """What the teacher answered to a request, if it was ever asked."""
    reply: dict[str, Any] | None = store.read_json(f"replies/{key}.json")
    return reply


@dataclass(frozen=True)
class Payer:
    """For which batch a call is made: so that a run knows what it paid, and what it found."""

    run: str
    style: str
    batch: int


@dataclass(frozen=True)
class Reply:
    """One answer of the teacher, and what it took. ``parameters`` is the request without its text."""

    text: str
    request_key: str
    model: str
    finish_reason: str
    usage: dict[str, int]
    request_id: str | None
    cost_usd: float | None
    paid_by: dict[str, Any]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """What all workers share about the calls of one run. ``purse``: None without a budget."""

    limits: Limits
    outcomes: Outcomes
    meter: Meter
    purse: Purse | None = None


@dataclass(frozen=True)
class Teacher:
    """An endpoint, a model, and the store that remembers its replies.

    ``cluster``: None in a process of its own, where there is nobody to share limits with, and
    ``pace`` alone is kept. No call begins after ``deadline`` (of ``time.monotonic()``): who asks
    has a worker to give back.
    """

    spec: TeacherSpec
    client: openai.OpenAI
    store: Store
    payer: Payer
    cluster: Cluster | None = None
    pace: Pace = field(default_factory=Pace)
    deadline: float = math.inf

    @property
    def timeout(self) -> float:
        """Seconds that an answer may take."""
        timeout = self.client.timeout
        seconds = timeout.read if isinstance(timeout, httpx2.Timeout) else timeout
        return float(seconds or 0.0)

    def ask(self, prompt: str, attempt: int = 0) -> Reply:
        """The teacher's answer to ``prompt``; ``attempt`` above 0 asks for another one.

        Raises:
            TeacherPaced: not now; nothing was sent.
            TeacherBusy: worth a retry later.
            TeacherRefused: a person must act first.
            BadReply: nothing usable came back, or had come back to the same request.
            PairRejected: the server will never answer this prompt.
        """
        request = build_request(self.spec, prompt, attempt)
        key = request_key(self.spec, request)
        record = stored_reply(self.store, key) or self._make_call(key, request, prompt)
        if record["bad"]:
            raise BadReply(record["bad"], f"the teacher's answer cannot be used: {record['bad']}")
        parameters = {name: value for name, value in request.items() if name != "messages"}
        known = {name: record[name] for name in ("text", "model", "finish_reason", "usage", "request_id", "cost_usd")}
        return Reply(request_key=key, paid_by=record["paid_by"], parameters=parameters, **known)

    def _make_call(self, key: str, request: dict[str, Any], prompt: str) -> dict[str, Any]:
        if time.monotonic() > self.deadline:
            raise TeacherPaced("the worker's calls are all taken", 1.0)
        if self.cluster is None:
            self.pace.await_turn()
            return self._send(key, request, prompt)
        with claimed(self.cluster.limits.counters, key, uuid.uuid4().hex):
            known = stored_reply(self.store, key)  # another worker may just have got it
            return known or self._call_within_limits(self.cluster, key, request, prompt)

    def _call_within_limits(self, cluster: Cluster, key: str, request: dict[str, Any], prompt: str) -> dict[str, Any]:
        """Set money aside, wait for our turn, call; then settle what was set aside."""
        worst = worst_case(self.spec, request["model"], prompt) or 0.0
        tokens = likely_tokens(prompt) + self.spec.max_response_tokens
        if cluster.purse:
            cluster.purse.reserve(key, worst)
        cost = worst
        try:
            cluster.limits.await_turn(tokens)
            hold_claim(cluster.limits.counters, key, self.timeout + ON_THE_WAY)
            record = self._send(key, request, prompt)
            cost = record["cost_usd"] or 0.0
        except (TeacherError, PairRejected) as error:
            cost = worst if isinstance(error, TeacherBusy) and error.may_be_paid else 0.0
            _note_trouble(cluster, key, error)
            raise
        finally:
            if cluster.purse:
                cluster.purse.settle(key, cost)
        cluster.meter.count(self.payer.style, cost)
        used = sum(record["usage"].values()) or likely_tokens(prompt) + likely_tokens(record["text"])
        cluster.limits.refund(tokens - used)
        cluster.outcomes.failed() if record["bad"] else cluster.outcomes.succeeded(key)
        return record

    def _send(self, key: str, request: dict[str, Any], prompt: str) -> dict[str, Any]:
        """Ask, and keep the answer before anything else can happen."""
        answer = self._post(request)
        record = answer | {"paid_by": asdict(self.payer), "cost_usd": self._cost(request["model"], prompt, answer)}
        self.store.write_json(f"replies/{key}.json", record)
        return record

    def _cost(self, model: str, prompt: str, answer: dict[str, Any]) -> float | None:
        usage = answer["usage"]
        if usage:
            return price_of(self.spec, model, usage["input"], usage["output"])
        # A server that does not count is taken at the worst for what it read, and for what it wrote.
        written = most_tokens(answer["text"]) if answer["text"] else self.spec.max_response_tokens
        return price_of(self.spec, model, most_tokens(prompt), min(written, self.spec.max_response_tokens))

    def _post(self, request: dict[str, Any]) -> dict[str, Any]:
        where = endpoint_name(self.spec.base_url)
        try:
            raw = self.client.chat.completions.with_raw_response.create(**request)
        except openai.APIStatusError as error:
            raise classify_status(error, request["model"]) from None
        except openai.APIConnectionError as error:  # a timeout is one of these
            sent = not isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)
            message = f"the teacher at {where} cannot be reached: {type(error).__name__}"
            raise TeacherBusy(message, may_be_paid=sent) from None
        if self.cluster:
            tokens = likely_tokens(request["messages"][0]["content"]) + self.spec.max_response_tokens
            self.cluster.limits.tighten(raw.headers, tokens)
        try:
            return read_completion(raw.parse())
        except ValueError:  # a 200 whose body is not JSON
            return _bad("not_json")


def _note_trouble(cluster: Cluster, key: str, error: TeacherError | PairRejected) -> None:
    """Tell the other workers what an error says about the endpoint."""
    if isinstance(error, TeacherPaced):
        return
    log.warning("%s", error)
    if isinstance(error, PairRejected):
        cluster.outcomes.failed()
    elif isinstance(error, TeacherBusy) and error.retry_after:
        cluster.limits.freeze(error.retry_after)  # the server works, and says when
    elif isinstance(error, TeacherBusy):
        cluster.outcomes.stumbled(key)


def classify_status(error: openai.APIStatusError, model: str) -> TeacherError | PairRejected:
    """Sort an HTTP error answer: try later, a person must act, or this prompt will never do.

    The server's own words are left out: some repeat a part of the key.
    """
    status, code = error.status_code, str(error.code or "")
    if code in NO_MONEY:
        return TeacherRefused("the teacher's account has no quota left: add credit, then 'svf resume'", "quota")
    if status in RETRYABLE or status >= 500:
        wait = retry_after(error.response.headers)
        if wait is not None and wait > LONG_WAIT:
            return TeacherRefused(
                f"the teacher answered {status} and asks to wait {wait / 60:.0f} minutes: 'svf resume' then",
                "long_wait",
            )
        return TeacherBusy(f"the teacher answered {status}", wait)
    if status in (401, 403):
        return TeacherRefused(f"the teacher refused the key ({status}): set another, then 'svf resume'")
    if status == 404:
        return TeacherRefused(f"the teacher has no model {model!r} (404): choose another teacher_model", "no_model")
    return PairRejected("bad_request", f"the teacher answered {status} to this prompt")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from ``Retry-After-Ms``, or ``Retry-After`` as a number or a date."""
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def read_completion(completion: Any) -> dict[str, Any]:
    """What of a completion is kept; ``bad`` says why it cannot be used, or None."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list):
        return _bad("not_json")
    choice = choices[0] if choices else None
    message = getattr(choice, "message", None)
    text, finish_reason = getattr(message, "content", None), getattr(choice, "finish_reason", None)
    bad = None
    if finish_reason in ("length", "content_filter"):
        bad = str(finish_reason)
    elif getattr(message, "refusal", None):
        bad = "refusal"
    elif not isinstance(text, str) or not text.strip():
        bad = "empty"
    return {
        "bad": bad,
        "text": text.strip() if isinstance(text, str) else "",
        "model": str(getattr(completion, "model", "")),
        "finish_reason": str(finish_reason),
        "usage": _usage(getattr(completion, "usage", None)),
        "request_id": getattr(completion, "_request_id", None),
    }


def _usage(usage: Any) -> dict[str, int]:
    """Tokens of a call, or nothing where the server does not say both."""
    read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    if type(read) is not int or type(written) is not int or min(read, written) < 0:
        return {}
    return {"input": read, "output": written}


def _bad(reason: str) -> dict[str, Any]:
    known: dict[str, Any] = {"bad": reason, "text": "", "model": "", "finish_reason": "", "usage": {}}
    return known | {"request_id": None}


@lru_cache(maxsize=8)
def _client(process: int, base_url: str | None, key: str, timeout: float) -> openai.OpenAI:
    # One client a process: connections do not survive a fork. Retries are the queue's business.
    client = openai.OpenAI(
        api_key=key,
        base_url=base_url or OPENAI_URL,
        max_retries=0,
        timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)),
    )
    if base_url:  # the client takes these from the environment: they name an account at OpenAI
        client.organization = client.project = None
    return client


_making_client = threading.Lock()


def open_client(spec: TeacherSpec, api_key_env: str | None, timeout: float) -> openai.OpenAI:
    """This process's client for a run's endpoint, with this process's key; ``timeout`` in seconds an answer.

    Raises:
        TeacherRefused: there is no key for the endpoint.
    """
    key = find_key(spec.base_url, api_key_env)
    if key is None:
        raise TeacherRefused(f"no API key: set {api_key_env or OPENAI_KEY} (or --api-key) for the teacher's endpoint")
    with _making_client:
        return _client(os.getpid(), spec.base_url, key, timeout)


@lru_cache(maxsize=32)
def check_model(client: openai.OpenAI, model: str) -> None:
    """Ask OpenAI whether it has ``model``, which is free, before a call is paid.

    Any other trouble is left to the call itself, which says it better.

    Raises:
        TeacherRefused: it has not.
    """
    try:
        client.models.retrieve(model)
    except openai.NotFoundError as error:
        raise classify_status(error, model) from None
    except (openai.OpenAIError, ValueError):
        pass
