"""The counters that a cluster shares in Redis: how they are opened, and the keys that several modules read."""

from __future__ import annotations

import re
from functools import lru_cache

import redis

REPAIRS = "svf:repairs"  # Redis hash: kind of repair -> count
LOCK = "svf:guard"  # who looks after the runs
SENDING = "svf:sending"  # and a run: someone sends its messages just now
TROUBLE = "svf:teacher"  # Redis hash: kind of trouble -> count


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
