"""Intervals: how far a mean over questions could be off by the draw of questions.

A share has Wilson's interval (Wilson, 1927), which keeps its width where all or none were right. Other
means have a percentile bootstrap (Efron, 1979) with a fixed seed: the same numbers give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 2000
LEVEL = 0.95
SEED = 20240


def bootstrap_interval(
    scores: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """The ``level`` interval of the mean of ``scores``; for a gain, give paired differences."""
    numbers = np.asarray(scores, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(numbers), size=(resamples, len(numbers)))
    means = numbers[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return round(float(low), 4), round(float(high), 4)


def share_interval(count: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's ``level`` interval of the share ``count`` of ``n``."""
    interval = binomtest(count, n).proportion_ci(level, method="wilson")
    return round(float(interval.low), 4), round(float(interval.high), 4)


def gain_interval(won: int, lost: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """The ``level`` interval of a gain in a share on ``n`` paired questions: ``won`` by steering, ``lost`` by it.

    Only these tell the two apart (McNemar, 1947). The interval is Wilson's of their split, as a
    difference of shares. Where none does, as many may as Wilson allows.
    """
    if not won + lost:
        bound = share_interval(0, n, level=level)[1]
        return -bound, bound
    low, high = (2 * bound - 1 for bound in share_interval(won, won + lost, level=level))
    return round(low * (won + lost) / n, 4), round(high * (won + lost) / n, 4)
