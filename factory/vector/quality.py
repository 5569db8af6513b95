"""How alike the style shows in every pair, as figures in a vector's metadata (docs/format.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from factory.frozen import Record

KEY = "quality"  # of the metadata


class Outlier(Record):
    """A pair that agrees little with the mean: the cosine between its difference and the vector."""

    pair_id: str
    cosine: float


class Quality(Record):
    """Figures of the pairs' differences, of values; norms and errors are those of each layer.

    ``reliability``: what the agreement of two halves of the pairs says about all of them. ``convergence``: the
    cosine of two halves, against how many pairs there were.
    """

    value_norms: tuple[float, ...] = ()
    key_norms: tuple[float, ...] = ()
    standard_errors: tuple[float, ...] = ()
    split_half_cosine: float = 0.0
    reliability: float = 0.0
    enough_pairs: bool = False
    convergence: tuple[tuple[int, float], ...] = ()
    mean_pair_cosine: float = 0.0
    pair_cosine_bins: tuple[int, ...] = ()
    outliers: tuple[Outlier, ...] = ()

    @classmethod
    def read(cls, metadata: Mapping[str, object]) -> Self | None:
        """The figures in a vector's ``metadata``; None where there are none, as of a sum of vectors.

        Raises:
            VectorError: they are damaged.
        """
        return cls.within(metadata, KEY, "make the vector anew from its pairs")
