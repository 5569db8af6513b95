"""What teacher calls cost, and the purse of a run, which is never overdrawn.

A call is priced from its own usage (a price of summed tokens would meet the wrong tier). Before a
call its worst case is reserved in the broker's Redis, for all workers in one step; afterwards
what it really cost takes its place. Money is counted in whole nano-dollars. The replies in the
store are the truth; an empty purse is filled from the tallies that the workers keep there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from factory.counters import paid_key, purse_keys
from factory.errors import ConfigError, TeacherPaced, TeacherRefused
from factory.teacher.spec import TeacherSpec

KEPT = 7 * 86400  # s that Redis keeps what a meter counted
NANO = 1_000_000_000  # nano-dollars in a dollar
FILLING = 60  # s after which another worker may try to fill a purse
OVERHEAD = 32  # tokens that a chat template may add to a prompt
BYTES_A_TOKEN = 3.5  # of English text, on average

# KEYS: the purse, its reservations. ARGV: call, worst case, cap, seconds until a reservation is taken for spent.
# A reservation of a worker that died counts as spent: its call may have been answered and paid.
# Returns {verdict, spent}: 1 reserved, 0 wait for calls under way, -1 the cap is reached, -2 fill the purse first.
_RESERVE = """
local spent = redis.call('HGET', KEYS[1], 'spent')
if not spent then return {-2, 0} end
spent = tonumber(spent)
local now = tonumber(redis.call('TIME')[1])
local under_way = 0
local reserved = redis.call('HGETALL', KEYS[2])
for i = 1, #reserved, 2 do
  local amount, till = string.match(reserved[i + 1], '(%d+):(%d+)')
  if tonumber(till) < now or reserved[i] == ARGV[1] then
    redis.call('HDEL', KEYS[2], reserved[i])
    redis.call('HSET', KEYS[1], 'lost:' .. reserved[i], amount)
    redis.call('HINCRBY', KEYS[1], 'spent', amount)
    spent = spent + tonumber(amount)
  else
    under_way = under_way + tonumber(amount)
  end
end
local worst, cap = tonumber(ARGV[2]), tonumber(ARGV[3])
if spent + worst > cap then return {-1, spent} end
if spent + under_way + worst > cap then return {0, spent} end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f:%.0f', worst, now + tonumber(ARGV[4])))
return {1, spent}
"""

# KEYS as above. ARGV: call, what it cost.
_SETTLE = """
if redis.call('HEXISTS', KEYS[1], 'spent') == 0 then return 0 end  -- the store has it, and fills the purse
if redis.call('HDEL', KEYS[2], ARGV[1]) == 0 then
  local lost = redis.call('HGET', KEYS[1], 'lost:' .. ARGV[1])
  if lost then
    redis.call('HDEL', KEYS[1], 'lost:' .. ARGV[1])
    redis.call('HINCRBY', KEYS[1], 'spent', '-' .. lost)
  end
end
return redis.call('HINCRBY', KEYS[1], 'spent', ARGV[2])
"""


def price_of(spec: TeacherSpec, model: str, input_tokens: int, output_tokens: int) -> float | None:
    """What one call costs in USD; None where nobody knows.

    ``pricing`` of the configuration comes first, then zero for a server of one's own, then the
    prices of genai-prices for OpenAI. No network is used.
    """
    if spec.pricing is not None:
        return (input_tokens * spec.pricing["input"] + output_tokens * spec.pricing["output"]) / 1e6
    if spec.base_url is not None:
        return 0.0
    from genai_prices import Usage, calc_price  # 0.6 s, and not every worker needs it

    try:
        usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        return float(calc_price(usage, model_ref=model, provider_id="openai").total_price)
    except LookupError:
        return None


def price_source(spec: TeacherSpec) -> str:
    """Where prices come from, for a file's reader."""
    if spec.pricing is not None:
        return "pricing of the configuration"
    if spec.base_url is not None:
        return "a server of your own"
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"


def most_tokens(text: str) -> int:
    """More tokens than any tokenizer makes of ``text``: one a byte, and the template around it."""
    return len(text.encode()) + OVERHEAD


def likely_tokens(text: str) -> int:
    """About how many tokens ``text`` has."""
    return round(len(text.encode()) / BYTES_A_TOKEN) + 8


def worst_case(spec: TeacherSpec, model: str, prompt: str) -> float | None:
    """The most that one call with ``prompt`` can cost in USD; None where nobody knows."""
    return price_of(spec, model, most_tokens(prompt), spec.max_response_tokens)


def require_price(spec: TeacherSpec, max_cost_usd: float | None) -> None:
    """Refuse a budget that nobody can count.

    Raises:
        ConfigError: a budget is set, and a model's price is not known.
    """
    for model in filter(None, (spec.model, spec.judge_model)):
        if max_cost_usd is not None and price_of(spec, model, 1, 1) is None:
            raise ConfigError(
                f"max_cost_usd is set, but the price of {model!r} is not known: give it as "
                "pricing: {input: ..., output: ...} in USD a million tokens, or remove max_cost_usd"
            )


@dataclass(frozen=True)
class Purse:
    """The money of one run, shared by all workers. ``fill`` says what the store knows to be spent, in USD."""

    counters: redis.Redis
    run_id: str
    max_cost_usd: float
    fill: Callable[[], float]
    patience: float  # s after which a reservation whose worker is silent counts as spent

    @property
    def _keys(self) -> tuple[str, str]:
        return purse_keys(self.run_id)

    def reserve(self, call: str, worst_usd: float) -> None:
        """Set the worst case of a call aside.

        Raises:
            TeacherPaced: calls under way may leave enough: come back.
            TeacherRefused: the cap is reached (``budget_stopped``).
        """
        verdict, spent = self._reserve(call, worst_usd)
        if verdict == -2:
            self._fill()
            verdict, spent = self._reserve(call, worst_usd)
        if verdict == 0:
            raise TeacherPaced("the rest of the budget is set aside for calls under way", 2.0)
        if verdict < 0:
            raise TeacherRefused(
                f"budget_stopped: ${spent / NANO:.4f} of max_cost_usd ${self.max_cost_usd:g} are spent, and the next "
                f"call could cost ${worst_usd:.4f}. Raise max_cost_usd, then 'svf resume'",
                "budget_stopped",
            )

    def begin(self) -> None:
        """The run is new and has spent nothing: nobody needs to count that."""
        self.counters.hsetnx(self._keys[0], "spent", "0")

    def _fill(self) -> None:
        """Count what is spent, in one thread of the whole cluster.

        Raises:
            TeacherPaced: another counts; come back.
        """
        lock = f"{self._keys[0]}:filling"
        if not self.counters.set(lock, "1", nx=True, ex=FILLING):
            raise TeacherPaced("another worker counts what the run has spent", 1.0)
        try:
            if not self.counters.hexists(self._keys[0], "spent"):  # else another was done before we had the lock
                self.counters.hsetnx(self._keys[0], "spent", str(_nano(self.fill())))
        finally:
            self.counters.delete(lock)

    def _reserve(self, call: str, worst_usd: float) -> tuple[int, int]:
        amounts = (_nano(worst_usd), int(self.max_cost_usd * NANO), int(self.patience))
        answer: Any = self.counters.eval(_RESERVE, 2, *self._keys, call, *amounts)
        return int(answer[0]), int(answer[1])

    def settle(self, call: str, cost_usd: float) -> None:
        """Replace a call's reservation by what it cost; 0 for one that was not answered."""
        self.counters.eval(_SETTLE, 2, *self._keys, call, _nano(cost_usd))

    @property
    def spent_usd(self) -> float:
        """What is spent for sure, without the calls under way."""
        return float(self.counters.hget(self._keys[0], "spent") or 0) / NANO


@dataclass(frozen=True)
class Paid:
    """Calls that were answered, and what they cost."""

    calls: int
    usd: float


@dataclass(frozen=True)
class Meter:
    """What a run has paid by style, call by call, for those who watch it.

    The ledger's sums of finished batches are the truth; a Redis that forgets shows less for a while.
    """

    counters: redis.Redis
    run_id: str

    @property
    def _key(self) -> str:
        return paid_key(self.run_id)

    def count(self, style: str, cost_usd: float) -> None:
        """A call was answered."""
        with self.counters.pipeline() as pipeline:
            pipeline.hincrby(self._key, f"calls:{style}", 1)
            pipeline.hincrby(self._key, f"nano:{style}", _nano(cost_usd))
            pipeline.expire(self._key, KEPT)
            pipeline.execute()

    def read(self) -> dict[str, Paid]:
        """What is paid by style; nothing if Redis does not answer."""
        try:
            found: Any = self.counters.hgetall(self._key)
        except (redis.RedisError, OSError):
            return {}
        counts = {name.decode(): int(count) for name, count in found.items()}
        styles = (name.removeprefix("calls:") for name in counts if name.startswith("calls:"))
        return {style: Paid(counts[f"calls:{style}"], counts.get(f"nano:{style}", 0) / NANO) for style in styles}


def _nano(usd: float) -> int:
    """USD in nano-dollars, rounded up: rounding must not overdraw."""
    return -int(-usd * NANO // 1)
