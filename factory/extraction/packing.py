"""Packing: which segments share a forward pass.

The segments of one pass stand behind each other in a single row, so nothing is spent on padding. As
no pass should be left with a few tokens, all get about the same number. This module knows lengths only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from factory.extraction.prefix import Segment


def pack(segments: Sequence[Segment], budget: int) -> list[list[Segment]]:
    """Cut ``segments`` into as few passes as ``budget`` tokens per pass allow, the longest as short as can be.

    Keeps their order, in which parents come first. A segment longer than ``budget`` gets a pass of its own.
    """
    fewest = len(_fill(segments, budget))
    limits = range(1, budget + 1)
    smallest = bisect_left(limits, True, key=lambda limit: len(_fill(segments, limit)) <= fewest)
    return _fill(segments, limits[smallest])


def _fill(segments: Sequence[Segment], limit: int) -> list[list[Segment]]:
    """Passes of at most ``limit`` tokens, each filled before the next is begun."""
    passes: list[list[Segment]] = []
    room = 0
    for segment in segments:
        if not passes or len(segment.ids) > room:
            passes.append([])
            room = limit
        passes[-1].append(segment)
        room -= len(segment.ids)
    return passes
