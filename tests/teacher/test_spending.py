"""Prices, and the purse of a run: never overdrawn, whatever happens in whatever order."""

from __future__ import annotations

import uuid

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from factory.counters import open_counters
from factory.errors import ConfigError, TeacherPaced, TeacherRefused
from factory.teacher.spec import TeacherSpec
from factory.teacher.spending import NANO, Meter, Paid, Purse, most_tokens, price_of, require_price, worst_case

OPENAI = TeacherSpec(model="gpt-6-luna", requested_model="gpt-4", max_response_tokens=100)
LOCAL = OPENAI.model_copy(update={"base_url": "http://127.0.0.1:8080/v1"})
PRICED = LOCAL.model_copy(update={"pricing": {"input": 1.0, "output": 4.0}})
UNKNOWN = OPENAI.model_copy(update={"model": "gpt-of-tomorrow"})


def test_each_kind_of_endpoint_has_its_price():
    assert price_of(OPENAI, "gpt-6-luna", 1000, 500) == pytest.approx(0.00035)
    assert price_of(LOCAL, "anything", 1000, 500) == 0.0
    assert price_of(PRICED, "anything", 1_000_000, 1_000_000) == pytest.approx(5.0)
    assert price_of(UNKNOWN, "gpt-of-tomorrow", 1, 1) is None


def test_a_budget_needs_a_known_price():
    require_price(OPENAI, 1.0)
    require_price(LOCAL, 1.0)
    require_price(UNKNOWN, None)
    with pytest.raises(ConfigError, match=r"gpt-of-tomorrow.*pricing"):
        require_price(UNKNOWN, 1.0)
    with pytest.raises(ConfigError, match="gpt-of-tomorrow"):
        require_price(OPENAI.model_copy(update={"judge_model": "gpt-of-tomorrow"}), 1.0)


@given(st.text(max_size=400))
def test_the_worst_case_covers_every_tokenizer(text):
    assert most_tokens(text) > len(text.encode())
    worst = worst_case(PRICED, "anything", text)
    assert worst is not None
    assert worst >= (len(text.encode()) * 1.0 + 100 * 4.0) / 1e6


class Spending(RuleBasedStateMachine):
    """Calls of several workers in any order; some workers die. What was really paid is counted beside it."""

    broker = ""

    def __init__(self) -> None:
        super().__init__()
        self.cap = 1.0
        self.paid_before = 0.1
        counters = open_counters(self.broker)
        assert counters is not None
        self.purse = Purse(counters, uuid.uuid4().hex, self.cap, lambda: self.paid_before, patience=600)
        self.under_way: dict[str, float] = {}
        self.dead: dict[str, float] = {}
        self.paid = self.paid_before
        self.calls = 0

    @rule(worst=st.floats(0.001, 0.4), again=st.booleans())
    def begin(self, worst: float, again: bool) -> None:
        """Begin a call: a new one, or once more one whose worker died."""
        call = next(iter(self.dead)) if again and self.dead else f"call-{self.calls}"
        self.calls += 1
        try:
            self.purse.reserve(call, worst)
        except TeacherRefused as refused:
            if refused.reason != "budget_stopped":
                raise
            assert self.possible() - sum(self.under_way.values()) + worst > self.cap - 1e-6  # within one worst case
            return
        except TeacherPaced:
            assert self.under_way or self.dead
            return
        if call in self.dead:
            self.paid += self.dead.pop(call)  # nobody knows: it may have been paid
        self.under_way[call] = worst

    @precondition(lambda self: self.under_way)
    @rule(share=st.floats(0, 1))
    def answer(self, share: float) -> None:
        """The oldest call is answered, and cost at most its worst case."""
        call, worst = self.under_way.popitem()
        self.purse.settle(call, worst * share)
        self.paid += worst * share

    @precondition(lambda self: self.under_way)
    @rule()
    def die(self) -> None:
        """A worker dies in its call."""
        call, worst = self.under_way.popitem()
        self.dead[call] = worst

    @precondition(lambda self: self.under_way)
    @rule()
    def lose_the_answer(self) -> None:
        """The connection breaks after the request was sent."""
        call, worst = self.under_way.popitem()
        self.purse.settle(call, worst)
        self.paid += worst

    def possible(self) -> float:
        """The most that may have been paid so far."""
        return self.paid + sum(self.under_way.values()) + sum(self.dead.values())

    @invariant()
    def never_above_the_cap(self) -> None:
        """Even if every call under way and every lost one costs its worst case."""
        assert self.possible() <= self.cap + 1e-6


def test_the_cap_holds_under_any_interleaving(broker):
    Spending.broker = broker
    run_state_machine_as_test(Spending, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))


def test_a_meter_adds_up_calls_by_style_and_is_silent_without_its_redis(broker):
    counters = open_counters(broker)
    meter = Meter(counters, uuid.uuid4().hex)
    assert meter.read() == {}
    for style, cost in (("a", 0.1), ("b", 0.25), ("a", 0.2), ("b", 0.0)):
        meter.count(style, cost)
    assert meter.read() == {"a": Paid(2, pytest.approx(0.3)), "b": Paid(2, pytest.approx(0.25))}
    assert Meter(open_counters("redis://127.0.0.1:1/0"), "run").read() == {}


def purse_of(broker: str, cap: float, spent: float, patience: float = 600) -> Purse:
    counters = open_counters(broker)
    assert counters is not None
    return Purse(counters, uuid.uuid4().hex, cap, lambda: spent, patience)


def test_an_empty_redis_is_filled_from_the_store(broker):
    purse = purse_of(broker, 1.0, 0.95)
    with pytest.raises(TeacherRefused, match=r"\$0\.9500 of max_cost_usd \$1"):
        purse.reserve("call", 0.1)
    purse.reserve("cheaper call", 0.04)


def test_a_reservation_whose_worker_is_silent_counts_as_spent(broker):
    purse = purse_of(broker, 1.0, 0.0, patience=0)
    purse.reserve("call", 0.6)
    counters = purse.counters
    _, reserved = purse._keys
    counters.hset(reserved, "call", f"{int(0.6 * NANO)}:1")  # its time ran out in 1970
    with pytest.raises(TeacherRefused):
        purse.reserve("another", 0.5)
    purse.settle("call", 0.1)  # it was alive after all
    purse.reserve("another", 0.5)
    assert purse.spent_usd == pytest.approx(0.1)


def test_a_call_waits_while_others_may_leave_enough(broker):
    purse = purse_of(broker, 1.0, 0.0)
    purse.reserve("call", 0.6)
    with pytest.raises(TeacherPaced):
        purse.reserve("another", 0.6)
    purse.settle("call", 0.2)
    purse.reserve("another", 0.6)
