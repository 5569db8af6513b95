"""Segments are packed into the passes that cost least, whatever their order."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from factory.packing import PASS_COST, cheapest_cuts, pack
from factory.prefix import Segment

lengths_of_rows = st.lists(st.integers(1, 40), min_size=1, max_size=8).map(sorted)
budgets = st.integers(1, 120)


def cost_of(cuts: list[int], lengths: list[int], budget: int) -> float:
    return sum((stop - start) * lengths[stop - 1] + budget * PASS_COST for start, stop in pairwise(cuts))


def fits(cuts: list[int], lengths: list[int], budget: int) -> bool:
    return all(stop - start == 1 or (stop - start) * lengths[stop - 1] <= budget for start, stop in pairwise(cuts))


@given(lengths=lengths_of_rows, budget=budgets)
def test_no_other_cuts_that_fit_cost_less(lengths, budget):
    inner = range(1, len(lengths))
    every = [[0, *chosen, len(lengths)] for n in range(len(lengths)) for chosen in combinations(inner, n)]

    cuts = cheapest_cuts(lengths, budget)

    assert fits(cuts, lengths, budget)
    best = min(cost_of(other, lengths, budget) for other in every if fits(other, lengths, budget))
    assert abs(cost_of(cuts, lengths, budget) - best) < 1e-9


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), budget=budgets, draw=st.randoms())
def test_every_segment_is_in_one_pass_and_the_order_given_does_not_matter(lengths, budget, draw):
    level = [Segment([n] * length, 0, text=None if n % 3 else n) for n, length in enumerate(lengths)]
    shuffled = draw.sample(level, len(level))

    passes = list(pack(level, budget))

    assert sorted(id(segment) for part in passes for segment in part) == sorted(map(id, level))
    assert [[s.ids for s in part] for part in passes] == [[s.ids for s in part] for part in pack(shuffled, budget)]
    for part in passes:
        assert len({segment.text is None for segment in part}) == 1
