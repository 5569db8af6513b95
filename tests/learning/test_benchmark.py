"""The benchmark of learning measures what it says, with a tiny model."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.learning import held_out_questions, measure_answers, measure_speed, shuffle
from factory import Learning, Steering, build_vector, load_style
from factory.files import shipped_file
from factory.pairs.dataset import load_questions
from factory.store import Store

STYLE = "step_by_step_reasoning"


def test_answers_of_a_condition_have_their_figures(target, starter_pairs, tmp_path):
    vector = build_vector(starter_pairs[:6], target)
    asked = SimpleNamespace(choose=True, tokens=6)
    figures = measure_answers(target, load_style(STYLE), Store(tmp_path), Steering(vector), None, asked)
    assert figures["n"] == len(held_out_questions(others=True))
    assert 0 <= figures["exact"] <= 12
    assert (
        figures["relevance"]
        == measure_answers(target, load_style(STYLE), Store(tmp_path), Steering(vector), None, asked)["relevance"]
    )


def test_settings_are_compared_on_all_held_out_questions_that_do_not_measure():
    measuring, others = (held_out_questions(others=which) for which in (False, True))
    assert len(measuring) == 30
    assert set(load_questions(shipped_file("questions", "heldout.txt"))) == {*measuring, *others}
    assert not set(measuring) & set(others)


def test_plain_autograd_keeps_more_than_the_vectors_gradient_needs(target, starter_pairs):
    learning = Learning(pairs_per_round=2, pairs_per_part=2, response_tokens=6)
    speed = measure_speed(SimpleNamespace(repeats=1), target, starter_pairs[:8], learning)
    assert speed["held_mib"]["plain autograd"] > speed["held_mib"]["ours"] > 0
    assert set(speed["seconds"]) == {"forward", "ours", "plain autograd"}
    assert not any(weight.requires_grad for weight in target.model.parameters())


def test_shuffled_pairs_have_the_responses_of_other_questions(starter_pairs):
    shuffled = {pair.question: pair.positive_response for pair in shuffle(starter_pairs)}
    assert sorted(shuffled.values()) == sorted(pair.positive_response for pair in starter_pairs)
    assert all(shuffled[pair.question] != pair.positive_response for pair in starter_pairs)
