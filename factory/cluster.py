"""What all workers share about a run's teacher: its limits, its money, and its pause.

Counted in the broker's Redis; what a person must know stands in the run's ledger. This module
knows Redis, not the queue.
"""

from __future__ import annotations

from factory.config import Settings
from factory.errors import RunPaused, TeacherRefused
from factory.judge import judge_spec
from factory.ledger import Ledger
from factory.limits import CLAIM, WINDOW, Limits, Outcomes, open_counters
from factory.log import log
from factory.run import TeacherSpec
from factory.spending import Meter, Purse
from factory.teacher import ON_THE_WAY, Cluster, Payer, Teacher, check_model, endpoint_name, open_client
from factory.writing import draw_bill


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
    client = open_client(spec, settings.api_key_env, settings.answer_timeout)
    if spec.base_url is None:
        for model in filter(None, (spec.model, spec.judge_model)):
            check_model(client, model)
    return Teacher(spec, client, ledger.store, payer, open_cluster(ledger, settings, broker_url))


def open_cluster(ledger: Ledger, settings: Settings, broker_url: str) -> Cluster | None:
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
    silent = settings.answer_timeout + CLAIM + ON_THE_WAY
    purse = None if cap is None else Purse(counters, ledger.run_id, cap, lambda: spent_usd(ledger), silent)
    return Cluster(limits, Outcomes(counters, ledger.run_id), Meter(counters, ledger.run_id), purse)


def tighter(of_run: float | None, of_machine: float | None) -> float | None:
    """The lower of what a run and a worker's own settings allow a minute; None: no limit."""
    return min((limit for limit in (of_run, of_machine) if limit is not None), default=None)


def spent_usd(ledger: Ledger) -> float:
    """What a run has spent, from the replies in the store: also in batches that are not finished."""
    spec, total = ledger.spec, 0.0
    for part in spec.styles:
        style = part.style.name
        total += sum(entry.get("cost_usd", 0.0) for entry in ledger.judged(style))
        for batch in ledger.batches(style):
            entry = ledger.entry(style, "written", batch.number)
            if entry is not None:
                total += entry.get("cost_usd", 0.0)
            elif batch.questions:
                payer = Payer(ledger.run_id, style, batch.number)
                total += draw_bill(ledger.store, spec.teacher, part.style, batch.questions, payer).spent_usd
    return total


# ---- the pause


def require_unpaused(ledger: Ledger) -> None:
    """Go on only if the run does not wait for a person.

    Raises:
        RunPaused: it does.
    """
    pause = ledger.paused()
    if pause is not None:
        raise RunPaused(pause["reason"], pause["message"])


def pause_run(ledger: Ledger, reason: str, message: str) -> RunPaused:
    """Write down that the run waits for a person; gives the error to raise."""
    log.error("run paused: %s", message)
    ledger.pause(reason, message, spent_usd(ledger))
    return RunPaused(reason, message)


def require_calls_that_succeed(ledger: Ledger, broker_url: str) -> None:
    """Pause the run when half of its last calls failed: money and patience end before the batches do.

    Raises:
        RunPaused: they did.
    """
    counters = open_counters(broker_url)
    if counters is not None and Outcomes(counters, ledger.run_id).are_failing():
        where = endpoint_name(ledger.spec.teacher.base_url)
        raise pause_run(
            ledger,
            "failing",
            f"half of the last {WINDOW} calls to the teacher at {where} failed; the log says how. "
            "When it is mended, 'svf resume'",
        )


def reopen_run(ledger: Ledger, broker_url: str, max_cost_usd: float | None = None) -> None:
    """Let a paused run go on, with another cap if one is given."""
    if max_cost_usd is not None and max_cost_usd != ledger.max_cost_usd:
        ledger.set_budget(max_cost_usd)
    counters = open_counters(broker_url)
    if counters is not None:
        Outcomes(counters, ledger.run_id).forget()
    ledger.unpause()
