"""Limits on teacher calls, against a real Valkey."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from factory.counters import open_counters
from factory.errors import TeacherPaced
from factory.teacher.limits import (
    LONGEST_SLEEP,
    MARGIN,
    WINDOW,
    Limits,
    Outcomes,
    Pace,
    parse_duration,
    wait_for_rest,
)


@pytest.fixture
def counters(broker) -> redis.Redis:
    """The Redis that workers share."""
    found = open_counters(broker)
    assert found is not None
    return found


def fresh(counters, **limits) -> Limits:
    """Limits of an endpoint that nobody has called."""
    return Limits(counters, uuid.uuid4().hex, **limits)


def test_calls_are_spaced_by_the_minute_s_allowance_and_a_margin(counters):
    limits = fresh(counters, requests=60)
    waits = [limits.reserve(0) for _ in range(5)]
    assert waits == pytest.approx([n / MARGIN for n in range(5)], abs=0.5)
    assert waits == sorted(waits)


def test_any_number_of_workers_gets_no_more_than_the_allowance(counters):
    limits = fresh(counters, requests=600)  # one each 0.1 s
    granted: list[float] = []

    def worker() -> None:
        mine = Limits(counters, limits.endpoint, requests=600)
        granted.extend(mine.reserve(0) for _ in range(20))

    threads = [threading.Thread(target=worker) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The last of 160 moments lies 159 intervals after the first, less the time that asking took.
    assert len(granted) == 160
    assert 159 * 0.1 / MARGIN - 10 < max(granted) <= 159 * 0.1 / MARGIN


def test_tokens_and_requests_are_one_reservation(counters):
    limits = fresh(counters, requests=6000, tokens=6000)
    assert limits.reserve(1000) == 0
    assert limits.reserve(1) == pytest.approx(10 / MARGIN, abs=1)  # 1000 of 6000 a minute are 10 s


def test_unused_tokens_come_back(counters):
    limits = fresh(counters, tokens=6000)
    limits.reserve(1000)
    limits.refund(900)
    assert limits.reserve(1) == pytest.approx(1 / MARGIN, abs=0.5)


def test_a_wait_too_long_for_a_thread_reserves_nothing_and_frees_the_slot(counters):
    limits = fresh(counters, tokens=60)
    assert limits.reserve(100) == 0
    for _ in range(3):
        with pytest.raises(TeacherPaced) as paced:
            limits.await_turn(10)
        assert LONGEST_SLEEP < paced.value.retry_after <= 100 / MARGIN


def test_a_retry_after_is_obeyed_by_every_worker(counters):
    mine = fresh(counters)
    other = Limits(counters, mine.endpoint, requests=600)
    mine.freeze(30)
    mine.freeze(1)  # a shorter wish changes nothing
    for limits in (mine, other):
        with pytest.raises(TeacherPaced) as paced:
            limits.await_turn(1)
        assert 20 < paced.value.retry_after <= 30


def test_who_sleeps_when_a_freeze_comes_starts_only_after_it(counters):
    limits = fresh(counters, requests=120)
    limits.reserve(0)
    outcome: list[object] = []

    def sleeper() -> None:
        try:
            limits.await_turn(0)  # in half a second
            outcome.append("started")
        except TeacherPaced as paced:
            outcome.append(paced.retry_after)

    thread = threading.Thread(target=sleeper)
    thread.start()
    limits.freeze(60)
    thread.join()
    assert outcome != ["started"]


def test_an_endpoint_without_limits_never_waits(counters):
    limits = fresh(counters)
    assert [limits.reserve(10**6) for _ in range(100)] == [0.0] * 100


def test_what_a_server_says_is_left_tightens_the_limits(counters):
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    limits = fresh(counters)
    limits.tighten(headers, 100)
    assert 0 < limits.reserve(100) <= 1.0  # 60 in 60 s: the next one in a second


@given(allowed=st.integers(1, 10**6), left=st.integers(0, 10**6), need=st.integers(1, 10**5), reset=st.floats(0, 3600))
def test_a_server_s_headers_never_ask_to_wait_longer_than_until_all_is_there_again(allowed, left, need, reset):
    headers = {
        "x-ratelimit-limit-tokens": str(allowed),
        "x-ratelimit-remaining-tokens": str(min(left, allowed)),
        "x-ratelimit-reset-tokens": f"{reset:.3f}s",
    }
    assert 0 <= wait_for_rest(headers, "tokens", need) <= reset + 0.001


@pytest.mark.parametrize(("text", "seconds"), [("20ms", 0.02), ("1s", 1), ("6m0s", 360), ("1h2m3.5s", 3723.5), ("", 0)])
def test_durations_are_read_as_openai_writes_them(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


def test_the_run_is_failing_when_half_of_the_last_calls_failed_twice(counters):
    outcomes = Outcomes(counters, uuid.uuid4().hex)
    for call in range(WINDOW):
        outcomes.stumbled(f"call {call}")  # once is bad luck
    assert not outcomes.are_failing()
    for call in range(WINDOW // 2):
        outcomes.succeeded(f"call {call}")
        outcomes.stumbled(f"call {WINDOW - 1 - call}")
    assert outcomes.are_failing()
    outcomes.forget()
    assert not outcomes.are_failing()


def test_a_process_of_its_own_keeps_a_pace_between_calls():
    pace, started = Pace(0.05), []

    def call() -> None:
        pace.await_turn()
        started.append(time.monotonic())

    threads = [threading.Thread(target=call) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(started) - min(started) >= 4 * 0.05 - 0.01
