"""A chord that can be repaired: written down in the store before its first message is sent.

Celery counts a chord's parts in Redis and sends the body behind the last one. That is fast, but a
crash at the wrong moment, a lost message or a flushed Redis stops it for ever. The record says what
was to be sent, under which ids, so that the guard (guard.py) can send again what got lost. What
holds at all times, by the numbers that the code names:

C1. The record is in the store before the first message is sent.
C2. Task ids are given once, in the record: whoever sends again uses them.
C3. Redis knows the chord's size before the first message, so that a quick worker cannot count too early.
C4. Members are immutable, and a body reads what it needs from the store: results carry nothing.
C5. A retired chord starts no body and fails no style, whatever is still on its way.
C6. Whoever sends says so, and renews it: guards wait.

This module knows no task of ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from celery import Signature, chain
from celery.canvas import _chain
from celery.utils import uuid
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter

from factory.celery import app
from factory.counters import sending_key
from factory.run.ledger import Ledger
from factory.run.page import Page

LEASE = 10  # s; a sender that shows no sign of life for so long is taken for dead
LEASE_EVERY = 100  # messages


class Call(BaseModel):
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


_Calls = TypeAdapter(tuple[Call, ...])


@dataclass(frozen=True)
class Chord:
    """What is asked for: tasks that may run side by side, and the one behind them.

    Members of ``header`` are immutable signatures (``task.si(...)``) or chains of them. Every task
    must be able to run twice. ``body`` takes the list of results first, as in Celery; it may get
    an empty one, so it reads what it needs from the store. Its error callbacks
    (``body.on_error(...)``) also serve the header. The chord has ended when one of the style's files
    ``ends_with`` is there, which the body leaves behind, or when the style has ended.
    """

    name: str
    header: Sequence[Signature]
    body: Signature
    ends_with: tuple[str, ...]


def _as_tuple(found: object) -> object:
    """Records of older versions name one file."""
    return (found,) if isinstance(found, str) else found


class ChordRecord(BaseModel):
    """All that is needed to send a chord, or any part of it, once more.

    ``members`` are the header: each the JSON text of one call, or of several that run one after the
    other; the last is the one that counts. They stay text until they are asked for, as a guard
    holds the records of all open chords, and seldom needs more than one member.
    """

    model_config = ConfigDict(frozen=True)

    style: str
    name: str
    group: str
    body: dict[str, Any]
    members: tuple[str, ...]
    ends_with: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
    sent_at: float

    def calls(self, number: int) -> tuple[Call, ...]:
        """The calls of one member of the header."""
        return _Calls.validate_json(self.members[number])

    @property
    def body_id(self) -> str:
        """The task id of the body."""
        return str(self.body["options"]["task_id"])

    @property
    def body_signature(self) -> Signature:
        """The body with its id and error callbacks."""
        return Signature.from_dict(self.body, app=app)


def send_chord(page: Page, chord: Chord) -> ChordRecord:
    """Write a chord of a style down in the run's folder, then send it.

    Raises:
        ValueError: a member of the header is not immutable.
    """
    record = write_chord(page, chord)  # C1
    send_record(page.ledger, record)
    return record


def write_chord(page: Page, chord: Chord) -> ChordRecord:
    """The first half of :func:`send_chord`: ids are given, and nothing is sent."""
    group = uuid()
    body = chord.body.clone()
    body.freeze(uuid(), group_id=group)  # C2
    record = ChordRecord(
        style=page.name,
        name=chord.name,
        group=group,
        body=dict(body),
        members=tuple(_Calls.dump_json(tuple(_calls_of(member))).decode() for member in chord.header),
        ends_with=chord.ends_with,
        sent_at=time.time(),
    )
    page.open_chord(chord.name, record.model_dump(mode="json"))
    return record


def _calls_of(member: Signature) -> Iterator[Call]:
    for call in member.tasks if isinstance(member, _chain) else (member,):
        if not call.immutable:  # C4
            raise ValueError(f"{call.task}: a chord's header takes immutable signatures, {call.task}.si(...)")
        queue = call.options.get("queue")
        yield Call(task=call.task, args=tuple(call.args), named=dict(call.kwargs), id=uuid(), queue=queue)


def send_record(ledger: Ledger, record: ChordRecord) -> None:
    """Send all of a chord. The size is set before the first message: Celery sets it before the last."""
    if not record.members:
        send_body(record)
        return
    app.backend.set_chord_size(record.group, len(record.members))  # C3
    with sending(ledger.run_id) as stay:
        for number in range(len(record.members)):
            if number % LEASE_EVERY == 0:
                stay()  # C6
            send_member(record, number)


def send_member(record: ChordRecord, number: int, start: int = 0) -> None:
    """Send one member of the header, under the ids it has; from its call ``start`` on."""
    body = record.body_signature
    calls = record.calls(number)
    signatures = [call.signature for call in calls[start:]]
    sent = signatures[0] if len(signatures) == 1 else chain(signatures)
    errbacks = record.body["options"].get("link_error") or []
    sent.apply_async(
        task_id=calls[-1].id,
        group_id=record.group,
        group_index=number,
        chord=body,
        link_error=list(errbacks),
        add_to_parent=False,
    )


def send_body(record: ChordRecord) -> None:
    """Send the body itself, with an empty list of results."""
    record.body_signature.apply_async(args=([],), add_to_parent=False)


def retire_chords(page: Page) -> None:
    """Forget all chords of a style."""
    for name in page.listing().chords:
        retire_chord(page, name)


def retire_chord(page: Page, name: str) -> None:
    """Forget a chord, so that parts still on their way no longer start its body or fail it (C5)."""
    record = read_chord(page, name)
    if record:
        keys = (app.backend.get_key_for_group(record.group, suffix) for suffix in (".s", ".j", ".d", ".t"))
        app.backend.client.delete(*keys)
    page.drop_chord(name)


def read_chord(page: Page, name: str) -> ChordRecord | None:
    """The record of a chord, or None."""
    content = page.chord(name)
    return None if content is None else ChordRecord.model_validate(content)


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
