"""Segments are packed into few passes of about the same length, and keep their order."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from factory.extraction.packing import pack
from factory.extraction.prefix import Segment

lengths_of_segments = st.lists(st.integers(1, 40), min_size=1, max_size=8)
budgets = st.integers(1, 120)


def segments_of(lengths: list[int]) -> list[Segment]:
    return [Segment([n] * length, 0, text=n) for n, length in enumerate(lengths)]


def every_cut(lengths: list[int], budget: int) -> list[list[int]]:
    """The lengths of passes, for each way to cut that keeps to the budget: no pass above it holds two segments."""
    ways = []
    for chosen in (inner for n in range(len(lengths)) for inner in combinations(range(1, len(lengths)), n)):
        parts = [lengths[start:stop] for start, stop in pairwise([0, *chosen, len(lengths)])]
        if all(sum(part) <= budget or len(part) == 1 for part in parts):
            ways.append([sum(part) for part in parts])
    return ways


@given(lengths=lengths_of_segments, budget=budgets)
def test_no_fewer_passes_would_do_and_no_other_cut_has_a_shorter_longest_one(lengths, budget):
    passes = [sum(len(segment.ids) for segment in part) for part in pack(segments_of(lengths), budget)]

    ways = every_cut(lengths, budget)
    assert passes in ways
    assert len(passes) == min(map(len, ways))
    assert max(passes) == min(max(way) for way in ways if len(way) == len(passes))


@given(lengths=lengths_of_segments, budget=budgets)
def test_every_segment_is_in_one_pass_and_their_order_stays(lengths, budget):
    segments = segments_of(lengths)
    assert [segment for part in pack(segments, budget) for segment in part] == segments


def test_nothing_needs_no_pass():
    assert pack([], 100) == []
