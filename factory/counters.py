"""The counters that a cluster shares in Redis: how they are opened, and every key that is used there."""

from __future__ import annotations

import re
from functools import lru_cache

import redis

from factory.files import hash_of

REPAIRS = "svf:repairs"  # Redis hash: kind of repair -> count
LOCK = "svf:guard"  # who looks after the runs
TROUBLE = "svf:teacher"  # Redis hash: kind of trouble -> count


def limits_key(endpoint: str) -> str:
    """Where the calls and tokens per minute of an endpoint are counted: all runs share them."""
    return f"svf:limits:{hash_of(endpoint)[:16]}"


def outcomes_key(run_id: str) -> str:
    """A Redis list: how the last calls of a run ended, 1 for a failure."""
    return f"svf:outcomes:{run_id}"


def stumbled_key(run_id: str) -> str:
    """A Redis set: the calls of a run that met an error and have no answer yet."""
    return f"svf:stumbled:{run_id}"


def paid_key(run_id: str) -> str:
    """A Redis hash: calls and money of a run, by style, for those who watch it."""
    return f"svf:paid:{run_id}"


def purse_keys(run_id: str) -> tuple[str, str]:
    """What a run has spent, and what its calls under way have reserved; in braces: one slot of a Redis cluster."""
    return f"{{svf:spent:{run_id}}}", f"{{svf:spent:{run_id}}}:reserved"


def strays_key(run_id: str) -> str:
    """A Redis hash: hosts whose workers do not find a run in their store, each with that store."""
    return f"svf:strays:{run_id}"


def sending_key(run_id: str) -> str:
    """Says that someone is sending a run's messages just now."""
    return f"svf:sending:{run_id}"


@lru_cache(maxsize=8)
def open_counters(broker_url: str, patience: float = 30) -> redis.Redis | None:
    """The broker's Redis, or None where the broker is of another kind and limits cannot be shared.

    ``patience``: seconds that an answer of it may take.
    """
    if not broker_url.startswith(("redis://", "rediss://", "unix://")):
        return None
    # Celery writes CERT_REQUIRED where redis-py reads required.
    url = re.sub(r"ssl_cert_reqs=(?:CERT_)?(\w+)", lambda found: f"ssl_cert_reqs={found[1].lower()}", broker_url)
    return redis.Redis.from_url(url, socket_timeout=patience, health_check_interval=25)
