"""On-policy targets: the model's own answers, kept where they are in the style and do not loop."""

from __future__ import annotations

import re

import pytest

from factory import Learning, build_vector, learn_vector, load_style
from factory.learning.targets import GROUP, on_policy
from factory.pairs.fluency import is_looping


@pytest.fixture(scope="module")
def pairs(starter_pairs):
    return starter_pairs[: GROUP + 2]


def test_own_answers_are_taken_where_they_are_in_the_style_and_do_not_loop(pairs, target):
    # Given a style whose marker some of the tiny model's answers have, and some have not
    style = load_style("step_by_step_reasoning").model_copy(update={"markers": ("a",), "min_markers": 3})
    own = on_policy(pairs, target, style)
    changed = [new for new, old in zip(own, pairs, strict=True) if new != old]
    assert changed
    assert all(style.is_shown_in(pair.positive_response) for pair in changed)
    assert not any(is_looping(pair.positive_response) for pair in changed)
    assert [pair.pair_id for pair in own] == [pair.pair_id for pair in pairs]
    assert sorted(on_policy(pairs[::-1], target, style), key=lambda p: p.pair_id) == sorted(
        own, key=lambda p: p.pair_id
    )


def test_without_an_answer_in_the_style_the_written_responses_stay(pairs, target):
    never = load_style("step_by_step_reasoning").model_copy(update={"markers": (re.escape("no model says this"),)})
    assert on_policy(pairs[:3], target, never) == pairs[:3]


def test_a_vector_is_learned_from_the_models_own_answers(pairs, target, monkeypatch):
    style = load_style("step_by_step_reasoning").model_copy(update={"markers": ("a",), "min_markers": 1})
    monkeypatch.setattr("factory.learning.learn.load_style", lambda name: style)  # the tiny model is in no built-in one
    start = build_vector(pairs[:6], target, layers=[1, 2])
    learning = Learning(rounds=2, response_tokens=6, targets="on_policy")
    own = learn_vector(pairs[:6], target, start=start, learning=learning)
    written, by_hand = learning.model_copy(update={"targets": "written"}), on_policy(pairs[:6], target, style)
    assert (own.value_vector == learn_vector(by_hand, target, start=start, learning=written).value_vector).all()
    assert (own.value_vector != learn_vector(pairs[:6], target, start=start, learning=written).value_vector).any()
