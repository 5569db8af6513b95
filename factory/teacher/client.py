"""The teacher: a chat model behind an OpenAI-compatible API, asked one prompt at a time.

Every completion is kept in the store under the hash of its request, good or bad, so that no
request is paid for twice; what was no completion is never kept. This module knows neither the
queue nor the target model, nor what is asked.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import httpx2
import openai

from factory.errors import BadReply, PairRejected, TeacherBusy, TeacherError, TeacherPaced
from factory.log import log
from factory.store import Store
from factory.teacher.claims import Claim, claimed
from factory.teacher.completion import Completion, read_completion
from factory.teacher.connection import describe_way
from factory.teacher.endpoint import endpoint_name
from factory.teacher.faults import classify, error_in_answer, refused_parameters
from factory.teacher.limits import Limits, Outcomes, Pace
from factory.teacher.replies import KeptReply, Payer, keep_reply, stored_reply
from factory.teacher.request import Request, build_request, request_key, without
from factory.teacher.spec import TeacherSpec
from factory.teacher.spending import Meter, Purse, likely_tokens, most_tokens, price_of, worst_case
from factory.teacher.tally import Tally

ON_THE_WAY = 15.0  # s beyond the timeout of an answer that a call may take


@dataclass(frozen=True)
class Reply:
    """One answer of the teacher, and what it took.

    ``parameters`` is the request without its text; ``left_out``: those that the server refused.
    """

    text: str
    request_key: str
    model: str
    finish_reason: str
    usage: dict[str, int]
    request_id: str | None
    cost_usd: float | None
    paid_by: Payer
    parameters: Mapping[str, object]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Shared:
    """What all workers share about the calls of one run. ``purse``: None without a budget."""

    limits: Limits
    outcomes: Outcomes
    meter: Meter
    tally: Tally
    purse: Purse | None = None


@dataclass(frozen=True)
class Teacher:
    """An endpoint, a model, and the store that remembers its replies.

    ``shared``: None in a process of its own, where there is nobody to share limits with, and
    ``pace`` alone is kept. No call begins after ``deadline`` (of ``time.monotonic()``): who asks
    has a worker to give back.
    """

    spec: TeacherSpec
    client: openai.OpenAI
    store: Store
    payer: Payer
    shared: Shared | None = None
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
        kept = stored_reply(self.store, key) or self._make_call(key, request, prompt)
        if kept.bad:
            raise BadReply(kept.bad, f"the teacher's answer cannot be used: {kept.bad}")
        return Reply(
            text=kept.text,
            request_key=key,
            model=kept.model,
            finish_reason=kept.finish_reason,
            usage=kept.usage,
            request_id=kept.request_id,
            cost_usd=kept.cost_usd,
            paid_by=kept.paid_by,
            parameters={k: value for k, value in request.items() if k not in ("messages", *kept.left_out)},
            left_out=kept.left_out,
        )

    def _make_call(self, key: str, request: Request, prompt: str) -> KeptReply:
        if time.monotonic() > self.deadline:
            raise TeacherPaced("the worker's calls are all taken", 1.0)
        with claimed(self.store, key) as claim:
            known = stored_reply(self.store, key)  # another worker may just have got it
            if known:
                return known
            if self.shared:
                return self._call_within_limits(self.shared, claim, key, request, prompt)
            self.pace.await_turn()
            claim.require()
            return self._send(key, request, prompt)

    def _call_within_limits(self, shared: Shared, claim: Claim, key: str, request: Request, prompt: str) -> KeptReply:
        """Reserve the worst case, wait for our turn, call, then settle.

        A call that is answered costs its price, one that was perhaps paid the worst case, one that the
        server refused nothing.
        """
        worst = worst_case(self.spec, request["model"], prompt) or 0.0
        tokens = likely_tokens(prompt) + self.spec.max_response_tokens
        if shared.purse:
            shared.purse.reserve(key, worst)
        cost = worst
        try:
            shared.limits.await_turn(tokens)
            claim.require()
            reply = self._send(key, request, prompt)
            cost = reply.cost_usd or 0.0
        except (TeacherError, PairRejected) as error:
            cost = worst if isinstance(error, TeacherBusy) and error.may_be_paid else 0.0
            _note_trouble(shared, key, error)
            raise
        finally:
            shared.tally.add(cost)  # first: a purse that is filled between the two rather counts twice
            if shared.purse:
                shared.purse.settle(key, cost)
        shared.meter.count(self.payer.style, cost)
        used = sum(reply.usage.values()) or likely_tokens(prompt) + likely_tokens(reply.text)
        shared.limits.refund(tokens - used)
        shared.outcomes.failed() if reply.bad else shared.outcomes.succeeded(key)
        return reply

    def _send(self, key: str, request: Request, prompt: str) -> KeptReply:
        """Ask, and keep the answer before anything else can happen. The first that is kept stays."""
        response, left_out = self._exchange(request, prompt)
        completion = self._read(response, request["model"])
        reply = KeptReply(
            bad=completion.bad,
            text=completion.text,
            model=completion.model,
            finish_reason=completion.finish_reason,
            usage=completion.usage,
            request_id=response.headers.get("x-request-id"),
            paid_by=self.payer,
            cost_usd=self._cost(request["model"], prompt, completion),
            left_out=tuple(left_out),
        )
        known = keep_reply(self.store, key, reply)
        if known is None:
            return reply
        log.warning("a call was made twice, and paid twice: its claim was lost while it ran")
        return known.model_copy(update={"cost_usd": reply.cost_usd})

    def _cost(self, model: str, prompt: str, completion: Completion) -> float | None:
        if completion.usage:
            return price_of(self.spec, model, completion.usage["input"], completion.usage["output"])
        # A server that does not count is taken at the worst for what it read, and for what it wrote.
        most = self.spec.max_response_tokens
        written = most_tokens(completion.text) + completion.unseen if completion.text else most
        return price_of(self.spec, model, most_tokens(prompt), min(written, most))

    def _exchange(self, request: Request, prompt: str) -> tuple[httpx2.Response, list[str]]:
        """The server's answer, good or bad, and the parameters that it had to be asked without."""
        refused = _refused_by(self.client, request["model"])
        left_out = set(refused)
        response = self._post(without(request, left_out), prompt)
        while more := refused_parameters(response, request) - left_out:
            left_out |= more
            response = self._post(without(request, left_out), prompt)
        if not response.is_error and left_out - refused:
            names, where = ", ".join(sorted(left_out - refused)), endpoint_name(self.spec.base_url)
            log.warning("the teacher at %s refuses the parameter %s: it is asked without", where, names)
            refused |= left_out
        return response, sorted(left_out & request.keys())

    def _post(self, request: Request, prompt: str) -> httpx2.Response:
        try:
            raw = self.client.chat.completions.with_raw_response.create(**request)
        except openai.APIStatusError as error:
            return error.response
        except openai.APIConnectionError as error:  # a timeout is one of these
            cause = error.__cause__
            sent = not isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError)
            way = describe_way(self.spec.base_url)
            kind = type(cause or error).__name__
            raise TeacherBusy(f"the teacher at {way} cannot be reached: {kind}", may_be_paid=sent) from None
        if self.shared:
            tokens = likely_tokens(prompt) + self.spec.max_response_tokens
            self.shared.limits.tighten(raw.headers, tokens)
        return raw.http_response

    def _read(self, response: httpx2.Response, model: str) -> Completion:
        """The completion in an answer; whatever is none is an error, also with status 200."""
        base_url = self.spec.base_url
        if response.is_error:
            raise classify(response, model, base_url)
        try:
            content = json.loads(response.content)
        except (ValueError, RecursionError):
            content = None
        error = error_in_answer(content, response.headers, model, base_url)
        if error:
            raise error
        completion = read_completion(content)
        if completion is None:
            kind = response.headers.get("content-type", "nothing").partition(";")[0][:40]
            raise TeacherBusy(
                f"the teacher at {describe_way(base_url)} answered {response.status_code} with {kind} that is no "
                "chat completion; if it goes on, base_url may be wrong"
            )
        return completion


@lru_cache(maxsize=32)
def _refused_by(client: openai.OpenAI, model: str) -> set[str]:
    """Parameters that a model behind ``client`` was found to refuse."""
    return set()


def _note_trouble(shared: Shared, key: str, error: TeacherError | PairRejected) -> None:
    """Tell the other workers what an error says about the endpoint."""
    if isinstance(error, TeacherPaced):
        return
    log.warning("%s", error)
    if isinstance(error, PairRejected):
        shared.outcomes.failed()
    elif isinstance(error, TeacherBusy) and error.retry_after:
        shared.limits.freeze(error.retry_after)  # the server works, and says when
    elif isinstance(error, TeacherBusy):
        shared.outcomes.stumbled(key)
