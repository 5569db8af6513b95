"""A chord that can be repaired: written down in the store before its first message is sent.

Celery counts a chord's parts in Redis and sends the body behind the last one. That is fast, but a
crash at the wrong moment, a lost message or a flushed Redis stops it for ever. The record says what
was to be sent, under which ids, so that the guard (guard.py) can send again what got lost.
This module knows no task of ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery import Signature, chain
from celery.canvas import _chain
from celery.utils import uuid
from pydantic import BaseModel, ConfigDict, TypeAdapter

from factory.celery import app
from factory.run.ledger import Ledger

LEASE = 10  # s; a sender that shows no sign of life for so long is taken for dead
LEASE_EVERY = 100  # messages


class Step(BaseModel):
    """One task call of a chord's header."""

    model_config = ConfigDict(frozen=True)

    task: str
    args: tuple[Any, ...]
    named: dict[str, Any]
    id: str
    queue: str | None = None

    @property
    def signature(self) -> Signature:
        """The call, with the id it was given first."""
        options = {"task_id": self.id} | ({"queue": self.queue} if self.queue else {})
        return Signature(self.task, self.args, self.named, options, app=app, immutable=True)


_Steps = TypeAdapter(tuple[Step, ...])


@dataclass(frozen=True)
class Chord:
    """What is asked for: tasks that may run side by side, and the one behind them.

    Members of ``header`` are immutable signatures (``task.si(...)``) or chains of them. Every task
    must be able to run twice. ``body`` takes the list of results first, as in Celery; it may get
    an empty one, so it reads what it needs from the store. Its error callbacks
    (``body.on_error(...)``) also serve the header. ``ends_with`` is the file in the style's folder
    that exists when the body has done its work (or its error callback has said that it failed).
    """

    name: str
    header: Sequence[Signature]
    body: Signature
    ends_with: str = "result.json"


class ChordRecord(BaseModel):
    """All that is needed to send a chord, or any part of it, once more.

    ``members`` are the header: each the JSON text of one step, or of several that run one after the
    other; the last is the one that counts. They stay text until they are asked for, as a guard
    holds the records of all open chords, and seldom needs more than one member.
    """

    model_config = ConfigDict(frozen=True)

    style: str
    name: str
    group: str
    body: dict[str, Any]
    members: tuple[str, ...]
    ends_with: str
    sent_at: float

    def steps(self, number: int) -> tuple[Step, ...]:
        """The steps of one member of the header."""
        return _Steps.validate_json(self.members[number])

    @property
    def body_id(self) -> str:
        """The task id of the body."""
        return str(self.body["options"]["task_id"])

    @property
    def body_signature(self) -> Signature:
        """The body with its id and error callbacks."""
        return Signature.from_dict(self.body, app=app)


def send_chord(ledger: Ledger, style: str, chord: Chord) -> ChordRecord:
    """Write a chord of ``style`` down in the run's folder, then send it.

    Raises:
        ValueError: a member of the header is not immutable.
    """
    record = write_chord(ledger, style, chord)
    send_record(ledger, record)
    return record


def write_chord(ledger: Ledger, style: str, chord: Chord) -> ChordRecord:
    """The first half of :func:`send_chord`: ids are given, and nothing is sent."""
    group = uuid()
    body = chord.body.clone()
    body.freeze(uuid(), group_id=group)
    record = ChordRecord(
        style=style,
        name=chord.name,
        group=group,
        body=dict(body),
        members=tuple(_Steps.dump_json(tuple(_steps(member))).decode() for member in chord.header),
        ends_with=chord.ends_with,
        sent_at=time.time(),
    )
    ledger.open_chord(style, chord.name, record.model_dump(mode="json"))
    return record


def _steps(member: Signature) -> Iterator[Step]:
    for call in member.tasks if isinstance(member, _chain) else (member,):
        if not call.immutable:
            raise ValueError(f"{call.task}: a chord's header takes immutable signatures, {call.task}.si(...)")
        queue = call.options.get("queue")
        yield Step(task=call.task, args=tuple(call.args), named=dict(call.kwargs), id=uuid(), queue=queue)


def send_record(ledger: Ledger, record: ChordRecord) -> None:
    """Send all of a chord. The size is set before the first message: Celery sets it before the last."""
    if not record.members:
        send_body(record)
        return
    app.backend.set_chord_size(record.group, len(record.members))
    with sending(ledger.run_id) as stay:
        for number in range(len(record.members)):
            if number % LEASE_EVERY == 0:
                stay()
            send_member(record, number)


def send_member(record: ChordRecord, number: int, start: int = 0) -> None:
    """Send one member of the header, under the ids it has; from its step ``start`` on."""
    body = record.body_signature
    steps = record.steps(number)
    calls = [step.signature for step in steps[start:]]
    call = calls[0] if len(calls) == 1 else chain(calls)
    errbacks = record.body["options"].get("link_error") or []
    call.apply_async(
        task_id=steps[-1].id,
        group_id=record.group,
        group_index=number,
        chord=body,
        link_error=list(errbacks),
        add_to_parent=False,
    )


def send_body(record: ChordRecord) -> None:
    """Send the body itself, with an empty list of results."""
    record.body_signature.apply_async(args=([],), add_to_parent=False)


def retire_chords(ledger: Ledger, style: str) -> None:
    """Forget a style's chords, so that parts still on their way no longer start a body or fail it."""
    client = app.backend.client
    for name in ledger.chord_names(style):
        record = read_chord(ledger, style, name)
        if record:
            client.delete(*(app.backend.get_key_for_group(record.group, suffix) for suffix in (".s", ".j", ".d", ".t")))
        ledger.drop_chord(style, name)


def read_chord(ledger: Ledger, style: str, name: str) -> ChordRecord | None:
    """The record of a chord, or None."""
    content = ledger.chord(style, name)
    return None if content is None else ChordRecord.model_validate(content)


def sending_key(run: str) -> str:
    """The Redis key that says that someone is sending a run's messages just now."""
    return f"svf:sending:{run}"


@contextmanager
def sending(run: str) -> Iterator[Any]:
    """Tell guards that messages of ``run`` are on their way; gives a function that renews it."""
    client = app.backend.client
    key = sending_key(run)

    def stay() -> None:
        client.set(key, "1", ex=LEASE)

    stay()
    try:
        yield stay
    finally:
        client.delete(key)
