"""What all workers share about a run's teacher: its limits, its money, and its pause.

Counted in the broker's Redis; what a person must know stands in the run's ledger. This module
knows Redis, not the queue.
"""

from __future__ import annotations

import redis

from factory.config import Settings
from factory.counters import open_counters
from factory.errors import TeacherRefused
from factory.run.ledger import Ledger
from factory.run.progress import spent_on
from factory.teacher.client import ON_THE_WAY, Shared, Teacher
from factory.teacher.connection import check_model, open_client
from factory.teacher.judge import judge_spec
from factory.teacher.limits import LONGEST_SLEEP, Limits, Outcomes
from factory.teacher.replies import Payer
from factory.teacher.spec import TeacherSpec
from factory.teacher.spending import Meter, Purse
from factory.teacher.tally import paid_by_all, tally_of


def open_teacher(ledger: Ledger, payer: Payer, settings: Settings, broker_url: str) -> Teacher:
    """The teacher of a run, with this process's key and what the cluster shares.

    Raises:
        TeacherRefused: no key, no such model at OpenAI, or a budget that cannot be counted here.
    """
    return _open(ledger.spec.teacher, ledger, payer, settings, broker_url)


def open_judge(ledger: Ledger, payer: Payer, settings: Settings, broker_url: str, model: str) -> Teacher:
    """The judge of a run's evaluation, at the teacher's endpoint, within the same limits and budget.

    Raises:
        TeacherRefused: as for :func:`open_teacher`.
    """
    return _open(judge_spec(ledger.spec.teacher, model), ledger, payer, settings, broker_url)


def _open(spec: TeacherSpec, ledger: Ledger, payer: Payer, settings: Settings, broker_url: str) -> Teacher:
    client = open_client(spec.base_url, settings.api_key_env, settings.answer_timeout)
    if spec.base_url is None:
        for model in filter(None, (spec.model, spec.judge_model)):
            check_model(client, model)
    return Teacher(spec, client, ledger.store, payer, open_shared(ledger, settings, broker_url))


def open_shared(ledger: Ledger, settings: Settings, broker_url: str) -> Shared | None:
    """What is shared, or None where the broker is no Redis and each worker is alone.

    Raises:
        TeacherRefused: the run has a budget, and nobody to count it.
    """
    counters, cap = open_counters(broker_url), ledger.max_cost_usd
    if counters is None:
        if cap is not None:
            raise TeacherRefused("max_cost_usd needs Redis or Valkey as the broker: it counts the money", "budget")
        return None
    spec = ledger.spec.teacher
    limits = Limits(
        counters,
        f"{spec.base_url or 'openai'} {spec.model}",
        tighter(spec.calls_per_minute, settings.own_calls_per_minute),
        tighter(spec.tokens_per_minute, settings.tokens_per_minute),
    )
    return Shared(
        limits,
        Outcomes(counters, ledger.run_id),
        Meter(counters, ledger.run_id),
        tally_of(ledger.store, ledger.run_id),
        _purse(ledger, counters, settings.answer_timeout),
    )


def _purse(ledger: Ledger, counters: redis.Redis, answer_timeout: float) -> Purse | None:
    cap = ledger.max_cost_usd
    silent = LONGEST_SLEEP + answer_timeout + ON_THE_WAY
    return None if cap is None else Purse(counters, ledger.run_id, cap, lambda: spent_usd(ledger), silent)


def begin_spending(ledger: Ledger, broker_url: str) -> None:
    """Tell the workers that a new run has spent nothing yet."""
    counters = open_counters(broker_url)
    purse = _purse(ledger, counters, 0.0) if counters is not None else None
    if purse:
        purse.begin()


def tighter(of_run: float | None, of_machine: float | None) -> float | None:
    """The lower of what a run and a worker's own settings allow per minute; None: no limit."""
    return min((limit for limit in (of_run, of_machine) if limit is not None), default=None)


def spent_usd(ledger: Ledger) -> float:
    """What a run has spent, also in batches that are not finished; reads one object per batch and worker.

    Of a run from before there were tallies, what its finished batches cost.
    """
    finished = sum(spent_on(page) for page in ledger.pages)
    return max(finished, paid_by_all(ledger.store, ledger.run_id))
