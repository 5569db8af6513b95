"""Paired comparison of two conditions on the same items.

Only items that one condition gets right and the other wrong tell them apart (McNemar 1947); under
the null hypothesis each of those is a coin toss, so the exact test is a binomial one. Shares have
Wilson's interval (Wilson 1927), which is honest at 0 and 1 where a bootstrap has no width.
"""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest

from factory.frozen import Frozen

LEVEL = 0.95


class Share(Frozen):
    """``count`` of ``n`` items, as a share with its 95 % interval."""

    count: int
    n: int
    share: float
    low: float
    high: float


class Comparison(Frozen):
    """A condition held against ``base`` on the same items.

    ``won``: items right only under the condition, ``lost``: only under the base. ``gain`` is the
    difference of their shares with its 95 % interval, ``p`` McNemar's exact two-sided p-value.
    """

    base: str
    won: int
    lost: int
    gain: float
    low: float
    high: float
    p: float


def share_of(right: Sequence[bool]) -> Share:
    """The share of true values with Wilson's 95 % interval.

    Raises:
        ValueError: there are none.
    """
    if not right:
        raise ValueError("a share needs at least one item")
    count, n = sum(right), len(right)
    interval = binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return Share(count=count, n=n, share=_rounded(count / n), low=_rounded(interval.low), high=_rounded(interval.high))


def compare(base: str, after: Sequence[bool], before: Sequence[bool]) -> Comparison:
    """``after`` against ``before``, item by item; ``base`` names the latter.

    The interval is that of the discordant items' share (Wilson), turned into a difference of shares:
    exact where McNemar's test is, and never wider than the discordant items allow.

    Raises:
        ValueError: the two are not of the same items.
    """
    won = sum(a and not b for a, b in zip(after, before, strict=True))
    lost = sum(b and not a for a, b in zip(after, before, strict=True))
    n, discordant = len(after), won + lost
    if not discordant:
        bound = share_of([False] * n).high  # no item told them apart: fewer than so many may do
        return Comparison(base=base, won=0, lost=0, gain=0.0, low=-bound, high=bound, p=1.0)
    test = binomtest(won, discordant)
    interval = test.proportion_ci(LEVEL, method="wilson")
    low, high = ((2 * bound - 1) * discordant / n for bound in (interval.low, interval.high))
    return Comparison(
        base=base,
        won=won,
        lost=lost,
        gain=_rounded((won - lost) / n),
        low=_rounded(low),
        high=_rounded(high),
        p=float(f"{test.pvalue:.3g}"),
    )


def _rounded(number: float) -> float:
    return round(float(number), 4)
