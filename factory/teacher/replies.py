"""Replies as the store keeps them: each under the name of its request, good or bad, with what it cost and who paid."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, ValidationError

from factory.errors import StoreError
from factory.frozen import Record, first_fault
from factory.store import Store

NO_ANSWER = "not_json"  # what earlier versions kept where no completion came: asked again


@dataclass(frozen=True)
class Payer:
    """For which batch a call is made: so that a run knows what it paid, and what it found."""

    run: str
    style: str
    batch: int


class KeptReply(Record):
    """What the teacher answered to one request.

    ``bad`` says why the answer cannot be used, or is None. ``usage``: tokens read (``input``) and written
    (``output``), or nothing. ``left_out``: parameters of the request that the server refused.
    """

    bad: str | None
    text: str
    model: str = ""
    finish_reason: str = ""
    usage: dict[str, int] = Field(default_factory=dict)
    request_id: str | None = None
    paid_by: Payer
    cost_usd: float | None = None
    left_out: tuple[str, ...] = ()


def stored_reply(store: Store, key: str) -> KeptReply | None:
    """What the teacher answered to a request, if it was ever asked.

    Raises:
        StoreError: the reply is damaged.
    """
    content = store.read_json(reply_file(key))
    if content is None:
        return None
    try:
        reply = KeptReply.model_validate(content)
    except ValidationError as error:
        raise StoreError(f"{store.path(reply_file(key))} is no reply: {first_fault(error)}. Delete it") from None
    return None if reply.bad == NO_ANSWER else reply


def keep_reply(store: Store, key: str, reply: KeptReply) -> KeptReply | None:
    """Keep ``reply`` if the request has none yet; returns the one that was there before, which stays."""
    if store.create_json(reply_file(key), reply.to_json()):
        return None
    known = stored_reply(store, key)
    if known is None:
        store.write_json(reply_file(key), reply.to_json())
    return known


def reply_file(key: str) -> str:
    """The store key of a request's reply."""
    return f"replies/{key}.json"
