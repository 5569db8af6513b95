"""Paired comparison of two conditions on the same items.

Only items that one condition gets right and the other wrong tell them apart (McNemar 1947); under
the null hypothesis each of those is a coin toss, so the exact test is a binomial one. Shares have
Wilson's interval (Wilson 1927), which is honest at 0 and 1 where a bootstrap has no width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy.stats import binomtest

from factory.benchmark.item import Task
from factory.benchmark.outcome import Comparison, Outcome, Share, TaskResult

LEVEL = 0.95


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


def task_result(task: Task, outcomes: Mapping[str, Outcome], bases: Mapping[str, Sequence[str]]) -> TaskResult:
    """A task's outcomes by condition, each held against those of its ``bases`` (by condition) that took part."""
    compared = [
        outcome.model_copy(update={"comparisons": _comparisons(outcome, outcomes, bases[name])})
        for name, outcome in outcomes.items()
    ]
    return TaskResult(
        task=task.name,
        n_items=len(task.items),
        left_out=task.left_out,
        items_sha256=task.sha256,
        outcomes=tuple(compared),
    )


def _comparisons(outcome: Outcome, outcomes: Mapping[str, Outcome], bases: Sequence[str]) -> tuple[Comparison, ...]:
    known = [outcomes[name] for name in bases if name in outcomes]
    return tuple(compare(base.condition, _right(outcome), _right(base)) for base in known)


def _right(outcome: Outcome) -> list[bool]:
    return [bool(one) for one in outcome.right]


def _rounded(number: float) -> float:
    return round(float(number), 4)
