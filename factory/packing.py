"""Packing: which segments share a forward pass, so that little is spent on padding.

Rows of one pass are padded to its longest, and every pass costs something of its own. The cheapest
way to cut a sorted level into passes is found exactly, by dynamic programming over its cuts.
This module knows lengths only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from factory.prefix import Segment

PASS_COST = 1 / 32  # what one more pass costs, as a share of a full one (measured on a CPU: 20 to 40 of 1,024 tokens)


def pack(level: Sequence[Segment], budget: int) -> Iterator[list[Segment]]:
    """Cut a level of segments into passes of at most ``budget`` tokens, padding counted.

    A segment longer than ``budget`` gets a pass of its own. Inner segments and leaves never share
    one, as different states of theirs are kept. Depends on the segments alone, not on their order.
    """
    ordered = sorted(level, key=lambda segment: (segment.text is None, len(segment.ids), segment.start, segment.ids))
    for _, alike in groupby(ordered, key=lambda segment: segment.text is None):
        segments = list(alike)
        cuts = cheapest_cuts([len(segment.ids) for segment in segments], budget)
        for start, stop in pairwise(cuts):
            yield segments[start:stop]


def cheapest_cuts(lengths: Sequence[int], budget: int) -> list[int]:
    """Where to cut ascending ``lengths``, ends included, such that padded tokens and passes cost least."""
    costs, starts = [0.0], [0]  # of the best way to pass the first n rows: its cost, and where its last pass starts
    for stop in range(1, len(lengths) + 1):
        longest = lengths[stop - 1]
        narrowest = max(0, stop - max(1, budget // longest))
        choices = [
            (costs[start] + longest * (stop - start) + budget * PASS_COST, start) for start in range(narrowest, stop)
        ]
        cost, start = min(choices)
        costs.append(cost)
        starts.append(start)
    cuts = [len(lengths)]
    while cuts[-1]:
        cuts.append(starts[cuts[-1]])
    return cuts[::-1]
