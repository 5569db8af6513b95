"""What lies in the broker: how deep each queue is, what workers have in hand, and under which ids.

Reads the keys that kombu writes to Redis. This module needs no Celery.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import redis

from factory.queues import QUEUES

PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")  # suffixes of kombu's keys, 0 first
UNACKED, UNACKED_INDEX = "unacked", "unacked_index"
PAGE = 1000  # messages per request


@dataclass(frozen=True)
class QueueDepth:
    """One queue: messages that wait, and when the oldest of them was sent (Unix time)."""

    name: str
    waiting: int
    oldest_sent_at: float | None


def connect(url: str) -> redis.Redis:
    """A client of the broker that gives up after seconds, not minutes."""
    return redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=5)


def queue_names(client: Any) -> list[str]:
    """Queues that exist by default, and those of single models that hold messages."""
    found = {key.decode().split("\x06", maxsplit=1)[0] for key in client.scan_iter(match="gpu.*", _type="list")}
    return [*QUEUES, *sorted(found)]


def queue_depth(client: Any, queue: str) -> QueueDepth:
    """How deep a queue is."""
    keys = [queue + suffix for suffix in PRIORITIES]
    waiting = sum(int(client.llen(key)) for key in keys)
    oldest = [sent for sent in (_sent_at(client.lindex(key, -1)) for key in keys) if sent is not None]
    return QueueDepth(queue, waiting, min(oldest, default=None))


def _sent_at(raw: bytes | None) -> float | None:
    if raw is None:
        return None
    sent = json.loads(raw).get("headers", {}).get("sent_at")
    return float(sent) if sent else None


class Delivery(TypedDict):
    """Whether a message comes again."""

    redelivered: NotRequired[bool]


class Properties(TypedDict):
    """What kombu says of a message."""

    delivery_info: Delivery


class Headers(TypedDict):
    """What Celery says of a task, and when it was sent."""

    id: str
    sent_at: NotRequired[float]
    redelivered: NotRequired[bool]


class QueuedMessage(TypedDict):
    """A task's message as it lies in the broker: of it, what is read or written here. All else goes along."""

    headers: Headers
    properties: Properties


def messages_in_hand(client: Any) -> Iterator[tuple[bytes, QueuedMessage, str]]:
    """Messages that workers took and have not done yet: tag, message, routing key."""
    for tag, raw in client.hscan_iter(UNACKED, count=PAGE):
        message, _, routing_key = json.loads(raw)
        yield tag, message, routing_key


def ids_in_flight(client: Any, queues: Sequence[str]) -> set[str]:
    """Task ids of all messages that wait or are in hand."""
    ids: set[str] = set()
    for queue in queues:  # queues before hands: a message moves in this direction
        for suffix in PRIORITIES:
            ids |= _ids_waiting(client, queue + suffix)
    return ids | {message["headers"]["id"] for _, message, _ in messages_in_hand(client)}


def _ids_waiting(client: Any, key: str) -> set[str]:
    ids: set[str] = set()
    stop = int(client.llen(key))
    while stop > 0:  # from the end, where workers take: new messages at the front shift nothing away
        page = client.lrange(key, max(0, stop - PAGE), stop - 1)
        ids |= {json.loads(raw)["headers"]["id"] for raw in page}
        stop -= PAGE
    return ids


def give_back(client: Any, queues: Sequence[str]) -> int:
    """Put what workers of ``queues`` had in hand back into the queues.

    A message does not tell who took it: what living workers have in hand comes a second time, and costs time alone.
    """
    moved = 0
    for tag, message, routing_key in list(messages_in_hand(client)):
        if routing_key not in queues:
            continue
        message["headers"]["redelivered"] = True
        message["properties"]["delivery_info"]["redelivered"] = True
        with client.pipeline() as pipe:
            pipe.rpush(routing_key, json.dumps(message))
            pipe.hdel(UNACKED, tag)
            pipe.zrem(UNACKED_INDEX, tag)
            pipe.execute()
        moved += 1
    return moved
