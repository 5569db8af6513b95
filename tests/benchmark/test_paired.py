"""Shares with Wilson's interval, and McNemar's exact test, against what they are defined as."""

from math import comb, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.benchmark.paired import compare, share_of

Z = 1.959963984540054


def naive_wilson(count, n):
    p = count / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def naive_mcnemar(won, lost):
    n, least = won + lost, min(won, lost)
    tail = sum(comb(n, k) for k in range(least + 1)) / 2**n
    return min(1.0, 2 * tail)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_share_has_wilsons_interval(right):
    share = share_of(right)
    low, high = naive_wilson(sum(right), len(right))
    assert (share.low, share.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_a_share_of_nothing_right_does_not_claim_certainty():
    assert share_of([False] * 30).high == pytest.approx(0.1135, abs=1e-3)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_p_value_is_that_of_mcnemars_exact_test(pairs):
    after, before = [a for a, _ in pairs], [b for _, b in pairs]
    found = compare("base", after, before)
    assert found.won == sum(a and not b for a, b in pairs)
    assert found.p == pytest.approx(naive_mcnemar(found.won, found.lost), rel=1e-2)
    assert found.low - 1e-4 <= found.gain <= found.high + 1e-4
    assert found.gain == pytest.approx((sum(after) - sum(before)) / len(pairs), abs=1e-4)


def test_a_clear_win_is_significant_and_its_interval_excludes_zero():
    found = compare("unsteered", [True] * 20 + [False] * 5, [False] * 12 + [True] * 8 + [False] * 5)
    assert found.p < 0.001
    assert found.low > 0


def test_conditions_on_different_items_are_not_compared():
    with pytest.raises(ValueError, match="shorter"):
        compare("base", [True, False], [True])
