"""Quality gates: what is let through and what is not."""

from __future__ import annotations

import pytest

from factory.pairs.dataset import load_pairs
from factory.pairs.pair import ContrastivePair
from factory.pairs.styles import load_style
from factory.teacher.gates import check_answer, compare_answers, find_duplicates
from factory.teacher.judge import Scores, judge_prompt, read_scores
from tests.conftest import ROOT, STYLES

STYLE = load_style("step_by_step_reasoning")
QUESTION = "How does photosynthesis work?"
PROMPT, PLAIN_PROMPT = STYLE.prompts_for(QUESTION)
GOOD = "Step 1: Light meets a leaf.\nStep 2: Water is split.\nStep 3: Sugar is made of air."
PLAIN = "Plants make sugar from carbon dioxide and water by using the energy of light in their leaves."


@pytest.mark.parametrize("name", STYLES)
def test_every_starter_pair_passes(name):
    style = load_style(name)
    pairs = load_pairs(ROOT / "datasets" / f"{name}_pairs.jsonl")
    for pair in pairs:
        for positive in (True, False):
            text = pair.positive_response if positive else pair.negative_response
            prompt = pair.positive_prompt if positive else pair.negative_prompt
            assert check_answer(text, style, prompt, pair.question, positive=positive).reasons == []
        assert compare_answers(pair.positive_response, pair.negative_response).passed
    assert find_duplicates(pairs) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("  \n ", "empty"),
        ("I'm sorry, but I cannot help with that.", "refusal"),
        ("I can\u2019t answer this.", "refusal"),
        ("As an AI language model I have no leaves.", "refusal"),
        (f"<|im_start|>{GOOD}", "leakage"),
        (f"{GOOD} </think>", "leakage"),
        (f"Assistant: {GOOD}", "leakage"),
        (f"As requested, here it is. {GOOD}", "leakage"),
        (f"This is step by step reasoning. {GOOD}", "leakage"),
        (f"{GOOD} {PROMPT.splitlines()[-1]} {PROMPT.splitlines()[0]}", "leakage"),
        ("Step 1: the leaf is green and so\n" * 12, "repetition"),
        (PLAIN, "no_markers"),
    ],
)
def test_a_bad_positive_is_refused_with_its_reason(text, reason):
    assert reason in check_answer(text, STYLE, PROMPT, QUESTION, positive=True).reasons


def test_a_negative_in_the_style_is_refused():
    assert check_answer(PLAIN, STYLE, PLAIN_PROMPT, QUESTION, positive=False).passed
    assert check_answer(GOOD, STYLE, PLAIN_PROMPT, QUESTION, positive=False).reasons == ["markers_in_negative"]


def test_repeating_the_question_is_no_leakage():
    text = f"{QUESTION} {GOOD}"
    assert check_answer(text, STYLE, PROMPT, QUESTION, positive=True).passed


def test_a_style_without_markers_is_not_judged_by_them():
    bare = STYLE.model_copy(update={"markers": ()})
    assert check_answer(PLAIN, bare, PROMPT, QUESTION, positive=True).passed
    assert check_answer(GOOD, bare, PROMPT, QUESTION, positive=False).passed


def test_two_answers_that_are_one_fail_and_unequal_lengths_only_warn():
    assert compare_answers(PLAIN, PLAIN + "!").reasons == ["identical"]
    verdict = compare_answers(GOOD * 5, PLAIN)
    assert verdict.passed
    assert verdict.figures["warnings"] == ["length_ratio"]


def test_a_nearly_repeated_answer_to_another_question_is_found():
    pairs = [
        ContrastivePair("one?", GOOD, PLAIN),
        ContrastivePair("two?", PLAIN, GOOD),
        ContrastivePair("three?", GOOD + ".", PLAIN),
    ]
    assert find_duplicates(pairs) == {pairs[2].pair_id: pairs[0].pair_id}


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("style: 80\ncoherence: 90", Scores(style=80, coherence=90)),
        ("**Style:** 7\n**Coherence:** 100", Scores(style=7, coherence=100)),
        ("style: 180\ncoherence: 90", None),
        ("It is fine.", None),
    ],
)
def test_a_judge_s_scores_are_read_or_nothing_is(reply, scores):
    assert read_scores(reply) == scores


def test_the_judge_is_not_told_which_answer_it_reads():
    prompt = judge_prompt(STYLE, QUESTION, GOOD)
    assert GOOD in prompt
    assert QUESTION in prompt
    assert STYLE.description in prompt
    assert not any(word in prompt.lower() for word in ("positive", "negative", "plainly"))
