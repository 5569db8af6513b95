"""Agreement of judge and markers: Cohen's kappa, against scikit-learn's and by hand."""

from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from factory.evaluation.agreement import agreement_of, cohens_kappa
from factory.evaluation.figures import AnswerFigures, JudgedAnswers
from factory.evaluation.parts import Answered


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_kappa_is_what_scikit_learn_says(said):
    counts = [said.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = cohen_kappa_score(*map(list, zip(*said, strict=True)))
    found = cohens_kappa(*counts)
    assert math.isnan(expected) if found is None else found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [((20, 5, 10, 15), 0.4), ((10, 0, 0, 10), 1.0), ((0, 10, 10, 0), -1.0), ((5, 5, 5, 5), 0.0), ((9, 0, 0, 0), None)],
)
def test_kappa_of_tables_that_can_be_counted_by_hand(counts, kappa):
    assert cohens_kappa(*counts) == kappa


def state(in_style, scores):
    n = len(in_style)
    figures = AnswerFigures(
        n=n, share=0, interval=(0, 1), markers=0, words=1, distinct_4grams=1, loops=0, in_style=in_style, shown=in_style
    )
    judged = JudgedAnswers(model="judge", styles=scores) if scores else None
    return Answered(figures=figures, judged=judged, answers="answers/0.json")


def test_answers_of_all_states_count_that_have_a_score_and_no_others():
    found = agreement_of([state((1, 1, 0, 0), (90, 60, 59, None)), state((1, 0), (0, 100)), state((1, 1), ())])
    assert (found.n, found.both, found.judge_only, found.markers_only, found.neither) == (5, 2, 1, 1, 1)
    assert found.kappa == pytest.approx(cohen_kappa_score([1, 1, 0, 0, 1], [1, 1, 0, 1, 0]), abs=1e-4)


def test_without_a_judge_there_is_nothing_to_agree():
    assert agreement_of([state((1, 0), ())]) is None
