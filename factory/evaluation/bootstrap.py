"""Bootstrap intervals: how far a mean over questions could be off by the draw of questions.

Percentile bootstrap (Efron, 1979) with a fixed seed: the same numbers give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
