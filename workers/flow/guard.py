"""The guard: finds what crashes left hanging, and sends it again under the same ids.

It looks in every ``reduce`` worker (one at a time), in ``svf watch`` and at ``svf resume``. What
holds at all times, by the numbers that the code names:

G1. A member of a chord is done when the ledger says so; of tasks that the ledger does not know, when
    their result is SUCCESS. Redis's own count is never asked, so a flushed Redis loses nothing.
G2. A member is lost when it is not done and none of its calls is in a queue or in a worker's hands,
    at two looks that lie ``patience`` seconds apart.
G3. What is lost is sent again under the ids it had, from its first call that is not done.
G4. The body is sent when every member is done and the body is in no queue, at most MAX_BODIES times.
G5. Nothing is judged while somebody sends the run's messages.
G6. Nothing is sent that would ask the teacher while the run is paused.
G7. A style without any record gets one: its enqueuer died before it wrote it down.

A wrong suspicion costs time and changes nothing, as every task may run twice.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from celery.signals import worker_ready, worker_shutdown

from factory.celery import app
from factory.cluster.broker import ids_in_flight, queue_depth, queue_names
from factory.counters import LOCK, REPAIRS, sending_key
from factory.log import about, log
from factory.run.ledger import Ledger, open_runs
from factory.run.listing import Listing, Step
from factory.run.page import Page
from factory.store import Store
from workers.flow.chord import Call, ChordRecord, read_chord, send_body, send_member
from workers.flow.task import machine_settings, open_store

LONGEST_QUEUE = 20_000  # messages; above it nobody waits for a lost one yet, and reading all ids costs too much
STEPS: dict[str, Step] = {  # task -> the ledger's name for its step
    "workers.teacher.write_pairs": "written",
    "workers.gpu.extract_batch": "extracted",
    "workers.gpu.learn_part": "gradient",
    "workers.gpu.evaluate_part": "evaluated",
}
MAX_BODIES = 5  # a body that is sent and lost more often than that has another fault


class Guard:
    """Looks at open chords; remembers what it missed, and repairs what stays missing."""

    def __init__(self, store: Store, patience: float | None = None) -> None:
        self.store = store
        self.patience = machine_settings().guard_seconds if patience is None else patience
        self._missed: dict[str, float] = {}  # task id -> when it was first missed
        self._bodies: dict[str, int] = {}

    def look(self) -> dict[str, int]:
        """Look after every open run; returns how often what was done."""
        ledgers = open_runs(self.store)
        if not ledgers or self._queues_too_long():
            return {}
        repairs: dict[str, int] = {}
        for ledger in ledgers:
            for kind, count in self.look_at(ledger).items():
                repairs[kind] = repairs.get(kind, 0) + count
        return repairs

    def look_at(self, ledger: Ledger) -> dict[str, int]:
        """Look after one run."""
        client = app.backend.client
        if client.exists(sending_key(ledger.run_id)):  # G5
            return {}
        in_flight = ids_in_flight(client, queue_names(client))
        repairs: dict[str, int] = {}
        closed = True
        for page in ledger.pages:
            files = page.listing()
            for record in self._open_records(page, files):
                closed = False
                with about(ledger.run_id, page.name):
                    self._mend(ledger, record, files, in_flight, repairs)
        if closed:
            ledger.mark_closed()
        for kind, count in repairs.items():
            client.hincrby(REPAIRS, kind, count)
        return repairs

    def _queues_too_long(self) -> bool:
        client = app.backend.client
        return any(queue_depth(client, name).waiting > LONGEST_QUEUE for name in queue_names(client))

    def _open_records(self, page: Page, files: Listing) -> list[ChordRecord]:
        if files.ended:
            return []
        records = [record for record in (read_chord(page, name) for name in files.chords) if record]
        if not records:  # G7
            from workers.flow.extraction import write_style

            records = [write_style(page)]
        return [record for record in records if files.names.isdisjoint(record.ends_with)]

    def _mend(
        self, ledger: Ledger, record: ChordRecord, files: Listing, in_flight: set[str], repairs: dict[str, int]
    ) -> None:
        open_members = _open_members(record, files)
        lost = [n for n in open_members if not any(call.id in in_flight for call in record.calls(n))]
        lost = _without_results(record, lost)
        if ledger.paused():  # G6: only members whose last call is due ask no teacher
            lost = [n for n in lost if _first_open_call(record, n, files) == len(record.calls(n)) - 1]
        due = [n for n in lost if self._is_due(record.calls(n)[-1].id)]
        for number in due:
            send_member(record, number, _first_open_call(record, number, files))  # G3
            self._missed.pop(record.calls(number)[-1].id)
        if due:
            log.warning("guard: %d lost batches of chord %s sent again", len(due), record.name)
            repairs["sent_again"] = repairs.get("sent_again", 0) + len(due)
        undone = _without_results(record, open_members)
        if not undone and record.body_id not in in_flight and self._is_due(record.body_id):  # G4
            self._send_body(record)
            repairs["body"] = repairs.get("body", 0) + 1

    def _is_due(self, task_id: str) -> bool:
        first = self._missed.setdefault(task_id, time.monotonic())
        return time.monotonic() - first >= self.patience and first < time.monotonic()  # G2

    def _send_body(self, record: ChordRecord) -> None:
        self._missed.pop(record.body_id, None)
        sent = self._bodies[record.body_id] = self._bodies.get(record.body_id, 0) + 1
        if sent > MAX_BODIES:
            return
        # As Celery marks a chord whose body is sent: parts that are counted late send no other.
        app.backend.client.set(app.backend.get_key_for_group(record.group, ".c"), "done", ex=24 * 3600)
        send_body(record)
        log.warning("guard: all parts of chord %s are done and its body was lost: sent", record.name)


def _open_members(record: ChordRecord, files: Listing) -> list[int]:
    """Numbers of the members that the ledger does not know as done (G1)."""
    return [number for number in range(len(record.members)) if not _is_done(record.calls(number)[-1], files)]


def _is_done(call: Call, files: Listing) -> bool:
    """Whether the ledger knows a task call as done."""
    step = STEPS.get(call.task)
    return step is not None and files.has(step, call.args[2])


def _first_open_call(record: ChordRecord, number: int, files: Listing) -> int:
    calls = record.calls(number)
    return next((at for at, call in enumerate(calls[:-1]) if not _is_done(call, files)), len(calls) - 1)


def _without_results(record: ChordRecord, numbers: Sequence[int]) -> list[int]:
    """Those of ``numbers`` whose tasks have not stored a SUCCESS (G1)."""
    asked = [number for number in numbers if record.calls(number)[-1].task not in STEPS]
    if not asked:
        return list(numbers)
    keys = [app.backend.get_key_for_task(record.calls(number)[-1].id) for number in asked]
    stored = app.backend.client.mget(keys)
    done = {n for n, raw in zip(asked, stored, strict=True) if raw and json.loads(raw)["status"] == "SUCCESS"}
    return [number for number in numbers if number not in done]


def repair_now(ledger: Ledger, pause: float = 2.0) -> dict[str, int]:
    """Look twice in short order: for a person who says that a run hangs."""
    guard = Guard(ledger.store, patience=pause / 2)
    guard.look_at(ledger)
    time.sleep(pause)
    return guard.look_at(ledger)


# ---- the periodic look: a thread of each reduce worker (celery beat would be one more process)

_stop = threading.Event()


@worker_ready.connect
def start_guard(sender: Any = None, **_: Any) -> None:
    """Start looking, if this worker serves the queue ``reduce``."""
    if "reduce" in app.amqp.queues.consume_from:
        _stop.clear()
        threading.Thread(target=_keep_looking, name="guard", daemon=True).start()


@worker_shutdown.connect
def stop_guard(**_: Any) -> None:
    """End with the worker."""
    _stop.set()


def _keep_looking() -> None:
    guard = Guard(open_store())
    period = guard.patience / 2
    me = f"{os.uname().nodename}:{os.getpid()}"
    while not _stop.wait(period):
        try:
            if _holds_lock(me, period):
                guard.look()
        except Exception as error:  # the broker or the store is away: look again later
            log.warning("guard: cannot look just now: %s", " ".join(str(error).split())[:200])


def _holds_lock(me: str, period: float) -> bool:
    """One guard at a time is enough; it keeps its turn while it lives."""
    client = app.backend.client
    expires = int(3 * period) + 1
    if client.set(LOCK, me, nx=True, ex=expires):
        return True
    if (client.get(LOCK) or b"").decode() != me:
        return False
    client.expire(LOCK, expires)
    return True
