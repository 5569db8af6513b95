"""Workers that look for a run in another store: each says so, and who watches the run is told."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from factory.counters import open_counters, strays_key
from factory.store import Store

REMEMBERED = 600  # s that a worker's complaint is kept


def place_of(store: Store) -> str:
    """Where a store is, in full: a folder's path or the URL."""
    return str(store.root) if store.is_local else store.url


def complain(broker_url: str, run: str, store: Store) -> str:
    """Tell those who watch ``run`` that this worker's store does not have it; returns the words."""
    place = place_of(store)
    counters = open_counters(broker_url)
    if counters:
        with suppress(RedisError):
            counters.hset(strays_key(run), socket.gethostname(), place)
            counters.expire(strays_key(run), REMEMBERED)
    return f"run {run} is not in this worker's store {place}: set FACTORY_STORE to the store of 'svf enqueue'"


def read_strays(broker_url: str, run: str, patience: float) -> dict[str, str]:
    """Workers that do not find ``run``, by host, each with its store; none where the broker does not tell."""
    counters: Any = open_counters(broker_url, patience)
    try:
        found = counters.hgetall(strays_key(run)) if counters else {}
    except RedisError:
        return {}
    return {host.decode(): place.decode() for host, place in found.items()}
