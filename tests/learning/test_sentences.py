"""Sentences of a response, and one of them said again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.learning.sentences import Loop, loop_of, split_sentences


@given(st.text(alphabet="ab1 .!?\n:"))
def test_sentences_joined_are_the_text(text):
    assert "".join(split_sentences(text)) == text.strip()


@pytest.mark.parametrize(
    ("response", "loop"),
    [
        ("Step 1: Look at the sky.", Loop("Step 1: Look at the sky. Step 2:", " Look at the sky.")),
        ("2. Look at the sky\n3. No", Loop("2. Look at the sky\n3.", " Look at the sky")),
        ("The sky is blue.\nYes.", Loop("The sky is blue.\nThe sky is", " blue.")),
        ("No. The sky is blue.", Loop("No. The sky is blue. The sky is", " blue.")),
    ],
)
def test_a_loop_is_the_response_up_to_a_sentence_and_that_again(response, loop):
    assert loop_of(response) == loop


def test_what_has_no_sentence_of_four_words_has_no_loop():
    assert loop_of("Yes. No! Never.") is None


def test_pairs_of_the_starter_set_can_all_loop(starter_pairs):
    loops = [loop_of(pair.positive_response) for pair in starter_pairs]
    assert all(loop and loop.again.strip() in loop.before for loop in loops)
