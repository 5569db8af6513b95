"""The starter data keep their promises: enough, disjoint, in style, of like length, unrepeated."""

import re
import statistics

import pytest

from factory.pairs.dataset import load_dataset, load_questions
from factory.pairs.styles import load_style
from tests.conftest import ROOT, STYLES

DEFAULT = load_questions(ROOT / "questions" / "default.txt")
HELD_OUT = load_questions(ROOT / "questions" / "heldout.txt")
NAMED = """
How does photosynthesis work?
What are the key factors that led to the fall of the Roman Empire?
Explain the concept of machine learning to a 10-year-old.
How would you solve climate change?
What is the relationship between quantum mechanics and general relativity?
How do neural networks learn?
What makes a good leader?
Explain the economic impact of automation.
How does the human immune system work?
What are the ethical implications of artificial intelligence?
How would you design a sustainable city?
Explain the principles of effective communication.
What are the key challenges in space exploration?
How does consciousness emerge from neural activity?
What makes a scientific theory robust?
""".strip().splitlines()

each_dataset = pytest.mark.parametrize("style_name", STYLES)


def dataset(style_name):
    return load_dataset(ROOT / "datasets" / f"{style_name}_pairs.jsonl")


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def shingles(text, n=8):
    tokens = words(text)
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def test_there_are_enough_questions_and_none_is_in_both_files():
    assert len(DEFAULT) >= 60
    assert len(HELD_OUT) >= 30
    plain = [[" ".join(words(question)) for question in part] for part in (DEFAULT, HELD_OUT)]
    assert not set(plain[0]) & set(plain[1])
    assert len(set(plain[0])) == len(DEFAULT)
    assert len(set(plain[1])) == len(HELD_OUT)


def test_the_questions_of_the_reference_configuration_come_first():
    assert DEFAULT[: len(NAMED)] == NAMED


def test_no_question_file_repeats_a_question():
    for name in ("default.txt", "heldout.txt"):
        lines = [line.strip() for line in (ROOT / "questions" / name).read_text().splitlines()]
        questions = [line for line in lines if line and not line.startswith("#")]
        assert len(questions) == len(set(questions)), name


@each_dataset
def test_a_dataset_says_what_it_is_and_how_it_came_to_be(style_name):
    metadata, pairs = dataset(style_name)
    assert metadata["style_name"] == style_name
    assert metadata["total_pairs"] == len(pairs) >= 40
    assert metadata["description"] == load_style(style_name).description
    assert "no API call" in metadata["model_used"]
    assert all(pair.style == style_name for pair in pairs)


@each_dataset
def test_every_positive_is_in_the_style_and_no_negative_is(style_name):
    style = load_style(style_name)
    for pair in dataset(style_name)[1]:
        assert style.is_shown_in(pair.positive_response), pair.positive_response
        assert not style.is_shown_in(pair.negative_response), pair.negative_response


@each_dataset
def test_both_answers_are_of_similar_length(style_name):
    ratios = [len(words(p.positive_response)) / len(words(p.negative_response)) for p in dataset(style_name)[1]]
    assert 0.9 < statistics.mean(ratios) < 1.1
    assert min(ratios) > 0.6
    assert max(ratios) < 1.6


@each_dataset
def test_no_answer_is_cut_off_and_none_is_in_lists_where_it_should_be_plain(style_name):
    for pair in dataset(style_name)[1]:
        for text in (pair.positive_response, pair.negative_response):
            assert re.search(r"""[.!?]["')]?$""", text), text[-60:]
        assert "\n" not in pair.negative_response


@each_dataset
def test_no_two_answers_share_eight_words_in_a_row_too_often(style_name):
    pairs = dataset(style_name)[1]
    for side in ("positive_response", "negative_response"):
        texts = [shingles(getattr(pair, side)) for pair in pairs]
        for i, first in enumerate(texts):
            for second in texts[:i]:
                assert len(first & second) <= 0.1 * min(len(first), len(second))


@each_dataset
def test_the_prompts_are_those_of_the_style_and_the_questions_those_of_the_file(style_name):
    style = load_style(style_name)
    pairs = dataset(style_name)[1]
    for pair in pairs:
        assert (pair.positive_prompt, pair.negative_prompt) == style.prompts_for(pair.question)
        assert pair.question in DEFAULT
    assert not {pair.question for pair in pairs} & set(HELD_OUT)


@each_dataset
def test_no_answer_speaks_of_its_instructions(style_name):
    for pair in dataset(style_name)[1]:
        for text in (pair.positive_response, pair.negative_response):
            assert not re.search(
                r"\b(?:my|these|your) instructions|as requested|as an ai\b|in this style", text, re.IGNORECASE
            )
