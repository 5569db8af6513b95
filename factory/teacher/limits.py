"""Limits on teacher calls for the whole cluster, counted in the broker's Redis.

Requests and tokens per minute, and a pause that a server asked for (Retry-After) hold for every
worker on the same endpoint and model: one hash in Redis says when the next call may start. A call
*reserves* its moment with one script and sleeps until then once; a wait longer than
:data:`LONGEST_SLEEP` reserves nothing and frees the worker's slot instead.

Why a script of our own: of the kept libraries none takes requests and tokens in one
all-or-nothing step, and none can push everybody's next start away (docs/teacher.md). Time is
Redis' own, so the clocks of the workers do not matter.

Beside the limits: the outcomes of the last calls, which tell an outage from bad luck.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from factory.counters import limits_key, outcomes_key, stumbled_key
from factory.errors import TeacherPaced

LONGEST_SLEEP = 20.0  # s that a call waits in its thread; beyond it the task comes back later
MARGIN = 0.98  # of the allowance is used: a delay on the way must not push a call into the server's next minute
WINDOW = 20  # calls that are looked back on
FAILING = 0.5  # of them: then the run pauses

# The next start of each kind is kept, not a count: GCRA, a leaky bucket without a loop.
# KEYS[1] the endpoint's hash. ARGV: seconds per request, seconds this call's tokens take, longest wait in s.
# Returns the wait in microseconds; above the longest wait nothing is reserved.
_RESERVE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local known = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'frozen')
local start = now
for i = 1, 3 do start = math.max(start, tonumber(known[i] or 0)) end
if start - now > tonumber(ARGV[3]) * 1000000 then return start - now end
redis.call('HSET', KEYS[1],
  'requests', string.format('%.0f', start + ARGV[1] * 1000000),
  'tokens', string.format('%.0f', start + ARGV[2] * 1000000))
redis.call('EXPIRE', KEYS[1], 86400)
return start - now
"""

# A freeze only ever moves later. ARGV: seconds from now.
_FREEZE = """
local t = redis.call('TIME')
local till = t[1] * 1000000 + t[2] + ARGV[1] * 1000000
if till > tonumber(redis.call('HGET', KEYS[1], 'frozen') or 0) then
  redis.call('HSET', KEYS[1], 'frozen', string.format('%.0f', till))
  redis.call('EXPIRE', KEYS[1], 86400)
end
return 1
"""

# Microseconds until a freeze ends, 0 without one.
_FROZEN = """
local t = redis.call('TIME')
local left = tonumber(redis.call('HGET', KEYS[1], 'frozen') or 0) - (t[1] * 1000000 + t[2])
return math.max(0, left)
"""

# What a call reserved and did not use comes back. ARGV: seconds.
_REFUND = """
local tokens = redis.call('HGET', KEYS[1], 'tokens')
if tokens then redis.call('HSET', KEYS[1], 'tokens', string.format('%.0f', tokens - ARGV[1] * 1000000)) end
return 1
"""


@dataclass(frozen=True)
class Limits:
    """What one endpoint and model allow, for all workers that share ``counters``.

    ``requests`` and ``tokens`` are per minute; None: no limit, but a server's Retry-After still
    stops everybody.
    """

    counters: redis.Redis
    endpoint: str
    requests: float | None = None
    tokens: float | None = None

    @property
    def _key(self) -> str:
        return limits_key(self.endpoint)

    def await_turn(self, tokens: int) -> None:
        """Sleep until a call of ``tokens`` may start.

        Raises:
            TeacherPaced: that is too far away to hold a thread; says when to come back.
        """
        left = LONGEST_SLEEP
        wait = self.reserve(tokens, left)
        while wait > 0:
            if wait > left:
                raise TeacherPaced(f"the limits allow the next call in {wait:.0f} s", wait)
            time.sleep(wait)
            left -= wait
            # Somebody may have been told to stop while we slept: then our moment is void.
            wait = self.reserve(tokens, left) if self._run(_FROZEN) else 0.0

    def reserve(self, tokens: int, longest: float = LONGEST_SLEEP) -> float:
        """Take the next free moment; returns the seconds until it. One beyond ``longest`` is not taken."""
        request = 60 / (self.requests * MARGIN) if self.requests else 0.0
        weight = 60 * tokens / (self.tokens * MARGIN) if self.tokens else 0.0
        return self._run(_RESERVE, request, weight, longest) / 1e6

    def refund(self, tokens: int) -> None:
        """Give back tokens that were reserved and not used."""
        if self.tokens and tokens > 0:
            self._run(_REFUND, 60 * tokens / (self.tokens * MARGIN))

    def freeze(self, seconds: float) -> None:
        """Nobody starts a call for ``seconds``."""
        self._run(_FREEZE, seconds)

    def tighten(self, headers: Mapping[str, str], tokens: int) -> None:
        """Obey what the server says is left: wait until another call of ``tokens`` fits."""
        waits = [wait_for_rest(headers, "requests", 1), wait_for_rest(headers, "tokens", tokens)]
        if max(waits) > 0:
            self.freeze(max(waits))

    def _run(self, script: str, *arguments: float) -> float:
        return float(self.counters.eval(script, 1, self._key, *arguments))


class Pace:
    """The time between calls of a process that has nobody to share limits with. Any number of threads."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._next = 0.0
        self._lock = threading.Lock()

    def await_turn(self) -> None:
        """Sleep until the next call may start."""
        if not self.seconds:
            return
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + self.seconds
        time.sleep(max(0.0, start - time.monotonic()))


def wait_for_rest(headers: Mapping[str, str], kind: str, needed: int) -> float:
    """Seconds until ``needed`` of a kind are left, from a server's ``x-ratelimit-*`` headers.

    The server says how much it allows, how much is left, and when all will be there again; it
    refills evenly.
    """
    try:
        allowed = float(headers[f"x-ratelimit-limit-{kind}"])
        left = float(headers[f"x-ratelimit-remaining-{kind}"])
    except (KeyError, ValueError):
        return 0.0
    reset = parse_duration(headers.get(f"x-ratelimit-reset-{kind}", ""))
    if left >= needed or left >= allowed:
        return 0.0
    return min(reset, reset * (min(needed, allowed) - left) / (allowed - left))


def parse_duration(text: str) -> float:
    """Seconds in ``20ms``, ``1s`` or ``6m0s``; 0 for anything else."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    return float(sum(float(number) * units[unit] for number, unit in parts))


@dataclass(frozen=True)
class Outcomes:
    """How a run's last calls ended. One stumble of a call is bad luck; a second is a failure."""

    counters: redis.Redis
    run_id: str

    def succeeded(self, request_key: str) -> None:
        """A call was answered."""
        self.counters.srem(self._stumbled, request_key)
        self._note(0)

    def stumbled(self, request_key: str) -> None:
        """A call got an error that is worth a retry."""
        if not self.counters.sadd(self._stumbled, request_key):
            self._note(1)
        self.counters.expire(self._stumbled, 86400)

    def failed(self) -> None:
        """A call got an answer that no retry mends."""
        self._note(1)

    def are_failing(self) -> bool:
        """Whether half of the last calls failed."""
        last: Any = self.counters.lrange(self._last, 0, WINDOW - 1)
        return len(last) == WINDOW and sum(map(int, last)) >= FAILING * WINDOW

    def forget(self) -> None:
        """Look back on nothing: somebody says that it is mended."""
        self.counters.delete(self._last, self._stumbled)

    def _note(self, failure: int) -> None:
        with self.counters.pipeline() as pipeline:
            pipeline.lpush(self._last, failure)
            pipeline.ltrim(self._last, 0, WINDOW - 1)
            pipeline.expire(self._last, 86400)
            pipeline.execute()

    @property
    def _last(self) -> str:
        return outcomes_key(self.run_id)

    @property
    def _stumbled(self) -> str:
        return stumbled_key(self.run_id)
