"""Writing pairs: both answers to a question, through the gates, with one regeneration.

What was paid is read back from the store, where every reply lies under its request: a batch that
was begun by a worker that died is counted like one that went well.
"""

from __future__ import annotations

import contextvars
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NotRequired, TypedDict

from factory.errors import (
    BadReply,
    FactoryError,
    PairRejected,
    RunPaused,
    TeacherBusy,
    TeacherError,
    TeacherPaced,
    TeacherRefused,
)
from factory.pairs.pair import ContrastivePair
from factory.pairs.rejected import RejectedQuestion
from factory.pairs.styles import Style
from factory.store import Store
from factory.teacher.client import Reply, Teacher
from factory.teacher.faults import UNANSWERED
from factory.teacher.gates import Verdict, check_answer, compare_answers, find_duplicates, reject
from factory.teacher.judge import as_judge, judge_pair, judge_prompt, judge_spec
from factory.teacher.replies import KeptReply, Payer, stored_reply
from factory.teacher.request import build_request, request_key
from factory.teacher.spec import TeacherSpec

ATTEMPTS = (0, 1)  # one regeneration
PATIENCE = 120.0  # s that a batch holds its worker before it lets others go on; well below the visibility timeout


@dataclass(frozen=True)
class WrittenAnswer:
    """One side of a pair that passed its gates."""

    prompt: str
    reply: Reply
    verdict: Verdict
    attempt: int


def write_pair(teacher: Teacher, style: Style, question: str, batch: int) -> ContrastivePair:
    """Have both answers to ``question`` written, in two independent calls, and hold them against the gates.

    Raises:
        PairRejected: no usable answer, also not at the second try.
        TeacherBusy, TeacherRefused: see :meth:`factory.teacher.client.Teacher.ask`.
    """
    positive_prompt, negative_prompt = style.prompts_for(question)
    positive = _answer(teacher, style, question, positive_prompt, positive=True)
    negative = _answer(teacher, style, question, negative_prompt, positive=False)
    between = compare_answers(positive.reply.text, negative.reply.text)
    if not between.passed and positive.attempt == 0:
        positive = _answer(teacher, style, question, positive_prompt, positive=True, attempts=ATTEMPTS[1:])
        between = compare_answers(positive.reply.text, negative.reply.text)
    judged, judge_replies = (
        _judge(teacher, style, question, positive, negative) if between.passed else (Verdict({}), [])
    )
    checks = {
        "positive": positive.verdict.figures,
        "negative": negative.verdict.figures,
        **between.figures,
        **judged.figures,
    }
    pair = ContrastivePair(
        question=question,
        positive_prompt=positive_prompt,
        positive_response=positive.reply.text,
        negative_prompt=negative_prompt,
        negative_response=negative.reply.text,
        style=style.name,
        batch=batch,
        extra={
            "checks": checks,
            "provenance": {
                "positive": describe(positive.reply, teacher),
                "negative": describe(negative.reply, teacher),
            },
        },
    )
    reasons = [*between.reasons, *judged.reasons]
    if reasons:
        raise reject(question, Verdict(checks, reasons), **_evidence(pair))
    if judge_replies:
        pair.extra["provenance"]["judge"] = judge_replies
    return pair


def _answer(
    teacher: Teacher,
    style: Style,
    question: str,
    prompt: str,
    *,
    positive: bool,
    attempts: Sequence[int] = ATTEMPTS,
) -> WrittenAnswer:
    """The first answer that passes; each attempt is another request."""
    verdict, text = Verdict({}), ""
    for attempt in attempts:
        try:
            reply = teacher.ask(prompt, attempt)
        except BadReply as error:
            verdict, text = Verdict({}, [error.reason]), ""
            continue
        text = reply.text
        verdict = check_answer(text, style, prompt, question, positive=positive)
        if verdict.passed:
            return WrittenAnswer(prompt, reply, verdict, attempt)
    side = "positive" if positive else "negative"
    raise reject(question, verdict, side=side, prompt=prompt, response=text, checks={side: verdict.figures})


def _judge(
    teacher: Teacher, style: Style, question: str, positive: WrittenAnswer, negative: WrittenAnswer
) -> tuple[Verdict, list[Provenance]]:
    """The judge's verdict on both answers, and where it comes from; of nobody where no judge is asked."""
    if not teacher.spec.judge_model:
        return Verdict({}), []
    judge = as_judge(teacher, teacher.spec.judge_model)
    verdict, replies = judge_pair(judge, style, question, positive.reply.text, negative.reply.text)
    return verdict, [describe(reply, judge) for reply in replies]


def _evidence(pair: ContrastivePair) -> dict[str, object]:
    line = pair.to_json()
    return {name: line[name] for name in ("positive_response", "negative_response", "checks")}


class Provenance(TypedDict):
    """Where an answer comes from: enough to ask again, and to know what it cost and who paid."""

    request_key: str
    model_requested: str
    model_resolved: str
    model_returned: str
    parameters: Mapping[str, object]
    left_out: NotRequired[list[str]]
    finish_reason: str
    usage: dict[str, int]
    cost_usd: float | None
    cache_hit: bool
    request_id: str | None


def describe(reply: Reply, teacher: Teacher) -> Provenance:
    """A reply's provenance, as it stands in the dataset."""
    provenance: Provenance = {
        "request_key": reply.request_key,
        "model_requested": teacher.spec.requested_model,
        "model_resolved": teacher.spec.model,
        "model_returned": reply.model,
        "parameters": reply.parameters,
        "finish_reason": reply.finish_reason,
        "usage": reply.usage,
        "cost_usd": reply.cost_usd,
        "cache_hit": reply.paid_by.run != teacher.payer.run,
        "request_id": reply.request_id,
    }
    if reply.left_out:
        provenance["left_out"] = list(reply.left_out)
    return provenance


# ---- what was paid


@dataclass(frozen=True)
class Bill:
    """What a batch cost this run, what the cache saved it, how many calls that were, and the tokens of those paid."""

    spent_usd: float
    saved_usd: float
    paid_calls: int
    cached_calls: int
    paid_tokens: dict[str, int]


def draw_bill(store: Store, spec: TeacherSpec, style: Style, questions: Sequence[str], payer: Payer) -> Bill:
    """Add up what the store holds of a batch's replies, good and bad."""
    spent = saved = 0.0
    calls = Counter[bool]()
    tokens = {"input": 0, "output": 0}
    for question in questions:
        for reply in stored_replies(store, spec, style, question):
            ours = reply.paid_by == payer
            calls[ours] += 1
            cost = reply.cost_usd or 0.0
            spent, saved = (spent + cost, saved) if ours else (spent, saved + cost)
            for kind in tokens if ours else ():
                tokens[kind] += reply.usage.get(kind, 0)
    return Bill(spent, saved, calls[True], calls[False], tokens)


def stored_replies(store: Store, spec: TeacherSpec, style: Style, question: str) -> Iterator[KeptReply]:
    """Everything that was ever answered for a question's pair: both sides, both attempts, and the judge."""
    for prompt in style.prompts_for(question):
        for attempt in ATTEMPTS:
            reply = stored_reply(store, request_key(spec, build_request(spec, prompt, attempt)))
            if reply is None:
                break
            yield reply
            if spec.judge_model and reply.text:
                asked = build_request(judge_spec(spec, spec.judge_model), judge_prompt(style, question, reply.text))
                judged = stored_reply(store, request_key(spec, asked))
                if judged:
                    yield judged


# ---- a batch


@dataclass(frozen=True)
class WrittenBatch:
    """What the teacher made of a batch of questions."""

    pairs: list[ContrastivePair]
    rejected: list[RejectedQuestion]

    @property
    def reasons(self) -> dict[str, int]:
        """How many questions failed, by reason."""
        return dict(Counter(rejection.reason for rejection in self.rejected))

    @property
    def has_unanswered(self) -> bool:
        """Whether a question failed without an answer: then the teacher may be at fault, not the question."""
        return bool(UNANSWERED & self.reasons.keys())


@lru_cache(maxsize=2)
def _callers(process: int, max_concurrent: int) -> ThreadPoolExecutor:
    # One pool a process: it bounds the calls in flight, however many batches the worker has in hand.
    return ThreadPoolExecutor(max_concurrent, thread_name_prefix="teacher-call")


def write_batch(
    teacher: Teacher,
    style: Style,
    questions: Sequence[str],
    *,
    max_concurrent: int,
    may_go_on: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> WrittenBatch:
    """Write the pairs of a batch, several calls at a time.

    Every reply that arrives is kept, also when another question raises. ``may_go_on`` is asked
    before each question and raises to stop.

    Raises:
        TeacherBusy, TeacherRefused: the batch must be tried again; what arrived is not paid again.
        RunPaused: what ``may_go_on`` raised.
    """
    hurried = replace(teacher, deadline=time.monotonic() + patience)

    def attempt(question: str) -> ContrastivePair | FactoryError:
        try:
            may_go_on()
            return write_pair(hurried, style, question, teacher.payer.batch)
        except (PairRejected, TeacherError, RunPaused) as error:
            return error

    pool = _callers(os.getpid(), max_concurrent)
    calls = [pool.submit(contextvars.copy_context().run, attempt, question) for question in questions]
    outcomes = [call.result() for call in calls]
    _raise_worst(outcomes)
    pairs = [outcome for outcome in outcomes if isinstance(outcome, ContrastivePair)]
    rejected = [
        RejectedQuestion.after(outcome, question)
        for question, outcome in zip(questions, outcomes, strict=True)
        if isinstance(outcome, PairRejected)
    ]
    return _without_repeats(pairs, rejected)


def _raise_worst(outcomes: Sequence[ContrastivePair | FactoryError]) -> None:
    """Raise what matters most: what a person must mend, then what failed, then what had to wait."""
    for kind in (TeacherRefused, RunPaused, TeacherBusy):
        found = [outcome for outcome in outcomes if isinstance(outcome, kind)]
        if found:
            faults = [error for error in found if not isinstance(error, TeacherPaced)]
            raise (faults or found)[0]


def _without_repeats(pairs: list[ContrastivePair], rejected: list[RejectedQuestion]) -> WrittenBatch:
    repeats = find_duplicates(pairs)
    for pair in pairs:
        if pair.pair_id in repeats:
            error = reject(pair.question, Verdict({}, ["duplicate"]), repeats=repeats[pair.pair_id], **_evidence(pair))
            rejected.append(RejectedQuestion.after(error, pair.question))
    return WrittenBatch([pair for pair in pairs if pair.pair_id not in repeats], rejected)
